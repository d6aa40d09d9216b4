"""Weighing methods where clients lie, send too much, come and go, or train parts.

Each was found by a review, and was wrong before.
"""

import math

import numpy as np
import pytest
import torch

from headwater.merging import MeanAggregator
from headwater.merging.plan import MergePlan, NoisePlan, Update
from headwater.seeds.coefficients import SeedCoefficients, SeedPlan, directions_of
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from tests.support.quadratic import flat

SIZE = 256


class Rounds:
    """Rounds of clients with a known Δ of length 1; knows what the rounds before told."""

    def __init__(self, seed, methods, between=1.0, size=SIZE):
        """``methods``: name to (clients, progress, noise)."""
        self.rng, self.methods, self.between, self.size = np.random.default_rng(seed), methods, between, size
        self.truth = self.unit()
        self.clients = {f"{m}{i}": m for m, (n, _, _) in methods.items() for i in range(n)}
        self.known = None

    def unit(self):
        """Some direction."""
        found = self.rng.standard_normal(self.size)
        return found / np.linalg.norm(found)

    def noise(self, energy):
        return self.rng.standard_normal(self.size) * math.sqrt(energy / self.size)

    def honest(self, clients=None):
        rows = {}
        for client in clients or self.clients:
            _, progress, noise = self.methods[self.clients[client]]
            rows[client] = progress * (self.truth + self.noise(self.between)) + self.noise(noise)
        return rows

    def merge(self, rows, *, weights=None, claims=None, spec=None, tensors=None, claimed=()):
        spec = spec or flat(self.size)
        weights = dict.fromkeys(rows, 1) | (weights or {})
        plan = MergePlan(
            spec,
            weights,
            2.0**14,
            tensors=tensors or {},
            noise=self.known,
            groups={client: self.clients[client] for client in rows},
            claimed=frozenset(claimed),
        )
        rule = MeanAggregator()
        acc = rule.init(plan)
        for client, row in rows.items():
            delta = AdapterState.from_vector(spec, torch.from_numpy(np.float32(row)))
            noise = (claims or {}).get(client, self.methods[self.clients[client]][2])
            acc = rule.add(acc, Update(client, 1, delta, 1, noise=noise))
        merged = rule.finalize(acc)
        self.known = merged.noise
        self.step = merged.delta.vector().double().numpy()
        self.plain = sum(weights[c] * row for c, row in rows.items()) / sum(weights.values())
        return merged

    def errors(self):
        return np.sum((self.step - self.truth) ** 2), np.sum((self.plain - self.truth) ** 2)


@pytest.mark.parametrize(("weight", "length"), [(1, 100), (2, 100), (3, 100), (3, 1000)])
def test_one_client_of_any_weight_cannot_make_its_method_the_measure(weight, length):
    rounds = Rounds(0, {"fwd": (10, 1.0, 1.0), "bp": (10, 1.0, 0.0)})
    bad = rounds.unit()
    for _ in range(6):
        merged = rounds.merge(rounds.honest() | {"fwd0": length * bad}, weights={"fwd0": weight})
        assert merged.report["progress_bp"] > 0.9
        assert np.linalg.norm(rounds.step) <= 1.05 * max(np.linalg.norm(rounds.plain), 1)


@pytest.mark.parametrize("length", [100, 1000])
def test_no_claim_of_a_light_client_makes_the_others_slow(length):
    rounds = Rounds(0, {"mezo": (2, 1.0, 0.5), "bp": (6, 1.0, 0.0)}, between=0.5)
    weights = dict.fromkeys(rounds.clients, 100) | {"mezo0": 1}
    for _ in range(8):
        row = length * (rounds.truth + rounds.unit())
        merged = rounds.merge(rounds.honest() | {"mezo0": row}, weights=weights, claims={"mezo0": 2.0**59})
        assert merged.report["progress_bp"] > 0.9
    assert np.linalg.norm(rounds.step) < 1.5


