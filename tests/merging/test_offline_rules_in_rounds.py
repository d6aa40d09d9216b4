"""Rules of ``headwater merge`` in a federated round: their laws, what they give, and what they keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from headwater.config.settings import by_kind
from headwater.config.strategy import DistanceStrategy, RuleStrategy, Strategy
from headwater.errors import ConfigError, DecodeError, EmptyRound, UpdateRejected
from headwater.merging.accumulator_bytes import dump, load
from headwater.merging.aggregator import Aggregator
from headwater.merging.buffered_rule import BufferedRule
from headwater.merging.offline.rules.table import RULES as OFFLINE
from headwater.merging.plan import MergePlan, Update
from headwater.seeds.keys import Key
from headwater.state import StateSpec, TensorSpec
from headwater.strategies import FederatedStrategy
from headwater.strategies.rules import rule_for
from tests.laws.aggregator_laws import LAW, AggregatorLaws, bits, lora_spec, rounds, update_of
from tests.merging.offline import dense_oracles as dense
from tests.merging.offline import factor_oracles
from tests.merging.test_rules import F2
from tests.strategies.test_federated import federation

KINDS = sorted(
    kind
    for kind, cls in by_kind(Strategy).items()
    if issubclass(cls, RuleStrategy) or (issubclass(cls, DistanceStrategy) and cls.of_offline)
)
LOOSE = {
    "krum": {"faulty": 0}, "multi_krum": {"faulty": 0, "selected": 1}, "trimmed_mean": {"drop": 0},
    "consensus": {"agreement": 1}, "lore": {"iterations": 2},
}  # fmt: skip
"""Settings with which the laws' few clients, or one of them, can be merged."""


def rule(kind: str, seed: int = 0, **settings: Any) -> Aggregator[Any]:
    """The rule of a ``[strategy]`` table."""
    table = TypeAdapter(Strategy).validate_python({"kind": kind, **settings})
    return rule_for(table, Key.root(seed))


def fold(of: Aggregator[Any], plan: MergePlan, updates: Sequence[Update]) -> Any:
    """All passes but the last step."""
    acc: Any = of.init(plan)
    for update in updates:
        acc = of.add(acc, update)
    while (following := of.next_pass(acc)) is not None:
        acc = following
        for update in updates:
            acc = of.add(acc, update)
    return acc


SUMMED = [kind for kind in KINDS if not isinstance(rule(kind), BufferedRule)]
TWO = [kind for kind in SUMMED if rule(kind).passes == 2]


class TestLawsOfAllRules(AggregatorLaws):
    """A rule at a time. One of those that keep updates is enough: they differ in the last step alone."""

    kind = "sce"
    kinds: Sequence[str] = (*SUMMED, "knots")

    def rounds(self) -> Any:
        def choose(found: Any) -> Any:
            self.kind, drawn = found
            return drawn

        return st.tuples(st.sampled_from(self.kinds), rounds()).map(choose)

    def rule(self, spec: StateSpec) -> Any:
        return rule(self.kind, **LOOSE.get(self.kind, {}))

    def fold(self, rule: Any, plan: MergePlan, updates: Sequence[Update]) -> Any:
        self.seen = {**getattr(self, "seen", {}), **{update.client: update for update in updates}}
        return super().fold(rule, plan, updates)

    def finish(self, rule: Any, acc: Any) -> Any:
        following = rule.next_pass(acc)
        if following is not None:
            for client in acc.participants.clients:
                following = rule.add(following, self.seen[client])
            acc = following
        return rule.finalize(acc)

    def test_a_million_values_with_exact_ties(self) -> None:
        """A hundredth of them, and every rule."""
        spec, rng = lora_spec(500, 750, 8), np.random.default_rng(5)
        plan = MergePlan(spec, {"a": 3, "b": 1, "c": 2, "d": 1}, 4.0)
        updates = [
            update_of(spec, name, np.round(rng.normal(size=spec.numel).clip(-4, 4) * 2) / 2)
            for name in plan.weights
        ]
        for kind in KINDS:
            of = rule(kind, **LOOSE.get(kind, {}))
            forward = self.fold(of, plan, updates)
            tree = of.combine(self.fold(of, plan, updates[2:][::-1]), self.fold(of, plan, updates[:2][::-1]))
            assert bits(forward) == bits(tree)
            assert bits(self.finish(of, forward)) == bits(self.finish(of, tree))


