"""SharedNoise: what the clients' shares add up to, what they cost, and that nothing leaves without them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from headwater.errors import ConfigError, DecodeError
from headwater.merging.plan import MergePlan, NoiseShare, PrivateSum, Update
from headwater.privacy.accounting import price, relation_for
from headwater.privacy.events import Everyone, SharesReleased, SumReleased, from_json, to_json
from headwater.privacy.noise import ReproducibleRandomness
from headwater.security.secagg.bounds import MOST, Promise, fewest_honest
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.strategies.shared_noise import SharedNoise

SIZE = 5
SPEC = StateSpec([TensorSpec("a", (SIZE,), "other")])
PRIVATE = PrivateSum(0.5, 2.0, 10.0, shares=NoiseShare(honest=4, clients=10))
NAMES = [f"c{i}" for i in range(10)]


def plan(private=PRIVATE, names=NAMES):
    return MergePlan(SPEC, dict.fromkeys(names, 1), 1e6, private=private)


def rule(key="k"):
    return SharedNoise(lambda client: ReproducibleRandomness(Key.root(7).child(key, client)))


def vector(name, values, key="k", merge=None):
    merge, of = merge or plan(), rule(key)
    delta = AdapterState.from_vector(SPEC, torch.as_tensor(values, dtype=torch.float32))
    acc = of.add(of.init(merge.part([name])), Update(name, 1, delta, 1))
    return of.to_sums(acc)[0]


def test_any_h_honest_clients_draw_all_of_the_noise():
    """20,000 draws: of H shares the variance that is priced, of twice as many twice that."""
    spec = StateSpec([TensorSpec("a", (20_000,), "other")])
    merge, needed = replace(plan(), spec=spec), PRIVATE.multiplier * PRIVATE.longest(20_000)
    delta = AdapterState.zeros(spec)
    for count in (4, 8):
        told = np.zeros(20_000)
        for name in NAMES[:count]:
            of = rule()
            told += of.to_sums(of.add(of.init(merge.part([name])), Update(name, 1, delta, 1)))[0] / needed
        assert told.var() == pytest.approx(count / 4, rel=0.045)  # 4.5 σ of 20,000 draws' variance
        assert abs(told.mean()) < 4.5 * math.sqrt(count / 4 / told.size)
    assert PRIVATE.share(20_000) * math.sqrt(4) >= needed  # never a fraction of a unit less


def test_a_vector_is_the_shortened_update_and_noise_and_the_sum_is_over_the_number_that_was_expected():
    long, none = np.full(SIZE, 3.0), np.zeros(SIZE)
    moved = vector("c0", long) - vector("c0", none)  # the same noise
    assert np.linalg.norm(moved * 2.0**-PRIVATE.bits) == pytest.approx(0.5, rel=1e-6)
    assert np.linalg.norm(moved) <= PRIVATE.longest(SIZE)
    of, sums = rule(), vector("c0", long) + vector("c1", none)
    merged = of.finalize(of.from_sums(plan(), ["c0", "c1"], [sums]))
    np.testing.assert_allclose(merged.delta.vector().numpy(), sums * 2.0**-PRIVATE.bits / 10, rtol=1e-6)
    assert merged.report["noise_std"] == pytest.approx(
        math.sqrt(2) * PRIVATE.share(SIZE) * 2.0**-PRIVATE.bits / 10
    )
    assert merged.clients == ("c0", "c1")


@pytest.mark.parametrize("clients", [3, 10, 10_000])
@pytest.mark.parametrize("multiplier", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("clip", [1e-4, 0.5, 300.0])
def test_the_ring_holds_the_longest_updates_and_the_farthest_draws(clients, multiplier, clip):
    private = PrivateSum(clip, multiplier, clients, shares=NoiseShare(max(1, clients // 2), clients))
    names = [f"c{i}" for i in range(clients)]
    (part,) = rule().sum_layout(plan(private, names)).parts
    assert part.high >= clients * (clip * 2.0**private.bits + 28 * private.share(SIZE))
    assert part.bits <= 48  # as under masks alone, to a bit


def test_units_do_not_hang_on_how_many_are_honest():
    """The organiser may raise it while devices hold vectors: their noise is then more than enough."""
    more = replace(PRIVATE, shares=NoiseShare(honest=9, clients=10))
    assert (more.bits, more.share(SIZE) < PRIVATE.share(SIZE)) == (PRIVATE.bits, True)


def test_without_noise_nothing_is_released_and_what_no_vectors_add_up_to_is_refused():
    of = rule()
    acc = of.init(plan())
    with pytest.raises(ConfigError, match="updates as they are"):
        of.finalize(acc)
    with pytest.raises(ConfigError, match="one client's update"):
        of.to_sums(acc)
    high = of.sum_layout(plan()).parts[0].high
    of.require_sound(of.from_sums(plan(), NAMES, [np.full(SIZE, high)]))
    with pytest.raises(DecodeError, match="noised deltas"):
        of.require_sound(of.from_sums(plan(), NAMES[:9], [np.full(SIZE, high)]))
    with pytest.raises(ConfigError, match="at least 16 units"):
        _ = replace(PRIVATE, multiplier=1e-14).share(SIZE)


# --- what it costs ----------------------------------------------------------------------------------


def event(round=1, **other):
    facts = {"clip": 0.5, "noise_multiplier": 2.0, "honest": 4, "sigma": 2**30, "values": 10**5}
    return SharesReleased(round, f"r{round}", **(facts | other))


def test_the_price_is_that_of_gaussians_and_of_the_gap(monkeypatch):
    pytest.importorskip("dp_accounting", reason="the extra headwater[privacy]")
    monkeypatch.setattr("headwater.privacy.accounting._INTERVAL", 0.05)
    shares = price([event(i) for i in range(1, 11)], 1e-5, "zero-out")
    gaussian = price([SumReleased(i, "r", 0.5, 2.0, Everyone()) for i in range(1, 11)], 1e-5, "add-or-remove")
    assert (shares.rdp, shares.pld) == (
        gaussian.rdp,
        gaussian.pld,
    )  # a gap below 2^-1000 is below the last bit
    assert 0 < event().gap < 1e-290
    # where units are coarse it shows: theorem 1's τ for σ 1, four shares, 1,000 values
    coarse = event(sigma=1, values=1000)
    tau = 10 * sum(math.exp(-2 * math.pi**2 * k / (k + 1)) for k in range(1, 4))
    assert 1000 * tau <= coarse.gap == pytest.approx(1000 * 10 * 3 * math.exp(-(math.pi**2)))
    dear = price([coarse, event(2)], 1e-5, "zero-out")
    plain = price([event(1), event(2)], 1e-5 * math.exp(-coarse.gap), "zero-out")
    assert dear.epsilon == pytest.approx(plain.epsilon + coarse.gap)
    with pytest.raises(ConfigError, match="zero-out"):
        price([event()], 1e-5, "add-or-remove")
    assert relation_for(event()) == "zero-out"


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("sigma", [1, 2])
def test_sums_of_discrete_gaussians_are_no_farther_from_one_than_the_gap(count, sigma):
    """Each probability within 12 σ, by convolution, in 50 digits: e^(τ/2) is the paper's factor."""
    mpmath = pytest.importorskip("mpmath", reason="comes with sympy, which torch needs")
    mpmath.mp.dps = 50

    def gaussian(variance, reach):
        weights = [mpmath.exp(mpmath.mpf(-x * x) / (2 * variance)) for x in range(-reach, reach + 1)]
        whole = mpmath.fsum(weights)
        return [weight / whole for weight in weights]

    one = gaussian(sigma**2, 14 * sigma)
    total = one
    for _ in range(count - 1):
        reach = len(total) + len(one) - 1
        total = [
            mpmath.fsum(
                total[j] * one[i - j] for j in range(max(0, i - len(one) + 1), min(i + 1, len(total)))
            )
            for i in range(reach)
        ]
    reach = int(6 * sigma * math.sqrt(count))
    single, middle = gaussian(count * sigma**2, 20 * sigma * count), len(total) // 2
    apart = max(
        abs(mpmath.log(total[middle + x] / single[len(single) // 2 + x])) for x in range(-reach, reach + 1)
    )
    assert float(apart) <= event(sigma=sigma, honest=count, values=1).gap / 2


def test_an_event_is_read_as_it_was_written():
    assert from_json(to_json(event()), "here") == event()
    assert event().same(replace(event(), release="another"))
    assert not event().same(replace(event(), honest=3))


# --- how many honest ones there are -----------------------------------------------------------------


@pytest.mark.parametrize("promise", [Promise(0.3, 0.1, 50), Promise(0.0, 0.0, 3), Promise(0.2, 0.3, 10)])
def test_no_sum_has_fewer_honest_clients(promise):
    """Every size, whatever a lying server drops of honest ones before there is a group and after."""
    found = fewest_honest(promise)
    seen = [
        promise.fewest(group) - promise.corrupt(n)
        for n in [*range(promise.least, 400), MOST]
        for group in range(n - promise.dropped(n), n + 1)
    ]
    assert min(seen) == found >= 1
    with pytest.raises(ConfigError, match="an honest client"):
        fewest_honest(Promise(0.45, 0.45, 3))