@pytest.mark.parametrize("length", [3, 10, 100])
def test_two_that_agree_do_not_take_the_round(length):
    """A tenth of the weight, in a method of their own, all alike: no more than a tenth of the mean."""
    rounds = Rounds(0, {"own": (2, 1.0, 0.0), "bp": (10, 1.0, 0.0), "fwd": (8, 1.0, 4.0)})
    bad = rounds.unit()
    for _ in range(6):
        merged = rounds.merge(rounds.honest() | dict.fromkeys(("own0", "own1"), length * bad))
        assert merged.report["progress_bp"] > 0.8
        assert rounds.step @ bad <= 1.3 * (rounds.plain @ bad)


def test_who_made_no_progress_and_then_bursts_is_held_to_a_usual_length():
    rounds = Rounds(0, {"bp": (3, 1.0, 0.0), "fwd": (8, 1.0, 8.0), "own": (4, 0.01, 0.0)}, between=0.25)
    for _ in range(7):
        rounds.merge(rounds.honest())
    rows, bad = rounds.honest(), rounds.unit()
    merged = rounds.merge(rows | {f"own{i}": 5 * bad for i in range(4)})
    assert merged.report["progress_own"] < 0.05
    assert merged.report["shortened"] < 1
    usual = np.median([np.linalg.norm(rows[f"bp{i}"]) for i in range(3)])
    assert np.linalg.norm(rounds.step) == pytest.approx(usual, rel=0.1)


@pytest.mark.parametrize(("cohort", "within"), [(23, 0.03), (8, 0.1)])
def test_progress_is_on_one_scale_though_another_method_measures_in_each_round(cohort, within):
    """True: 1, 0.4, 0.05, h = 0.25; of 3, 10 and 10 clients some are in. 400 rounds, of which 50 teach."""
    rounds = Rounds(1, {"bp": (3, 1.0, 0.0), "fwd": (10, 0.4, 2.0), "slow": (10, 0.05, 0.05)}, between=0.25)
    found, lengths, ours, alone = [], [], [], []
    for number in range(400):
        chosen = sorted(rounds.rng.choice(sorted(rounds.clients), cohort, replace=False))
        rows = rounds.honest(chosen)
        rounds.merge(rows)
        if number < 50 or rounds.known is None or not any(c.startswith("bp") for c in chosen):
            continue
        found.append([rounds.known.progress.get(m, 1.0) for m in rounds.methods] + [rounds.known.between])
        lengths.append(rounds.step @ rounds.truth)
        ours.append(rounds.errors()[0])
        best = np.mean([row for c, row in rows.items() if c.startswith("bp")], axis=0)
        alone.append(np.sum((best - rounds.truth) ** 2))
    bp, fwd, slow, between = np.mean(found, axis=0)
    assert (bp, fwd, slow) == pytest.approx((1.0, 0.4, 0.05), abs=within)
    assert 0.15 < between < 0.35
    assert np.mean(lengths) == pytest.approx(1.0, abs=within)
    assert np.mean(ours) < 1.05 * np.mean(alone)


def test_a_round_of_one_method_tells_nothing():
    rounds = Rounds(2, {"bp": (4, 1.0, 0.0), "slow": (6, 0.05, 0.002)})
    for _ in range(4):
        rounds.merge(rounds.honest())
    before = rounds.known
    plan = MergePlan(
        flat(SIZE), dict.fromkeys(rounds.clients, 1), 2.0**14, noise=before, groups=rounds.clients
    )
    rule = MeanAggregator()
    acc = rule.init(plan)
    for client, row in rounds.honest().items():
        if client.startswith("slow"):
            delta = AdapterState.from_vector(flat(SIZE), torch.from_numpy(np.float32(row)))
            acc = rule.add(acc, Update(client, 1, delta, 1, noise=0.002))
    assert rule.finalize(acc).noise == before