def test_sums_of_a_liar_that_no_updates_add_up_to_are_refused() -> None:
    plan = MergePlan(ONE, {"a": 2, "b": 1}, 1.0)

    def refused(kind: str, number: str, change: Callable[[Any], None]) -> None:
        of = rule(kind, **LOOSE.get(kind, {}))
        acc = of.add(of.init(plan), update_of(ONE, "a", np.full(30, 0.25)))
        assert bits(load(of, plan, dump(of, acc))) == bits(acc)
        change(acc.sums[number])
        with pytest.raises(DecodeError):
            load(of, plan, dump(of, acc))

    for kind in SUMMED:
        refused(kind, "0", lambda total: total.fill_(2**61))
    for kind in ("magmax", "dare_ties", "breadcrumbs_ties"):
        refused(kind, "1", lambda total: total.fill_(-1))
    refused("dare_ties", "2", lambda count: count.zero_())  # a sum of nobody
    refused("dare_ties", "3", lambda count: count.fill_(2**53))
    refused("sce", "1", lambda squares: squares.zero_())
    refused("sce", "1 rest", lambda rest: rest.fill_(2**61))
    refused("model_stock", "2", lambda moved: moved.zero_())
    of = rule("sce")
    acc = of.add(of.init(plan), update_of(ONE, "a", np.full(30, 0.25)))
    acc.first["0"] = torch.zeros(30, dtype=torch.int64)
    with pytest.raises(DecodeError):
        load(of, plan, dump(of, acc))


@settings(LAW, max_examples=12)
@given(rounds(), st.sampled_from(TWO), st.randoms(use_true_random=False))
def test_the_second_pass_is_a_sum_as_well(found: Any, kind: str, random: Any) -> None:
    plan, updates = found
    of = rule(kind, **LOOSE.get(kind, {}))

    def sum_of(group: Sequence[Update]) -> Any:
        acc: Any = of.init(plan)
        for update in updates:
            acc = of.add(acc, update)
        acc = of.next_pass(acc)
        for update in group:
            acc = of.add(acc, update)
        return acc

    whole = bits(sum_of(updates))
    cut, shuffled = random.randint(0, len(updates)), random.sample(updates, len(updates))
    assert bits(of.combine(sum_of(shuffled[:cut]), sum_of(shuffled[cut:]))) == whole
    assert bits(of.combine(sum_of(shuffled[cut:]), sum_of(shuffled[:cut]))) == whole
    with pytest.raises(UpdateRejected, match=updates[0].client):
        of.add(sum_of(updates), updates[0])
    with pytest.raises((UpdateRejected, EmptyRound), match=f"both passes of {kind}|{kind}"):
        of.finalize(sum_of(updates[1:]))


def test_there_are_those_kinds() -> None:
    assert len(KINDS) == 23
    assert TWO == ["consensus", "pcb", "sce"]
    assert [kind for kind in SUMMED if not rule(kind).additive] == ["magmax"]
    assert not any(rule(kind).additive for kind in set(KINDS) - set(SUMMED))
    assert sorted(set(KINDS) - set(SUMMED)) == [
        "geometric_median", "iso_cts", "knots", "krum", "lore", "multi_krum", "trimmed_mean", "tsv_m", "twin",
    ]  # fmt: skip


# --- what they give ---

ONE = StateSpec.of([TensorSpec("w", (6, 5), "vector")])


def of_round(kind: str, taus: Sequence[Any], weights: Sequence[int] | None = None, **settings: Any) -> Any:
    """What a round makes of these updates, in their shape."""
    shape = np.shape(taus[0])
    spec = StateSpec.of([TensorSpec("w", shape, "vector")])
    names = [f"c{i}" for i in range(len(taus))]
    plan = MergePlan(spec, dict(zip(names, weights or [1] * len(names), strict=True)), 16.0)
    of = rule(kind, **settings)
    updates = [update_of(spec, name, np.ravel(tau)) for name, tau in zip(names, taus, strict=True)]
    return of.finalize(fold(of, plan, updates)).delta["w"].numpy().astype(np.float64)


def taus(count: int, scale: float = 1.0) -> list[Any]:
    rng = np.random.default_rng(count)
    common = rng.normal(size=(6, 5))
    return [np.float32((common + rng.normal(size=(6, 5))) * scale).astype(np.float64) for _ in range(count)]


def krum(points: Sequence[Any]) -> Any:
    return points[int(np.argmin(dense.krum_scores(points, 1)))]


def multi_krum(points: Sequence[Any]) -> Any:
    best = np.argsort(dense.krum_scores(points, 1), kind="stable")[: len(points) - 1]
    return np.mean([points[i] for i in best], axis=0)


