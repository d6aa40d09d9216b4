"""What the server believes of an update made without backprop, and what it writes down of the round."""

from __future__ import annotations

import math
from types import MappingProxyType

import numpy as np
import pytest
import torch

from headwater.compression.compeft import CompeftCodec
from headwater.compression.dense import DenseCodec as DenseTensors
from headwater.compression.seed_update import encode_scalars
from headwater.config.codec import DenseCodec
from headwater.errors import HeadwaterError
from headwater.merging.plan import Update
from headwater.proto.wire import encode_reply
from headwater.protocol.failures import Failure, FailureCode
from headwater.protocol.machine import Close
from headwater.protocol.messages import ClientFailure, EncodedUpdate, TrainRequest
from headwater.seeds.coefficients import SeedCoefficients
from headwater.seeds.keys import Key
from headwater.server.clients.downlink import Downlink
from headwater.server.clients.exchange import ReceivedReply
from headwater.server.rounds.norm_bound import within
from headwater.server.rounds.open_round import OpenRound
from headwater.state import AdapterState
from headwater.strategies import FederatedStrategy
from tests.strategies.test_federated import federation
from tests.strategies.test_mixed import KSEED, SPEC, ZERO, profiles

RUN, ROOT, SPARSE = "r" * 32, Key.root(0), CompeftCodec(0.05)
METHODS = {
    "jvp": {"training": {"kind": "forward_gradient"}},
    "seeds": {"training": KSEED},
    "zo": {"training": {"kind": "mezo"}},
}


def opened(*names, **tables):
    tables = tables or {
        "methods": METHODS,
        "assignment": {"kind": "clients", "clients": {"jvp": "jvp", "seeds": "seeds", "zo": "zo"}},
    }
    strategy = FederatedStrategy(federation(**tables))
    server = strategy.init(ZERO)
    known = profiles(*names)
    plan = strategy.plan(server, known, key=ROOT)
    down = Downlink(ROOT).open(server, DenseCodec(kind="dense"), {})
    return OpenRound(plan, down, RUN, known, strategy.aggregator(plan, down.base), ROOT)


def steps(round_, *taken):
    return SeedCoefficients.of(round_.plan.merge.seeds, list(taken))


def values(scale=0.01):
    return AdapterState.from_vector(SPEC, torch.linspace(-scale, scale, SPEC.numel))


def reply(round_, client, delta, metrics=MappingProxyType({}), codec=SPARSE):
    seeded = isinstance(delta, SeedCoefficients)
    payload = encode_scalars(delta) if seeded else codec.encode(delta, key=ROOT)
    update = EncodedUpdate(
        RUN, 1, client, SPEC.fingerprint(), round_.base_sha256, payload, {},
        round_.profiles[client].train_examples, 3, dict(metrics),
    )  # fmt: skip
    data = encode_reply(update)
    return ReceivedReply(client, TrainRequest, 1, data, "", len(data), data)


def test_a_mixed_round_takes_both_kinds_and_measures_no_gap():
    round_ = opened("big", "jvp", "seeds", "zo")
    scalars = steps(round_, (3, 400), (5, -7))
    round_.fold(reply(round_, "big", values(), {"noise": 5.0, "loss": 1.0}))
    round_.fold(reply(round_, "jvp", values(), {"noise": 0.25}))
    round_.fold(reply(round_, "seeds", scalars, {"noise": 0.0}))
    round_.fold(reply(round_, "zo", values(), {"noise": 0.0}))
    merged = round_.merge()
    assert merged.clients == ("big", "jvp", "seeds", "zo")
    assert merged.coefficients is None
    record = (
        round_.draft(Close(1, merged.clients, (), last=False), merged, round_.base + merged.delta)
        .record(1.0)
        .content
    )
    assert record["gap"] is None
    rows = record["clients"]
    assert {n: r["method"] for n, r in rows.items()} == {
        "big": "default", "jvp": "jvp", "seeds": "seeds", "zo": "zo"
    }  # fmt: skip
    unit = 2.0**-round_.plan.merge.seeds.unit_bits
    own = (400**2 + 7**2) * unit**2 * (SPEC.numel - 1)  # whatever the client claims
    assert rows["seeds"]["noise"] == pytest.approx(own)
    assert rows["jvp"]["noise"] == 0.25
    assert "noise" not in rows["big"]
    assert "noise" not in rows["zo"]
    assert rows["seeds"]["bytes_up_dense"] > 4 * SPEC.numel > rows["seeds"]["bytes_up"] - 250


@pytest.mark.parametrize("metrics", [{}, {"noise": -1.0}, {"noise": math.nan}, {"noise": math.inf}])
@pytest.mark.parametrize("client", ["jvp", "zo"])
def test_a_method_along_random_directions_must_tell_its_noise(client, metrics):
    round_ = opened(client)
    with pytest.raises(HeadwaterError, match="noise"):
        round_.fold(reply(round_, client, values(), metrics))
    with pytest.raises(HeadwaterError, match="at least one"):
        round_.merge()