@pytest.mark.parametrize("measured", [False, True])
def test_where_every_value_has_one_trainer_rounding_is_no_evidence(measured):
    """Six clients train a layer each, with noise 1: what they leave of a value's weight is 0 or 1e-16."""
    spec = StateSpec.of([TensorSpec(f"layer.{i}.x", (100,), "head") for i in range(6)])
    tensors = {f"spry{i}": (f"layer.{i}.x",) for i in range(6)}
    found = []
    for seed in range(60):
        rounds = Rounds(seed, {"spry": (6, 1.0, 1.0), "bp": (2 if measured else 1, 1.0, 0.0)}, size=600)
        weights = {client: int(rounds.rng.integers(1, 400)) for client in rounds.clients}
        if measured:
            weights |= {"bp0": 900, "bp1": 900}
        rows = rounds.honest()
        for i in range(6):
            mask = np.zeros(600)
            mask[100 * i : 100 * i + 100] = 1
            rows[f"spry{i}"] *= mask
        claims = dict.fromkeys(tensors, 1 / 6)
        told = rounds.merge(rows, weights=weights, claims=claims, spec=spec, tensors=tensors).noise
        if told is not None:
            found.append([told.between, told.noises["spry"]])
    if measured:
        assert len(found) == 60
    assert np.max(found) < 10


@pytest.mark.parametrize("length", [1, 10])
def test_where_nobody_can_measure_a_claim_is_held_against_what_arrives(length):
    """19 of 20 clients say what noise they have; one, alone in its method, claims none."""
    rounds = Rounds(0, {"mezo": (10, 1.0, 200.0), "fwd": (9, 1.0, 100.0), "own": (1, 1.0, 100.0)}, size=2000)
    for _ in range(8):
        rows = rounds.honest()
        rows["own0"] *= length
        merged = rounds.merge(rows, claims={"own0": 0.0}, claimed=["mezo", "fwd", "own"])
        assert merged.noise.progress == {}
    ours, plain = rounds.errors()
    assert ours < 1.1 * plain


@pytest.mark.parametrize(("who", "noise", "progress"), [("bp0", 20.0, 0.2), ("fwd0", 0.2, 1.0)])
def test_one_huge_update_is_forgotten_in_a_few_rounds(who, noise, progress):
    methods = {"bp": (5, 1.0, 0.0), "fwd": (10, progress, noise)}
    with_it, without = Rounds(3, methods), Rounds(3, methods)
    for number in range(12):
        without.merge(without.honest())
        rows = with_it.honest()
        if number == 4:
            rows[who] = 1000 * rows[who]
        with_it.merge(rows)
        if number == 5:
            assert with_it.errors()[0] < 4 * without.errors()[0]
    assert with_it.errors()[0] < 1.5 * without.errors()[0]


@pytest.mark.parametrize("shared", [True, False])
def test_noise_along_the_same_seeds_is_no_progress(shared):
    """Two methods of four clients, which get to 1 and 0.3, step along the same 96 seeds or their own."""
    size, steps, found = 64, 96, []
    for number in range(150):
        rng, truth = np.random.default_rng(number), np.random.default_rng(99).standard_normal(size) / 8
        count = steps if shared else 2 * steps
        plan = SeedPlan(number * count, count, "rademacher", 14, steps)
        family, rule = directions_of(plan, Key.root(1), size), MeanAggregator()
        z = np.stack([family.integers(plan.first + s) for s in range(count)]).astype(float)
        groups = {f"{m}{i}": m for m in ("long", "short") for i in range(4)}
        acc = rule.init(MergePlan(flat(size), dict.fromkeys(groups, 1), 64.0, plan, family, groups=groups))
        for client, method in groups.items():
            own = truth + rng.standard_normal(size) * math.sqrt(0.2 / size)
            own *= 1.0 if method == "long" else 0.3
            seeds = np.arange(steps) + (0 if shared or method == "long" else steps)
            q = np.rint(z[seeds] @ own / steps * 2.0**14).astype(np.int64)
            delta = SeedCoefficients.of(
                plan, list(zip((plan.first + seeds).tolist(), q.tolist(), strict=True))
            )
            acc = rule.add(acc, Update(client, 1, delta, 1, noise=delta.noise(size)))
        progress = rule.finalize(acc).noise.progress
        if progress:
            found.append(progress["short"] / progress["long"])
    assert len(found) > 50
    assert np.mean(found) == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("low", [1.0, 0.3])