FIFTHS = [0.2] * 5
ORACLES: dict[str, tuple[dict[str, Any], Any]] = {
    "magnitude_prune": ({"density": 0.3}, lambda t: np.mean([dense.trimmed(x, 0.3) for x in t], axis=0)),
    "dare_ties": ({"density": 1.0}, lambda t: dense.elected(t, FIFTHS)),
    "dare_linear": ({"density": 1.0}, lambda t: np.mean(t, axis=0)),
    "della": ({"density": 1.0, "epsilon": 0.0}, lambda t: dense.elected(t, FIFTHS)),
    "della_linear": ({"density": 1.0, "epsilon": 0.0}, lambda t: np.mean(t, axis=0)),
    "breadcrumbs": (
        {"density": 0.4, "gamma": 0.1}, lambda t: np.mean([dense.sifted(x, 0.4, 0.1) for x in t], axis=0),
    ),
    "breadcrumbs_ties": (
        {"density": 0.4, "gamma": 0.1},
        lambda t: dense.elected([dense.sifted(x, 0.4, 0.1) for x in t], FIFTHS),
    ),
    "magmax": ({}, lambda t: np.take_along_axis(np.stack(t), np.abs(t).argmax(axis=0)[None], axis=0)[0]),
    "model_stock": ({}, lambda t: dense.model_stock(t, FIFTHS)),
    "iso_c": ({}, lambda t: dense.iso_c(t, 5) / 5),
    "one_bit": ({}, lambda t: np.mean([np.abs(x).mean() * np.sign(x) for x in t], axis=0)),
    "twin": ({"exclusive": 0.4}, lambda t: factor_oracles.twin(t, FIFTHS, 0.4)),
    "sce": ({"density": 0.4}, lambda t: dense.sce(t, 0.4)),
    "pcb": ({"density": 0.4}, lambda t: dense.pcb(t, 0.4)),
    "consensus": ({"strictness": 0.3}, lambda t: dense.consensus(t, 0.3, 2)),
    "trimmed_mean": ({}, lambda t: np.mean(np.sort(t, axis=0)[1:-1], axis=0)),
    "krum": ({}, krum),
    "multi_krum": ({}, multi_krum),
    "geometric_median": ({}, lambda t: dense.geometric_median(t, FIFTHS)),
    "tsv_m": ({}, lambda t: dense.tsv_m(t, [1] * 5) / 5),
    "iso_cts": ({"common": 0.6}, lambda t: dense.iso_cts(t, 0.6) / 5),
    "lore": ({"threshold": 0.5, "amplify": 0.4}, lambda t: dense.lore(t, 0.5, 0.4, 10)),
}  # fmt: skip


CASES = [
    (kind, scale) for kind in ORACLES for scale in (1.0, 1e-4) if scale == 1 or kind not in ("pcb", "lore")
]
"""Small as updates of a round are; but PCB and LoRE have scales of their own."""


@pytest.mark.parametrize(("kind", "scale"), CASES)
def test_a_round_gives_what_the_paper_says(kind: str, scale: float) -> None:
    settings, oracle = ORACLES[kind]
    got = of_round(kind, taus(5, scale), **settings)
    np.testing.assert_allclose(got, oracle(taus(5, scale)), atol=2e-6 * scale)


def test_knots_is_ties_in_the_common_left_singular_vectors() -> None:
    made = taus(3)
    left = np.linalg.svd(np.concatenate(made, axis=1), full_matrices=False)[0]
    turned = [dense.trimmed(left.T @ tau, 0.3) for tau in made]
    expected = left @ dense.elected(turned, [1 / 3] * 3)
    np.testing.assert_allclose(of_round("knots", made, density=0.3), expected, atol=2e-6)


def test_golden_f2_with_breadcrumbs_that_drop_no_outlier() -> None:
    settings = {"density": 0.5, "gamma": 0.0}
    got = of_round("breadcrumbs_ties", F2, **settings)
    assert got.tolist() == pytest.approx([0.85, -0.7, 0, 0.8, 0.55, 0], abs=1e-7)
    got = of_round("breadcrumbs_ties", F2, [5, 3, 2], **settings)
    assert got.tolist() == pytest.approx([0.9142857143, -0.6142857143, 0, 0.8, 0.5714285714, 0], abs=1e-7)


def test_golden_f2b() -> None:
    got = of_round("sce", [row[:4] for row in F2], density=0.5)
    assert got.tolist() == pytest.approx([0.8470588235, -0.7039215686, 0, 0], abs=1e-7)


def test_golden_f6_the_mean_and_the_variance_of_dare() -> None:
    got = of_round("dare_linear", [np.tile([2.0, -4.0, 6.0], 3000)], density=0.5).reshape(-1, 3)
    np.testing.assert_allclose(got.mean(axis=0), [2, -4, 6], rtol=0.08)
    np.testing.assert_allclose(got.var(axis=0), [4, 16, 36], rtol=0.08)
    assert {tuple(row) for row in got} == {(a, b, c) for a in (0, 4) for b in (0, -8) for c in (0, 12)}


