"""Method weights: how noisy updates are weighed, on a quadratic whose answer is known.

Clients descend quadratics ½‖w − t_i‖² from w = 0: client i's true update is b_i = η·t_i, t_i ~ N(t, h), and
what it sends has the noise of its random directions on top, E‖e_i‖² = v_i. Of all weighted means,
weights ∝ 1/(h + v_i) are the best, with mean squared error 1/Σ 1/(h + v_i). Where methods also differ in how
far they get, generalised least squares are.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import UpdateRejected
from headwater.merging import MeanAggregator
from headwater.merging.coverage import covered_by
from headwater.merging.method_weights import MethodWeight, completed, shares_of, smoothed
from headwater.merging.plan import MergePlan, NoisePlan, Update
from headwater.merging.update_moments import require_noise
from headwater.seeds.coefficients import SeedCoefficients, SeedPlan, directions_of
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from tests.support.quadratic import flat

SIZE = 64


NOISY = [0.0, 0.0, 0.5, 1.0, 4.0, 4.0, 16.0, 64.0]


class Federation:
    """Rounds of eight clients whose noises are ``NOISY``, seen through MeanAggregator."""

    def __init__(self, between: float, seed: int, noises=NOISY):
        self.rng, self.between, self.noises = np.random.default_rng(seed), between, noises
        self.truth = self.rng.standard_normal(SIZE)

    def updates(self):
        for i, noise in enumerate(self.noises):
            own = self.rng.standard_normal(SIZE) * math.sqrt(self.between / SIZE)
            error = self.rng.standard_normal(SIZE) * math.sqrt(noise / SIZE)
            delta = torch.from_numpy(np.float32(self.truth + own + error))
            yield Update(f"c{i}", 1, AdapterState.from_vector(flat(SIZE), delta), 1, noise=noise)

    def merge(self, noise, updates=None, weights=None):
        names = [f"c{i}" for i in range(len(self.noises))]
        plan = MergePlan(
            flat(SIZE),
            dict(zip(names, weights or [1] * len(names), strict=True)),
            64.0,
            noise=noise,
            groups=dict(zip(names, names, strict=True)),
        )
        rule = MeanAggregator()
        acc = rule.init(plan)
        for update in updates or self.updates():
            acc = rule.add(acc, update)
        return rule.finalize(acc)

    def error(self, merged):
        return float(np.sum((merged.delta.vector().double().numpy() - self.truth) ** 2))


@pytest.mark.parametrize("between", [pytest.param(0.25, marks=pytest.mark.slow), 2.0, 10.0])
def test_the_weights_are_almost_the_best_and_beat_equal_ones(between):
    """The procedure as it runs: each round is weighed by what the rounds before told; 60 federations of 12
    rounds, of which the first 4 teach. The error is a mean of 480; ours and the optimum's are of the same
    updates, so their ratio has a standard error below 1 %."""
    best = 1 / sum(1 / (between + v) for v in NOISY)
    ours, optimal, equal = [], [], []
    for seed in range(60):
        federation, known = Federation(between, seed), None
        for round_ in range(12):
            updates = list(federation.updates())
            merged = federation.merge(known, updates)
            if round_ >= 4:
                ours.append(federation.error(merged))
                weights = [1 / (between + v) for v in NOISY]
                rows = np.stack([u.delta.vector().double().numpy() for u in updates])
                optimal.append(np.sum((weights @ rows / sum(weights) - federation.truth) ** 2))
                equal.append(np.sum((rows.mean(axis=0) - federation.truth) ** 2))
            known = merged.noise
    assert np.mean(optimal) == pytest.approx(best, rel=0.05)
    assert np.mean(ours) < 1.03 * np.mean(optimal)
    gap = np.array(equal) - np.array(ours)
    assert gap.mean() > 10 * gap.std() / math.sqrt(len(gap))
    assert np.mean(equal) == pytest.approx(sum(between + v for v in NOISY) / 64, rel=0.05)
    assert np.mean(equal) > 1.4 * np.mean(ours)


# method: (clients, progress, noise)
MIXES = {
    "half by gradients": {"gradients": (2, 1.0, 0.0), "forward": (1, 0.4, 8.0), "seeds": (1, 0.05, 1.0)},
    "one does nothing": {"gradients": (3, 1.0, 0.0), "broken": (1, 0.0, 30.0)},
    "all get as far": {"gradients": (2, 1.0, 0.0), "forward": (2, 1.0, 4.0)},
    "without gradients": {"forward": (4, 1.0, 4.0), "seeds": (4, 0.3, 4.0)},
}


@pytest.mark.parametrize("says", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.parametrize("mix", MIXES)
def test_methods_that_make_little_progress_do_not_dilute(mix, says):
    """Clients of methods that get to c·(Δ + b) with noise v, also where they claim to have none.

    Over 40 federations of 12 rounds, of which 4 teach: never worse than the best of its methods alone, and
    within 8 % of generalised least squares with everything known. Equal weights pull towards no change."""
    size, between, methods = 256, 4.0, MIXES[mix]
    names = {f"{m}{i}": m for m, (count, _, _) in methods.items() for i in range(count)}
    rng = np.random.default_rng(11)
    ours, equal, best, part = [], [], [], []
    for _ in range(40):
        truth, known = rng.standard_normal(size) * 0.5, None
        for round_ in range(12):
            plan = MergePlan(flat(size), dict.fromkeys(names, 1), 64.0, noise=known, groups=names)
            rule, rows = MeanAggregator(), {}
            acc = rule.init(plan)
            for name, method in names.items():
                _, progress, noise = methods[method]
                own = truth + rng.standard_normal(size) * math.sqrt(between / size)
                rows[name] = progress * own + rng.standard_normal(size) * math.sqrt(noise / size)
                delta = AdapterState.from_vector(flat(size), torch.from_numpy(np.float32(rows[name])))
                acc = rule.add(acc, Update(name, 1, delta, 1, noise=noise if says else 0.0))
            merged = rule.finalize(acc)
            known = merged.noise
            if round_ < 4:
                continue

            def error(weights, rows=rows, truth=truth):
                """Of Σ n·δ / Σ n·c for the n of each method."""
                above = sum(weights[m] * rows[name] for name, m in names.items())
                return np.sum((above / sum(weights[m] * methods[m][1] for m in names.values()) - truth) ** 2)

            gls = {m: c / (c * c * between + v) for m, (_, c, v) in methods.items()}
            ours.append(np.sum((merged.delta.vector().double().numpy() - truth) ** 2))
            best.append(error(gls))
            part.append([error({**dict.fromkeys(methods, 0.0), m: 1.0}) for m in methods if methods[m][1]])
            equal.append(np.sum((np.mean(list(rows.values()), axis=0) - truth) ** 2))
    assert np.mean(ours) < 1.08 * np.mean(best)
    assert np.mean(ours) < 1.01 * np.min(np.mean(part, axis=0))
    assert np.mean(ours) < np.mean(equal)


@pytest.mark.parametrize("between", [0.0, 2.0, 10.0])
@pytest.mark.parametrize("weights", [None, [3, 3, 2, 2, 2, 1, 1, 1]])
def test_the_estimate_of_between_is_close(between, weights):
    """Mean of 300 rounds within 3 standard errors, and those below 0.12 + 6 % of h, with equal weights and
    with others; at 0 the estimate is cut off and can only be small."""
    federation = Federation(between, 5, [0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 4.0, 4.0])
    found = [federation.merge(None, weights=weights).noise.between for _ in range(300)]
    error = np.std(found) / math.sqrt(300)
    assert error < 0.12 + 0.06 * between
    if between:
        assert np.mean(found) == pytest.approx(between, abs=3 * error)
    assert np.mean(found) < between + 0.2 + 3 * error


def test_the_estimate_is_dersimonian_and_lairds():
    """Against their formula (1986, eq. 8) over a plain list of updates, in float64."""
    federation, weights = Federation(3.0, 9), np.arange(1.0, 9.0)
    updates = list(federation.updates())
    found = federation.merge(None, updates, list(range(1, 9))).noise
    rows = np.stack([u.delta.vector().double().numpy() for u in updates])
    mean = weights @ rows / weights.sum()
    q = float(weights @ np.sum((rows - mean) ** 2, axis=1))
    own = float(np.sum(weights * (1 - weights / weights.sum()) * NOISY))
    freedom = float(weights.sum() - np.sum(weights**2) / weights.sum())
    assert found.between == pytest.approx(max(0.0, (q - own) / freedom), rel=1e-5)
    assert found.noises == {f"c{i}": v for i, v in enumerate(NOISY)}


def test_between_comes_out_right_where_clients_train_parts():
    """Six clients train two layers each of six, and have noise; two train all by gradients. 300 rounds."""
    size, between, noise = 48, 2.0, 1.0
    spec = StateSpec.of([TensorSpec(f"layer.{i}.x", (8,), "head") for i in range(6)])
    rng, found = np.random.default_rng(2), []
    truth = rng.standard_normal(size)
    parts = {f"p{i}": (f"layer.{i}.x", f"layer.{(i + 1) % 6}.x") for i in range(6)}
    names = [*parts, "a", "b"]
    groups = {name: "part" if name in parts else "whole" for name in names}
    plan = MergePlan(spec, dict.fromkeys(names, 1), 64.0, tensors=parts, groups=groups)
    for _ in range(300):
        rule = MeanAggregator()
        acc = rule.init(plan)
        for name in names:
            own = truth + rng.standard_normal(size) * math.sqrt(between / size)
            mask = covered_by(plan, name)
            if mask is not None:
                own = (own + rng.standard_normal(size) * math.sqrt(noise / 16)) * mask.numpy()
            delta = AdapterState.from_vector(spec, torch.from_numpy(np.float32(own)))
            acc = rule.add(acc, Update(name, 1, delta, 1, noise=noise if name in parts else 0.0))
        told = rule.finalize(acc).noise
        assert told.noises["whole"] == 0.0
        assert 3.0 <= told.noises["part"] < 7.0  # of a third of the values: times 3, and what chance adds
        found.append(told.between)
    error = np.std(found) / math.sqrt(300)
    assert error < 0.06
    assert np.mean(found) == pytest.approx(between, abs=3 * error)


@pytest.mark.parametrize("alike", [False, True])
def test_between_comes_out_right_where_clients_share_seeds(alike):
    """Six clients draw 48 of 96 shared seeds, or all take the same 48 (as decomfl's do); two send deltas.

    Where what they have in common is forgotten, it comes out a fifth too small, or as almost nothing.
    """
    size, between, steps, count = 64, 20.0, 48, 96
    rng, found, noises = np.random.default_rng(6), [], []
    truth = rng.standard_normal(size) / 4
    names = [f"c{i}" for i in range(8)]
    groups = {name: "seeds" if i < 6 else "exact" for i, name in enumerate(names)}
    for round_ in range(300):
        plan = SeedPlan(round_ * count, count, "rademacher", 14, steps)
        family = directions_of(plan, Key.root(1), size)
        z = np.stack([family.integers(plan.first + s) for s in range(count)]).astype(np.float64)
        same, rule = rng.permutation(count)[:steps], MeanAggregator()
        acc = rule.init(MergePlan(flat(size), dict.fromkeys(names, 1), 64.0, plan, family, groups=groups))
        for i, name in enumerate(names):
            own = truth + rng.standard_normal(size) * math.sqrt(between / size)
            if i >= 6:
                delta = AdapterState.from_vector(flat(size), torch.from_numpy(np.float32(own)))
                acc = rule.add(acc, Update(name, 1, delta, 1))
                continue
            seeds = same if alike else rng.permutation(count)[:steps]
            q = np.rint(z[seeds] @ own / steps * 2.0**14).astype(np.int64)
            delta = SeedCoefficients.of(
                plan, list(zip((plan.first + seeds).tolist(), q.tolist(), strict=True))
            )
            acc = rule.add(acc, Update(name, 1, delta, 1, noise=delta.noise(size)))
        told = rule.finalize(acc).noise
        found.append(told.between)
        noises.append(told.noises["seeds"])
    raw_noise = (truth @ truth + between) * (size - 1) / steps
    # noise in common does not go away in a mean over six, so each weighs as if it had more of it
    assert np.mean(noises) / raw_noise > (1.5 if alike else 1.05)
    error = np.std(found) / math.sqrt(300)
    assert error < 0.02 * between
    # 3 standard errors, and 5 % for choosing as the measure of progress who by chance looks best
    assert np.mean(found) == pytest.approx(between, abs=3 * error + 0.05 * between)


def test_scalars_and_deltas_are_weighed_by_one_rule():
    """Half of the clients send their exact step, half steps along 48 seeds of their own, 64 values. The
    variance between clients comes out right: 300 rounds, standard error 3 %. Where what the seeds have in
    common, the signal, is left out of their energy, it comes out as 0.4."""
    size, between, steps = 64, 1.0, 48
    rng, found = np.random.default_rng(4), []
    truth = rng.standard_normal(size) / 4
    for round_ in range(300):
        plan = SeedPlan(round_ * 3 * steps, 3 * steps, "rademacher", 14, steps)
        family = directions_of(plan, Key.root(1), size)
        rule = MeanAggregator()
        names = {f"c{i}": "exact" if i < 3 else "seeds" for i in range(6)}
        acc = rule.init(MergePlan(flat(size), dict.fromkeys(names, 1), 64.0, plan, family, groups=names))
        for i in range(6):
            own = truth + rng.standard_normal(size) * math.sqrt(between / size)
            delta: AdapterState | SeedCoefficients = AdapterState.from_vector(
                flat(size), torch.from_numpy(np.float32(own))
            )
            noise = 0.0
            if i >= 3:
                seeds = range(plan.first + (i - 3) * steps, plan.first + (i - 2) * steps)
                z = np.stack([family.integers(s) for s in seeds]).astype(np.float64)
                q = np.rint(z @ own / steps * 2.0**14).astype(np.int64)
                delta = SeedCoefficients.of(plan, list(zip(seeds, q.tolist(), strict=True)))
                noise = delta.noise(size)
            acc = rule.add(acc, Update(f"c{i}", 1, delta, 1, noise=noise))
        found.append(rule.finalize(acc).noise.between)
    error = np.std(found) / math.sqrt(300)
    assert error < 0.04
    assert np.mean(found) == pytest.approx(between, abs=3 * error)


# --- arithmetic ---


def share(noise, method="m", *, among=("m", "n")):
    return shares_of(noise, among)[method]


@given(*[st.floats(0, 2.0**59)] * 4, st.sampled_from([0.0, 1e-9, 0.1, 1.0]))
def test_weights_are_lowered_only_and_fall_with_noise(noise, more, between, reference, progress):
    def of(v):
        return share(NoisePlan(between, {"m": v, "n": reference}, {"m": progress, "n": 1.0})).weight

    low, high = sorted((noise, noise + more))
    assert 0 < of(high) <= of(low) <= 1
    if progress == 1.0:
        assert of(reference) == 1


def test_weights_are_the_random_effects_models():
    found = [share(NoisePlan(2.0, {"m": v, "n": 1.0})).weight for v in (0.0, 1.0, 2.0, 4.0, 28.0)]
    assert found == [1.0, 1.0, 0.75, 0.5, 0.1]
    assert share(NoisePlan(0.0, {"m": 5.0, "n": 0.0})).weight == 2.0**-20
    assert share(NoisePlan(0.0, {"n": 0.0})) == share(None) == MethodWeight(1.0, 1.0)  # not known yet
    assert share(NoisePlan(2.0, {"m": 4.0, "n": 1.0}), among=["m"]).weight == 1  # alone


def test_progress_raises_a_weight_and_lowers_its_share_of_the_divisor():
    """(h + 0)/(h + v/c²)/c, with c at least 1/64."""
    for progress, noise, weight in (
        (0.5, 1.0, 2 / 3),
        (0.5, 0.0, 1),
        (0.1, 4.0, 20 / 402),
        (1e-9, 4.0, 128 / 16386),
    ):
        known = NoisePlan(2.0, {"m": noise, "n": 0.0}, {"m": progress, "n": 1.0})
        assert share(known).weight == pytest.approx(weight)
        assert share(known).progress == max(progress, 1 / 64)
        assert share(known, "n") == MethodWeight(1.0, 1.0)


def test_the_furthest_method_that_is_in_is_the_measure():
    """Where only one with little progress arrives, its mean is no longer than its updates."""
    known = NoisePlan(1.0, {"m": 0.5, "n": 0.0}, {"m": 0.1, "n": 1.0})
    plan = MergePlan(flat(2), dict.fromkeys("ab", 1), 8.0, noise=known, groups={"a": "m", "b": "n"})
    rule = MeanAggregator()
    update = Update("a", 1, AdapterState.from_vector(flat(2), torch.tensor([1.0, -2.0])), 1)
    assert rule.finalize(rule.add(rule.init(plan), update)).delta.vector().tolist() == [1.0, -2.0]


def test_one_client_cannot_make_the_others_progress_small():
    """However far its update reaches: a method of one client is no measure."""
    plan = MergePlan(flat(2), dict.fromkeys("abc", 1), 2.0**20, groups={"a": "m", "b": "m", "c": "n"})
    rows = {"a": ([1.0, 1.0], 0.0), "b": ([1.0, 0.9], 0.0)}
    for scale in (1.0, 1e3, 1e6):
        found = noise_of(plan, rows | {"c": ([scale, scale], 0.0)})
        assert found.progress == {"m": 1.0, "n": 1.0}
    assert noise_of(plan, rows | {"c": ([-1.0, -1.0], 0.0)}).progress == {"m": 1.0, "n": 0.0}
    assert noise_of(plan, rows | {"c": ([0.25, 0.25], 0.0)}).progress["n"] == pytest.approx(0.25, rel=0.1)


def noise_of(plan, rows):
    """What a round of updates (vector, claimed noise) tells."""
    rule = MeanAggregator()
    acc = rule.init(plan)
    for client, (vector, noise) in rows.items():
        delta = AdapterState.from_vector(plan.spec, torch.tensor(vector, dtype=torch.float32))
        acc = rule.add(acc, Update(client, 1, delta, 1, noise=noise))
    return rule.finalize(acc).noise


def test_one_method_and_one_update_tell_nothing():
    plan = MergePlan(flat(2), {"a": 1, "b": 1}, 1.0, groups={"a": "x", "b": "x"})
    rows = {"a": ([1.0, 1.0], 1.0), "b": ([1.0, 1.0], 1.0)}
    assert noise_of(plan, rows) is None
    plan = replace(plan, groups={"a": "x", "b": "y"})
    assert noise_of(plan, rows) is not None
    assert noise_of(plan, {"a": rows["a"]}) is None


def test_a_methods_noise_is_its_clients_median():
    """A client that claims none, or all it sent, does not speak for the rest, nor one that stood still."""
    plan = MergePlan(flat(2), dict.fromkeys("abcde", 1), 1.0, groups=dict.fromkeys("abcd", "m") | {"e": "g"})
    ones = [1.0, 1.0]
    rows = {"a": (ones, 1.0), "b": (ones, 1.1), "c": (ones, 0.0), "e": (ones, 0.0)}
    assert noise_of(plan, rows | {"d": ([0.0, 0.0], 0.0)}).noises == {"m": 1.0, "g": 0.0}
    assert noise_of(plan, rows | {"d": (ones, 2.0)}).noises["m"] == pytest.approx(1.05)


@pytest.mark.parametrize("noise", [-1e-300, float("nan"), float("inf"), float("-inf"), 2.0**60])
def test_what_is_no_noise_is_refused_by_name(noise):
    require_noise(0.0, "a")
    require_noise(2.0**59, "a")
    with pytest.raises(UpdateRejected, match="client a, noise"):
        require_noise(noise, "a")


def test_estimates_are_smoothed_over_rounds():
    a, b = NoisePlan(4.0, {"m": 1.0, "old": 7.0}), NoisePlan(2.0, {"m": 0.0, "new": 3.0})
    assert smoothed(None, None) is None
    assert smoothed(a, None) == smoothed(None, a) == a
    assert smoothed(a, b) == NoisePlan(3.0, {"m": 0.5, "new": 3.0, "old": 7.0})
    a, b = replace(a, progress={"m": 0.5, "old": 1.0}), replace(b, progress={"m": 0.25, "new": 0.0})
    assert smoothed(a, b).progress == {"m": 0.375, "new": 0.0, "old": 1.0}


def test_a_round_is_weighed_by_itself_only_where_nothing_is_known_of_a_method():
    before, now = (
        NoisePlan(4.0, {"m": 1.0}, {"m": 0.5}),
        NoisePlan(2.0, {"m": 9.0, "new": 3.0}, {"m": 1.0, "new": 0.1}),
    )
    assert completed(None, now) == now
    assert completed(before, None) == before
    assert completed(before, now) == NoisePlan(4.0, {"m": 1.0, "new": 3.0}, {"m": 0.5, "new": 0.1})