def test_a_method_that_trains_a_part_is_measured_on_that_part(low):
    """Four of six layers, in which Δ may be weaker: it gets as far there as those who train all."""
    spec = StateSpec.of([TensorSpec(f"layer.{i}.x", (100,), "head") for i in range(6)])
    tensors = {f"part{i}": tuple(f"layer.{j}.x" for j in range(4)) for i in range(4)}
    found = []
    for seed in range(60):
        rounds = Rounds(seed, {"part": (4, 1.0, 0.0), "bp": (4, 1.0, 0.0)}, size=600)
        rounds.truth *= np.repeat([low] * 4 + [1.0, 1.0], 100)
        rounds.truth /= np.linalg.norm(rounds.truth)
        rows = rounds.honest()
        for client in tensors:
            rows[client][400:] = 0
        merged = rounds.merge(rows, spec=spec, tensors=tensors)
        if "part" in merged.noise.progress:
            found.append([merged.noise.progress["part"], merged.noise.noises["part"]])
    assert len(found) > 20
    progress, noise = np.mean(found, axis=0)
    assert progress > 0.85
    assert noise < 0.25


@pytest.mark.parametrize("factor", [1e-6, 0.3])
def test_one_clients_small_update_does_not_stop_the_round(factor):
    rounds = Rounds(0, {"bp": (8, 1.0, 0.0), "fwd": (1, 1.0, 0.0), "slow": (7, 0.1, 0.1)}, between=0.25)
    for _ in range(7):
        rounds.merge(rounds.honest())
    rows = rounds.honest()
    rows["fwd0"] *= factor
    rounds.merge(rows)
    assert rounds.step @ rounds.truth > 0.85


@pytest.mark.parametrize("length", [10, 100])
def test_a_burst_of_an_exact_client_among_noisy_ones_is_held_to_a_usual_length(length):
    rounds = Rounds(0, {"bp": (3, 1.0, 0.0), "own": (1, 1.0, 0.0), "mezo": (20, 1.0, 20.0)}, between=0.25)
    for _ in range(7):
        rounds.merge(rounds.honest())
    rows = rounds.honest()
    rows["own0"] = rows["own0"] + length * rounds.unit()
    rounds.merge(rows)
    assert np.linalg.norm(rounds.step) < 1.3


@pytest.mark.parametrize("length", [2, 5, 12])
def test_one_of_a_method_of_two_does_not_lengthen_the_step(length):
    """Two clients of sixteen are just enough to be the measure."""
    rounds = Rounds(0, {"bp": (14, 1.0, 0.0), "own": (2, 1.0, 0.0)}, between=0.25)
    for _ in range(10):
        rounds.merge(rounds.honest() | {"own0": length * rounds.truth})
        assert rounds.step @ rounds.truth < 1.25


@pytest.mark.parametrize(("clients", "between"), [(4, 1.0), (4, 4.0), (1, 1.0), (1, 4.0)])
def test_without_a_measure_how_far_clients_differ_is_on_the_scale_of_a_whole_step(clients, between):
    """Nothing but what is the clients' own, of methods that are known to get to 0.2 and 0.1. 100 rounds."""
    found = []
    for seed in range(100):
        rounds = Rounds(seed, {"a": (clients, 0.2, 0.01), "b": (clients, 0.1, 0.01)}, between, size=400)
        rounds.truth = np.zeros(400)
        rounds.known = known = NoisePlan(between, {"a": 0.01, "b": 0.01}, {"a": 0.2, "b": 0.1, "bp": 1.0})
        told = rounds.merge(rounds.honest()).noise
        found.append(2 * told.between - known.between)
    assert np.mean(found) == pytest.approx(between, rel=0.1)


def test_one_client_of_the_measure_does_not_make_all_clients_differ():
    """By moments alone its update would: then a method's noise would no longer matter."""
    rounds = Rounds(3, {"bp": (10, 1.0, 0.0), "fwd": (4, 0.4, 1.28)}, between=0.25)
    rows = rounds.honest()
    merged = rounds.merge(rows | {"bp0": 10 * rounds.unit()})
    usual = np.median([np.sum(rows[f"bp{i}"] ** 2) for i in range(10)])
    assert merged.report["progress_bp"] == 1  # it is the measure
    assert merged.report["between"] <= 1.2 * usual
    assert merged.report["weight_fwd"] < 0.6