def test_golden_f13() -> None:
    points = [[1.0, 1.0], [1.1, 0.9], [0.9, 1.2], [1.0, 1.05], [10.0, -10.0]]
    assert of_round("krum", points).tolist() == [1.0, 1.0]
    points[3] = [1.0, 1.1]
    assert of_round("trimmed_mean", points).tolist() == pytest.approx([1.0333333, 1.0], abs=1e-6)


def test_draws_are_of_the_client_the_round_the_tensor_and_the_seed() -> None:
    spec = StateSpec.of([TensorSpec("a", (200,), "vector"), TensorSpec("b", (200,), "vector")])
    plan = MergePlan(spec, {"x": 1, "y": 1}, 16.0)

    def kept(client: str = "x", number: int = 1, seed: int = 0) -> Any:
        of = rule("dare_linear", seed=seed)
        update = dataclasses.replace(update_of(spec, client, np.ones(400)), round=number)
        return of.finalize(of.add(of.init(plan), update)).delta.vector().numpy() != 0

    first = kept()
    assert (first == kept()).all()
    for other in (kept("y"), kept(number=2), kept(seed=1), np.roll(first, 200)):
        assert 100 < (first != other).sum() < 300


def test_what_varies_is_found_among_values_that_are_all_the_same() -> None:
    """Fixed point must not make noise of a variance that is zero: 1e-7 of a value is seen, 0 is not."""
    same = np.full(64, 0.0123, np.float32)
    other = same.copy()
    other[7] += np.float32(1e-6)
    got = of_round("sce", [same, other, same], density=1.0)
    np.testing.assert_allclose(got, (same + (other - same) / 3), rtol=1e-5)
    got = of_round("sce", [same, other, same], density=0.1)
    assert np.flatnonzero(got).tolist() == [7]


def test_hostile_updates_move_neither_krum_nor_the_trimmed_mean_nor_the_geometric_median() -> None:
    made = [*taus(4), np.full((6, 5), 16.0)]
    honest = np.stack(made[:4])
    for kind in ("krum", "multi_krum", "trimmed_mean", "geometric_median"):
        got = of_round(kind, made)
        assert (got >= honest.min(axis=0) - 1.0).all(), kind
        assert (got <= honest.max(axis=0) + 1.0).all(), kind
    assert np.abs(of_round("magmax", made)).min() == 16.0  # the largest decides


# --- what a file may say ---


@pytest.mark.parametrize(
    ("strategy", "fewest"),
    [
        ({"kind": "krum"}, 5),
        ({"kind": "krum", "faulty": 2}, 7),
        ({"kind": "multi_krum", "faulty": 0, "selected": 9}, 9),
        ({"kind": "trimmed_mean", "drop": 2}, 5),
        ({"kind": "consensus"}, 2),
    ],
)
def test_a_cohort_that_may_be_too_small_for_the_rule_is_refused(strategy: Any, fewest: int) -> None:
    with pytest.raises(ValueError, match=f"cohort.min_clients = {fewest}"):
        federation(strategy=strategy, cohort={"min_clients": fewest - 1})
    assert federation(strategy=strategy, cohort={"min_clients": fewest}).strategy.fewest == fewest


def test_rules_without_weights_refuse_them_and_rules_with_a_range_hold_it() -> None:
    with pytest.raises(ValueError, match="equal"):
        federation(strategy={"kind": "magmax", "weighting": "examples"})
    with pytest.raises(ValueError, match="probabilities"):
        federation(strategy={"kind": "della", "density": 1.0})
    with pytest.raises(ValueError, match="allow_factors"):
        federation(strategy={"kind": "sce", "space": "factors"})


def test_a_strategy_has_the_settings_of_its_rule() -> None:
    """Name, default, range and words stand in one class."""
    for kind in KINDS:
        table, own = by_kind(Strategy)[kind].model_fields, OFFLINE[kind].model_fields
        assert own.keys() <= table.keys(), kind
        for name, field in own.items():
            assert (table[name].default, table[name].description) == (field.default, field.description)
            assert repr(table[name].metadata) == repr(field.metadata)


def test_two_passes_keep_updates_only_where_nothing_spools_them() -> None:
    strategy = FederatedStrategy(federation(strategy={"kind": "sce"}))
    assert strategy.kept_bytes(ONE, 10, spooled=True) is None
    assert strategy.kept_bytes(ONE, 10) == 10 * ONE.nbytes
    kept = rule("krum", faulty=0, max_kept_mb=1)
    with pytest.raises(ConfigError, match="strategy 'krum'"):
        kept.require_room(ONE, 2**20)