def test_an_update_beyond_the_privacy_bound_is_refused_whoever_sends_it():
    """The noise covers what the bound allows: a device that does not clip would tell more."""
    round_ = opened("big", privacy={"clip_l2": 0.05}, codec={"up": {"kind": "compeft", "density": 0.05}})
    too_long = values(1.0)
    assert too_long.norm() > 0.05
    with pytest.raises(HeadwaterError, match=r"an L2 norm of at most 0\.05"):
        round_.fold(reply(round_, "big", too_long))
    with pytest.raises(HeadwaterError, match="at least one"):
        round_.merge()
    round_.fold(reply(round_, "big", values(1e-6)))
    assert round_.merge().clients == ("big",)


@pytest.mark.parametrize("strategy", [{"kind": "mean"}, {"kind": "median"}])
def test_the_norm_bound_shortens_long_updates_and_counts_them(strategy):
    """Each update before it is added: a boosted one moves a merge no further than its bound."""
    tables = {"strategy": {**strategy, "weighting": "equal", "norm_bound": 0.5}}
    names, sent = ("big", "jvp", "zo"), (values(1e-3), values(0.02), values(15.0))
    round_ = opened(*names, codec={"up": {"kind": "dense"}}, **tables)
    dense = DenseTensors()
    for name, delta in zip(names, sent, strict=True):
        round_.fold(reply(round_, name, delta, codec=dense))
    merged = round_.merge()
    clipped = [d if d.norm() <= 0.5 else d * (0.5 / d.norm()) for d in sent]
    stacked = torch.stack([c.vector() for c in clipped])
    wanted = stacked.mean(0) if strategy["kind"] == "mean" else stacked.median(0).values
    assert torch.allclose(merged.delta.vector(), wanted, atol=1e-7)
    end = Close(1, merged.clients, (), last=False)
    content = round_.draft(end, merged, round_.base + merged.delta).record(1.0).content
    assert content["merge"]["clipped"] == sum(d.norm() > 0.5 for d in sent) > 0
    assert content["clients"]["zo"]["clipped_from"] == pytest.approx(sent[2].norm())
    assert "clipped_from" not in content["clients"]["big"]


def test_the_norm_bound_admits_no_value_that_is_not_finite():
    round_ = opened("big", codec={"up": {"kind": "dense"}}, strategy={"kind": "mean", "norm_bound": 0.5})
    broken = AdapterState.from_vector(SPEC, torch.full((SPEC.numel,), math.inf))
    with pytest.raises(HeadwaterError, match="finite"):
        round_.fold(reply(round_, "big", broken, codec=DenseTensors()))
    with pytest.raises(HeadwaterError, match="at least one"):
        round_.merge()


def test_a_shortened_update_has_less_noise_too():
    noisy = Update("big", 1, values(1.0), 3, noise=8.0)
    shorter, norm = within(noisy, values(1.0).norm() / 2)
    assert norm == pytest.approx(values(1.0).norm())
    assert shorter.noise == pytest.approx(2.0)
    assert within(shorter, norm) == (shorter, None)


def test_each_kind_is_refused_from_who_was_asked_for_the_other():
    round_ = opened("big", "seeds")
    with pytest.raises(HeadwaterError, match=r"scalars\.v1|compeft"):
        round_.fold(reply(round_, "big", steps(round_, (1, 1))))
    with pytest.raises(HeadwaterError, match=r"scalars\.v1"):
        round_.fold(reply(round_, "seeds", values(1e-6)))


def test_more_bytes_than_the_plan_allows_are_refused_unread():
    round_ = opened("seeds")
    incoming = reply(round_, "seeds", steps(round_, (1, 1)))
    long = ReceivedReply("seeds", TrainRequest, 1, incoming.data + bytes(10**6), "", 0)
    with pytest.raises(HeadwaterError):
        round_.fold(long)


def test_seeds_only_measures_what_was_sent_to_whom_and_counts_dense_beside_it():
    kseed = {**KSEED, "seeds": 4096}
    round_ = opened("a", "b", training=kseed)
    for client in ("a", "b", "b"):
        request = round_.request(client, 0)
        assert request.state.codec == "seeds.v1"
        round_.note_sent(request, 100 + len(request.state.body))
    round_.fold(reply(round_, "a", steps(round_, *((s, 100 + s) for s in range(5)))))
    merged = round_.merge()
    assert merged.coefficients is not None
    assert np.count_nonzero(merged.coefficients) == 5
    end = Close(1, ("a",), (("b", "failed"),), last=False)
    record = round_.draft(end, merged, round_.base + merged.delta).record(1.0).content
    assert record["bytes"]["down"] == 3 * (100 + len(round_.request("a", 0).state.body))
    assert record["bytes"]["down_dense"] == 3 * (100 + 4 * SPEC.numel)
    assert record["clients"]["b"]["failed"] == "failed"


def test_a_failure_keeps_its_code_so_that_the_server_sees_what_is_needed():
    round_ = opened("seeds")
    needs = Failure(FailureCode.NEEDS_FULL_STATE, (3,))
    failure = encode_reply(ClientFailure.coded("seeds", 1, needs, RUN))
    with pytest.raises(HeadwaterError, match="what version 3 of the adapter") as error:
        round_.fold(ReceivedReply("seeds", TrainRequest, 1, failure, "", len(failure)))
    assert error.value.failure == needs