def test_a_method_that_stands_still_takes_no_weight_from_the_others():
    """With one client by backprop nobody is the measure; two clients' updates are zeros."""
    ours = []
    for still in (0, 2):
        rounds = Rounds(0, {"bp": (1, 1.0, 0.0), "slow": (1, 0.05, 0.002), "still": (still, 0.0, 0.0)})
        for _ in range(10):
            merged = rounds.merge(rounds.honest(), claimed=["slow", "still"])
        assert merged.report["weight_bp"] > 0.5
        ours.append(rounds.errors()[0])
    assert ours[1] < 3 * ours[0]


def test_what_is_known_to_be_exact_is_not_held_for_noise():
    """One client by backprop beside a slow and noisy method, and nobody to measure by."""
    rounds = Rounds(0, {"bp": (1, 1.0, 0.0), "slow": (2, 0.05, 0.05)}, between=0.25)
    for _ in range(10):
        merged = rounds.merge(rounds.honest(), claimed=["slow"])
        assert merged.report["weight_bp"] == 1
    ours, plain = rounds.errors()
    assert ours < plain


def test_coefficients_that_cancel_do_not_make_a_method_noisy():
    """One of ten sends the combination of directions that is shortest: noise by its words, and nothing."""
    size, count, weights = 64, 256, []
    plan = SeedPlan(0, count, "rademacher", 14, count)
    family = directions_of(plan, Key.root(1), size)
    z = np.stack([family.integers(s) for s in range(count)]).astype(float)
    shortest = np.linalg.eigh(z @ z.T)[1][:, 0]
    cancelling = np.rint(shortest / np.abs(shortest).max() * 32767).astype(np.int64)
    groups = {f"kseed{i}": "kseed" for i in range(10)} | {f"bp{i}": "bp" for i in range(4)}
    for hostile in (False, True):
        rng, known = np.random.default_rng(0), None
        truth = rng.standard_normal(size) / math.sqrt(size)
        for _ in range(3):
            rule = MeanAggregator()
            merge_plan = MergePlan(
                flat(size), dict.fromkeys(groups, 1), 64.0, plan, family, groups=groups, noise=known
            )
            acc = rule.init(merge_plan)
            for client, method in groups.items():
                noise = 0.0
                if method == "bp":
                    delta = AdapterState.from_vector(flat(size), torch.from_numpy(np.float32(truth)))
                else:
                    seeds = rng.permutation(count)[: count // 2]
                    q = np.rint(z[seeds] @ truth / (count // 2) * 2.0**14).astype(np.int64)
                    if hostile and client == "kseed0":
                        seeds, q = np.arange(count), cancelling
                    delta = SeedCoefficients.of(plan, list(zip(seeds.tolist(), q.tolist(), strict=True)))
                    noise = delta.noise(size)
                acc = rule.add(acc, Update(client, 1, delta, 1, noise=noise))
            merged = rule.finalize(acc)
            known = merged.noise
        weights.append(merged.report["noise_kseed"])
    assert weights[1] < 15 * weights[0]  # were it in common to all ten: 10 times


def test_a_state_of_no_values_is_merged():
    plan = MergePlan(flat(0), {"a": 1, "b": 1}, 1.0, groups={"a": "m", "b": "n"})
    rule = MeanAggregator()
    acc = rule.init(plan)
    for client in "ab":
        acc = rule.add(acc, Update(client, 1, AdapterState.from_vector(flat(0), torch.zeros(0)), 1))
    assert rule.finalize(acc).noise is None


@pytest.mark.parametrize("large", [2**20 - 1, 2**20, 2**24])
def test_an_owner_of_one_row_beside_one_of_a_million(large):
    """Two clients of which one is all the weight do not tell how clients differ."""
    weights = {"a": 1, "b": large, "c": 1, "d": 1}
    plan = MergePlan(flat(3), weights, 4.0, groups={"a": "phone", "b": "phone", "c": "server", "d": "server"})
    rule = MeanAggregator()
    acc = rule.init(plan)
    for client, value in zip(weights, (0.5, 1.0, 1.0, 1.0), strict=True):
        delta = AdapterState.from_vector(flat(3), torch.tensor([value, 1.0, 0.25]))
        acc = rule.add(acc, Update(client, 1, delta, weights[client]))
    merged = rule.finalize(acc).delta.vector()
    assert merged.tolist() == pytest.approx([1.0, 1.0, 0.25], abs=1e-4)
