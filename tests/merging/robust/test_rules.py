"""Trimmed mean, Krum, the geometric median and FLTrust in rounds: golden F13, dense oracles, liars."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from headwater.config.strategy import Strategy
from headwater.errors import ConfigError, UpdateRejected
from headwater.merging.aggregator import Aggregator, Merged
from headwater.merging.coverage import covered_by
from headwater.merging.pairs import factors
from headwater.merging.plan import MergePlan, Update
from headwater.merging.robust.fltrust import trust_scores
from headwater.merging.robust.inner_products import of_products, of_values
from headwater.merging.robust.weiszfeld import WeiszfeldAggregator
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.strategies.rules import rule_for, rule_in_round
from tests.laws.aggregator_laws import LAW, lora_spec, mixed_rounds, state_of, update_of
from tests.merging.offline import dense_oracles as dense

F13 = [[1.0, 1.0], [1.1, 0.9], [0.9, 1.2], [1.0, 1.05], [10.0, -10.0]]
WITH_ROW_4 = [*F13[:3], [1.0, 1.1], F13[4]]


def rule(kind: str, base: AdapterState | None = None, **settings: Any) -> Aggregator[Any]:
    """The rule of a ``[strategy]`` table."""
    table = TypeAdapter(Strategy).validate_python({"kind": kind, **settings})
    return rule_for(table) if base is None else rule_in_round(table, base, Key.root(0))


def merge(of: Aggregator[Any], plan: MergePlan, updates: Sequence[Update]) -> Merged:
    """All passes."""
    acc = of.init(plan)
    for update in updates:
        acc = of.add(acc, update)
    while (following := of.next_pass(acc)) is not None:
        acc = following
        for update in reversed(updates):
            acc = of.add(acc, update)
    return of.finalize(acc)


def of_rows(of: Aggregator[Any], rows: Any, weights: Sequence[int] | None = None) -> Any:
    """What becomes of plain vectors."""
    rows = np.asarray(rows, np.float64)
    spec = StateSpec.of([TensorSpec("w", (rows.shape[1],), "vector")])
    names = [f"c{i}" for i in range(len(rows))]
    plan = MergePlan(spec, dict(zip(names, weights or [1] * len(rows), strict=True)), 65536.0)
    updates = [update_of(spec, name, row) for name, row in zip(names, rows, strict=True)]
    return merge(of, plan, updates).delta.vector().numpy().astype(np.float64)


# --- golden F13 ---


def test_golden_f13_trimmed_mean_median_and_krum() -> None:
    assert of_rows(rule("trimmed_mean"), WITH_ROW_4).tolist() == pytest.approx([1.0333333, 1.0], abs=1e-6)
    assert of_rows(rule("median"), WITH_ROW_4).tolist() == pytest.approx([1.0, 1.0], abs=1e-7)
    assert of_rows(rule("krum"), F13).tolist() == [1.0, 1.0]
    from headwater.merging.offline.rules.krum import Krum

    points = np.array(F13)
    scores = Krum(faulty=1).scores(points @ points.T)
    assert scores.tolist() == pytest.approx([0.0225, 0.0525, 0.0825, 0.035, 400.02], abs=1e-9)


def test_golden_f13_trust_scores() -> None:
    points, root = np.array(WITH_ROW_4), np.array([1.0, 1.0])
    scores = trust_scores(points @ root, np.linalg.norm(points, axis=1), float(np.linalg.norm(root)))
    assert scores.tolist() == pytest.approx([1, 0.99503719, 0.98994949, 0.99886814, 0], abs=1e-8)


# --- FLTrust ---


def fltrust(rows: Any, root: Any) -> Any:
    """Cao et al. 2021, equation 4, one client after the other."""
    total, trust = np.zeros(len(root)), 0.0
    for row in rows:
        score = max(0.0, float(row @ root) / (np.linalg.norm(row) * np.linalg.norm(root)))
        total, trust = total + score * row * np.linalg.norm(root) / np.linalg.norm(row), trust + score
    return total / trust if trust else total


def test_fltrust_is_its_equation_with_the_mean_of_the_trusted_as_the_root() -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(7, 12)) + 0.5
    got = of_rows(rule("fltrust", trusted=["c2", "c5"]), rows)
    others = np.delete(np.float64(np.float32(rows)), [2, 5], axis=0)
    expected = fltrust(others, np.float64(np.float32(rows))[[2, 5]].mean(axis=0))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_fltrust_gives_nobody_a_longer_update_than_the_trusted_ones_and_none_the_other_way() -> None:
    root = [1.0, 0.0, 0.0]
    liars = [[500.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [-300.0, 2.0, 2.0]]
    got = of_rows(rule("fltrust", trusted=["c0"]), [root, *liars])
    assert got.tolist() == pytest.approx([1.0, 0.002, 0.0], abs=1e-4)  # the first alone, cut to length 1
    for rows in ([root, [-1.0, 0, 0], [-2.0, 0, 0]], [[0.0, 0, 0], [1.0, 0, 0]]):
        assert of_rows(rule("fltrust", trusted=["c0"]), rows).tolist() == [0, 0, 0]
    assert of_rows(rule("fltrust", trusted=["away"]), [root, root]).tolist() == [0, 0, 0]


def test_fltrust_needs_somebody_to_trust() -> None:
    with pytest.raises(ValidationError, match="trusted"):
        rule("fltrust", trusted=[])


# --- the geometric median in passes ---


@settings(LAW, max_examples=30)
@given(st.integers(0, 2**32), st.integers(3, 9), st.sampled_from([1e-4, 1.0, 100.0]))
def test_passes_come_to_the_geometric_median(seed: int, clients: int, scale: float) -> None:
    """It has the smallest sum of distances: no step of 2 % of their spread makes that smaller."""
    rng = np.random.default_rng(seed)
    rows = np.float64(np.float32(scale * (rng.normal(size=(clients, 6)) + 1)))
    weights = rng.integers(1, 5, clients)
    got = of_rows(rule("geometric_median", passes=60), rows, weights.tolist())

    def distances(point: Any) -> float:
        return float(weights @ np.linalg.norm(rows - point, axis=1))

    for _ in range(40):
        way = rng.normal(size=6)
        assert distances(got) <= distances(got + 0.02 * scale * way / np.linalg.norm(way)) * (1 + 1e-6)


def test_four_passes_are_near_the_kept_one_and_huge_updates_do_not_matter() -> None:
    rng = np.random.default_rng(8)
    honest = rng.normal(size=(16, 30)) * 0.1 + 1
    for liars in (np.full((4, 30), -5.0), np.full((4, 30), 60000.0)):
        rows = np.concatenate([honest, liars])
        few, kept = (of_rows(rule("geometric_median", **how), rows) for how in ({"passes": 4}, {}))
        middle = honest.mean(axis=0)
        assert np.linalg.norm(few - middle) < 0.15 * np.linalg.norm(middle)
        assert np.linalg.norm(kept - middle) < 0.15 * np.linalg.norm(middle)
        assert np.linalg.norm(rows.mean(axis=0) - middle) > np.linalg.norm(middle)  # the mean moves


@pytest.mark.parametrize("passes", [1, 2, 4, 16])
@pytest.mark.parametrize("length", [0.0, 1e-9, 1e-4, 1e3])
def test_no_few_updates_of_another_length_move_it_far(passes: int, length: float) -> None:
    """Of a harmonic mean of lengths one that is almost 0 made the steps short, and 0 their place."""
    rng = np.random.default_rng(0)
    honest = 0.1 * (np.eye(64)[0] + rng.normal(size=(9, 64)) / 16)
    rows = np.concatenate([honest, [length * np.eye(64)[0]]])
    middle = honest.mean(axis=0)
    got = of_rows(rule("geometric_median", passes=passes), rows) @ middle / (middle @ middle)
    assert 0.75 < got < 1.25


def test_one_pass_is_a_mean_of_directions_times_the_median_length() -> None:
    rows = np.array([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
    units, length = np.array([[0.6, 0.8], [0, 1], [0, 0]]), 2.0 ** (1 + 1 / 8)  # the middle of 2's bin
    got = of_rows(rule("geometric_median", passes=1), rows)
    np.testing.assert_allclose(got, length * units.sum(axis=0) / 3, rtol=1e-6)
    assert of_rows(rule("geometric_median", passes=9), np.zeros((3, 2))).tolist() == [0.0, 0.0]


def test_every_update_must_come_again_in_every_pass() -> None:
    spec = lora_spec(3, 2, 2)
    plan = MergePlan(spec, {"a": 1, "b": 1, "late": 1}, 4.0)
    of = WeiszfeldAggregator(3, 1e-6)
    acc = of.init(plan)
    for client in ("a", "b"):
        acc = of.add(acc, update_of(spec, client, np.ones(spec.numel)))
    following = of.next_pass(acc)
    assert following is not None
    following = of.add(following, update_of(spec, "a", np.ones(spec.numel)))
    with pytest.raises(UpdateRejected, match="client b"):
        of.next_pass(following)
    with pytest.raises(UpdateRejected, match="client late"):
        of.add(following, update_of(spec, "late", np.ones(spec.numel)))


@pytest.mark.parametrize("wrong", [{"space": "product"}, {"smoothing": 1e-9}, {"passes": 0}])
def test_settings_of_passes_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="pass"):
        rule("geometric_median", **{"passes": 4, **wrong})


# --- products ---

WIDE = lora_spec(9, 7, 3, head=4)
NAMES = tuple(f"c{i}" for i in range(6))


def products(base: AdapterState, delta: AdapterState) -> Any:
    """s·(B_i·A_i − B·A) and the head, as one vector, by dense matrices."""
    b = base.spec.by_name["q.lora_B"]
    (up, down), (new_up, new_down) = factors(base, b), factors(base + delta, b)
    change = b.scaling * (new_up @ new_down - up @ down)
    return np.concatenate([change.numpy().ravel(), delta["head"].double().numpy().ravel()])


def cohort(
    ranks: dict[str, int] | None = None, seed: int = 4
) -> tuple[AdapterState, MergePlan, list[Update]]:
    """A base and updates that have something in common; the last one lies."""
    rng, spec = np.random.default_rng(seed), WIDE
    base = state_of(spec, 0.3 * rng.normal(size=spec.numel))
    plan = MergePlan(spec, dict.fromkeys(NAMES, 1), 16.0, ranks=ranks or {})
    common, updates = rng.normal(size=spec.numel), []
    for name in NAMES:
        delta = state_of(spec, 0.05 * (common + 0.5 * rng.normal(size=spec.numel)))
        if name == NAMES[-1]:
            delta = state_of(spec, -20 * delta.vector().numpy())
        mask = covered_by(plan, name)
        if mask is not None:
            delta = AdapterState.from_vector(spec, torch.where(mask, delta.vector(), 0.0))
        updates.append(Update(name, 1, delta, examples=1))
    return base, plan, updates


def deltas_of(updates: Sequence[Update]) -> list[AdapterState]:
    return [u.delta for u in updates if isinstance(u.delta, AdapterState)]


def test_inner_products_are_those_of_dense_matrices() -> None:
    base, _, updates = cohort()
    vectors = np.stack([products(base, delta) for delta in deltas_of(updates)])
    np.testing.assert_allclose(
        of_products(base, deltas_of(updates)), vectors @ vectors.T, rtol=1e-5, atol=1e-9
    )
    rows = [delta.vector() for delta in deltas_of(updates)]
    plain = np.stack([row.double().numpy() for row in rows])
    np.testing.assert_allclose(of_values(rows), plain @ plain.T, rtol=1e-12)


def test_inner_products_of_experts_are_those_of_each_expert() -> None:
    tensors = [
        TensorSpec("q.lora_A", (6, 5), "lora_a"),
        TensorSpec("q.lora_B", (4, 6), "lora_b", pair="q.lora_A", scaling=2.0, experts=3),
    ]
    spec, rng = StateSpec.of(tensors), np.random.default_rng(1)
    base, *deltas = (state_of(spec, rng.normal(size=spec.numel)) for _ in range(4))
    vectors = []
    for delta in deltas:
        b = spec.by_name["q.lora_B"]
        (up, down), (new_up, new_down) = factors(base, b), factors(base + delta, b)
        vectors.append(2.0 * (new_up @ new_down - up @ down).numpy().ravel())
    stack = np.stack(vectors)
    np.testing.assert_allclose(of_products(base, deltas), stack @ stack.T, rtol=1e-5)


def test_another_basis_of_the_same_weights_changes_no_choice_of_krum() -> None:
    """Of factors it does: the client with the turned basis is then the furthest."""
    base, plan, updates = cohort()
    b = base.spec.by_name["q.lora_B"]
    turn = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
    chosen = {}
    for space in ("product", "factors"):
        for turned in (False, True):
            some = list(updates)
            if turned:  # B·Mᵀ, M·A of the trained state: the same weight
                state = base + some[1].delta  # type: ignore[operator]  # values, as made above
                values = {**state, b.name: state[b.name] @ turn.T, b.pair: turn @ state[b.pair]}
                delta = AdapterState(base.spec, {n: values[n] - base[n] for n in values})
                some[1] = dataclasses.replace(some[1], delta=delta)
            of = rule("multi_krum", base, faulty=1, selected=4, space=space, allow_factors=True)
            chosen[space, turned] = base + merge(of, plan, some).delta
    same, other = (
        (products(base, chosen[space, False] - base), products(base, chosen[space, True] - base))
        for space in ("product", "factors")
    )
    assert np.linalg.norm(same[0] - same[1]) < 1e-4 * np.linalg.norm(same[0])
    assert np.linalg.norm(other[0] - other[1]) > 0.05 * np.linalg.norm(other[0])


def best(matrix: Any, rank: int) -> Any:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


@pytest.mark.parametrize("ranks", [{}, {"c0": 1, "c2": 2}])
@pytest.mark.parametrize("kind", ["krum", "multi_krum", "geometric_median", "fltrust"])
def test_in_products_a_rule_is_its_formula_on_dense_matrices(kind: str, ranks: dict[str, int]) -> None:
    base, plan, updates = cohort(ranks)
    vectors = [products(base, delta) for delta in deltas_of(updates)]
    if kind == "krum":
        expected = vectors[int(np.argmin(dense.krum_scores(vectors, 1)))]
    elif kind == "multi_krum":
        chosen = np.argsort(dense.krum_scores(vectors, 1), kind="stable")[:5]
        assert 5 not in chosen  # the liar
        expected = np.mean([vectors[i] for i in chosen], axis=0)
    elif kind == "geometric_median":
        expected = dense.geometric_median(vectors, [1 / 6] * 6)
    else:
        expected = fltrust(vectors[1:], vectors[0])
    more = {"trusted": ["c0"]} if kind == "fltrust" else {}
    delta = merge(rule(kind, base, space="product", **more), plan, updates).delta
    b, size = WIDE.by_name["q.lora_B"], 7 * 9
    whole = base["q.lora_B"].double().numpy() @ base["q.lora_A"].double().numpy() * b.scaling
    truncated = best(whole + expected[:size].reshape(7, 9), 3) - whole
    got = products(base, delta)
    np.testing.assert_allclose(got[:size], truncated.ravel(), atol=2e-5)
    np.testing.assert_allclose(got[size:], expected[size:], atol=1e-6)


def test_krum_gives_the_chosen_update_as_it_is() -> None:
    base, plan, updates = cohort()
    delta = merge(rule("krum", base, space="product"), plan, updates).delta
    assert any(bytes(delta.tobytes()) == u.tobytes() for u in deltas_of(updates))


# --- the trimmed mean of parts ---


@settings(LAW, max_examples=40)
@given(mixed_rounds(("delta", "tensors", "rank")), st.integers(0, 1))
def test_of_parts_the_trimmed_mean_is_that_of_those_who_train_them(found: Any, drop: int) -> None:
    plan, updates = found
    of = rule("trimmed_mean", drop=drop)
    if len(updates) <= 2 * drop:
        with pytest.raises(ConfigError, match="drop"):
            merge(of, plan, updates)
        return
    got = merge(of, plan, updates).delta.vector().tolist()
    masks = [covered_by(plan, update.client) for update in updates]
    for j, value in enumerate(got):
        row = sorted(
            float(delta.vector()[j])
            for delta, mask in zip(deltas_of(updates), masks, strict=True)
            if mask is None or bool(mask[j])
        )
        kept = row[drop : len(row) - drop] if len(row) > 2 * drop else [0.0]
        assert value == pytest.approx(float(np.float32(np.mean(kept))), rel=1e-6, abs=1e-38)
