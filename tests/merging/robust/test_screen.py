"""Which updates stand out: flipped, scaled, by a sketch; merged without them; any order, any rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from headwater.config.screen import ScreenSettings
from headwater.config.strategy import Strategy
from headwater.errors import EmptyRound, UpdateRejected
from headwater.merging.aggregator import Merged
from headwater.merging.plan import MergePlan, Update
from headwater.merging.robust.screen import WIDTH, Look, ScreenedAggregator
from headwater.seeds.keys import Key
from headwater.state import StateSpec, TensorSpec
from headwater.strategies.rules import rule_for
from headwater.strategies.summing import why_no_sums
from tests.laws.aggregator_laws import LAW, bits, rounds, update_of
from tests.strategies.test_federated import federation

Rows = Mapping[str, Any]


def screened(kind: str = "mean", seed: int = 0, **how: Any) -> ScreenedAggregator:
    more = how.pop("rule", {})
    table = TypeAdapter(Strategy).validate_python({"kind": kind, **more, "screen": how})
    of = rule_for(table, Key.root(seed))
    assert isinstance(of, ScreenedAggregator)
    return of


def merge(of: Any, plan: MergePlan, updates: Sequence[Update]) -> Merged:
    acc = of.init(plan)
    for update in updates:
        acc = of.add(acc, update)
    while (following := of.next_pass(acc)) is not None:
        acc = following
        for update in reversed(updates):
            acc = of.add(acc, update)
    found: Merged = of.finalize(acc)
    return found


def of_rows(of: Any, rows: Rows) -> Merged:
    spec = StateSpec.of([TensorSpec("w", (len(next(iter(rows.values()))),), "vector")])
    plan = MergePlan(spec, dict.fromkeys(rows, 1), 65536.0)
    return merge(of, plan, [update_of(spec, name, row) for name, row in rows.items()])


def cohort(size: int, *, honest: int = 12, common: float = 0.5) -> dict[str, Any]:
    """Updates of which a part is common, and three liars: flipped, scaled, both."""
    rng = np.random.default_rng(size)
    way = rng.normal(size=size)
    rows = {f"c{i:02}": common * way + rng.normal(size=size) for i in range(honest)}
    own = [common * way + rng.normal(size=size) for _ in range(3)]
    return {**rows, "flip": -own[0], "scale": 40 * own[1], "zboth": -40 * own[2]}


@pytest.mark.parametrize("size", [600, 20_000])
@pytest.mark.parametrize("leave_out", [False, True])
def test_flipped_and_scaled_updates_stand_out_and_no_other(size: int, leave_out: bool) -> None:
    rows = cohort(size)
    merged = of_rows(screened(leave_out=leave_out), rows)
    suspects = {name: mark.suspect for name, mark in merged.marks.items() if mark.suspect}
    assert suspects == {"flip": "flipped", "scale": "scaled", "zboth": "scaled, flipped"}
    assert merged.report["suspects"] == 3
    assert merged.report["left_out"] == (3 if leave_out else 0)
    kept = [name for name in rows if not (leave_out and name in suspects)]
    assert merged.clients == tuple(sorted(kept))
    expected = np.mean([np.float32(rows[name]) for name in kept], axis=0)
    np.testing.assert_allclose(merged.delta.vector().numpy(), expected, atol=1e-5)
    row = merged.marks["zboth"].row()
    assert row["norm"] == pytest.approx(np.linalg.norm(np.float32(rows["zboth"])), rel=1e-6)
    assert ("left_out" in row) == leave_out
    assert "suspect" not in merged.marks["c00"].row()


@pytest.mark.parametrize("size", [600, 5000])
def test_no_update_is_merged_at_more_than_the_median_length(size: int) -> None:
    rows = cohort(size)
    merged = of_rows(screened(shorten=True, norm=1e6, cosine=-1.0), rows)
    values = {name: np.float64(np.float32(row)) for name, row in rows.items()}
    norms = {name: float(np.linalg.norm(row)) for name, row in values.items()}
    middle = float(np.median(list(norms.values())))
    expected = np.mean([row * min(1.0, middle / norms[name]) for name, row in values.items()], axis=0)
    np.testing.assert_allclose(merged.delta.vector().numpy(), expected, atol=1e-5)
    assert merged.report["shortened"] == sum(norm > middle for norm in norms.values()) == 7
    assert merged.report["left_out"] == 0
    longer = {**rows, "scale": 100 * rows["scale"]}
    again = of_rows(screened(shorten=True, norm=1e6, cosine=-1.0), longer)
    np.testing.assert_allclose(again.delta.vector().numpy(), expected, atol=1e-5)


def test_who_is_left_out_counts_for_the_median_length_and_is_not_shortened() -> None:
    rows = cohort(600)
    merged = of_rows(screened(shorten=True, leave_out=True), rows)
    norms = {name: np.linalg.norm(np.float32(row)) for name, row in rows.items()}
    honest = [norm for name, norm in norms.items() if name.startswith("c")]
    longer = sum(norm > np.median(list(norms.values())) for norm in honest)
    assert (merged.report["left_out"], merged.report["shortened"]) == (3, longer)
    assert not {"flip", "scale", "zboth"} & set(merged.clients)


def test_where_most_stay_where_they_are_nothing_moves() -> None:
    merged = of_rows(screened(shorten=True), {"a": [0.0, 0], "b": [0.0, 0], "c": [1.0, 0]})
    assert merged.delta.norm() == 0


def test_a_sketch_keeps_a_cosine_to_its_width() -> None:
    rng = np.random.default_rng(5)
    off = []
    for seed in range(30):
        size, of = 30_000, screened(seed=seed)
        a, b = rng.normal(size=size), rng.normal(size=size)
        b = 0.4 * a + np.sqrt(1 - 0.4**2) * b
        spec = StateSpec.of([TensorSpec("w", (size,), "vector")])
        acc = of.init(MergePlan(spec, {"a": 1, "b": 1}, 65536.0))
        for name, row in (("a", a), ("b", b)):
            acc = of.add(acc, update_of(spec, name, row))
        x, y = (acc.looks[name].direction for name in ("a", "b"))
        assert x.shape == (WIDTH,)
        true = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        off.append(float(x @ y) - true)
    assert abs(np.mean(off)) < 0.02
    assert np.sqrt(np.mean(np.square(off))) < 1.5 / np.sqrt(WIDTH)


def test_half_of_a_round_is_no_outlier_and_a_rule_keeps_as_many_as_it_needs() -> None:
    rows = {"a": [1.0, 0], "b": [1.0, 0.1], "c": [-100.0, 0], "d": [-100.0, 1]}
    merged = of_rows(screened(leave_out=True), rows)
    assert merged.report["left_out"] == 0
    assert len(merged.clients) == 4
    many = cohort(50, honest=4)
    assert of_rows(screened("krum", leave_out=True, rule={"faulty": 1}), many).report["left_out"] == 0
    assert of_rows(screened("krum", leave_out=True, rule={"faulty": 0}), many).report["left_out"] == 3


def test_nothing_moved_is_nothing_that_stands_out() -> None:
    merged = of_rows(screened(leave_out=True), {"a": [0.0, 0], "b": [0.0, 0], "c": [1.0, 0]})
    assert [mark.row()["cosine"] for mark in merged.marks.values()] == [0.0, 0.0, 0.0]
    with pytest.raises(EmptyRound):
        screened().judged({})


@settings(LAW, max_examples=25)
@given(
    rounds(),
    st.sampled_from(["mean", "ties", "sce", "geometric_median"]),
    st.booleans(),
    st.booleans(),
    st.randoms(),
)
def test_any_order_and_any_tree_gives_the_same_bits(
    found: Any, kind: str, leave_out: bool, shorten: bool, random: Any
) -> None:
    plan, updates = found
    of = screened(kind, leave_out=leave_out, shorten=shorten)
    shuffled, cut = random.sample(updates, len(updates)), random.randint(0, len(updates))

    def marks(merged: Merged) -> Any:
        return bits({name: bits(mark.row()) for name, mark in merged.marks.items()})

    one, other = merge(of, plan, updates), merge(of, plan, shuffled)
    assert bits(one.delta) == bits(other.delta)
    assert marks(one) == marks(other)
    left, right = of.init(plan), of.init(plan)
    for update in shuffled[:cut]:
        left = of.add(left, update)
    for update in shuffled[cut:]:
        right = of.add(right, update)
    acc = of.combine(left, right)
    while (following := of.next_pass(acc)) is not None:
        acc = following
        for update in updates:
            acc = of.add(acc, update)
    assert bits(of.finalize(acc).delta) == bits(one.delta)


def test_what_the_rule_would_refuse_later_is_refused_when_it_comes() -> None:
    spec = StateSpec.of([TensorSpec("w", (2,), "vector")])
    plan = MergePlan(spec, {"a": 1, "b": 1}, 4.0)
    of = screened("fisher", leave_out=True)
    acc = of.init(plan)
    with pytest.raises(UpdateRejected, match="client a"):
        of.add(acc, update_of(spec, "a", [1.0, 1.0]))  # without its Fisher
    assert not acc.looks
    of = screened(leave_out=True)
    acc = of.add(of.init(plan), update_of(spec, "a", [1.0, 1.0]))
    following = of.next_pass(acc)
    assert following is not None
    with pytest.raises(UpdateRejected, match="client a"):
        of.finalize(following)


def test_marks_are_of_norms_and_cosines_by_hand() -> None:
    plain = rule_for(TypeAdapter(Strategy).validate_python({"kind": "mean"}))
    of = ScreenedAggregator(plain, ScreenSettings(norm=2.0, cosine=0.0), Key.root(0))
    three = {"a": (1.0, [1.0, 0]), "b": (2.0, [0.6, 0.8]), "c": (2.1, [-1.0, 0])}
    looks = {name: Look(norm, np.array(way)) for name, (norm, way) in three.items()}
    marks = of.judged(looks)  # the median length is 2, the median direction (0.6, 0)
    assert {n: (m.cosine, m.suspect) for n, m in marks.items()} == {
        "a": (1.0, ""), "b": (0.6, ""), "c": (-1.0, "flipped"),
    }  # fmt: skip


def test_a_file_says_what_does_not_go_with_it() -> None:
    assert "screen" in str(why_no_sums(federation(strategy={"kind": "mean", "screen": {}})))
    for changes in ("leave_out", "shorten"):
        with pytest.raises(ValidationError, match="whole: no screen"):
            federation(strategy={"kind": "mean", "control_variates": True, "screen": {changes: True}})
    with pytest.raises(ValidationError, match=r"scalars|coefficients"):
        federation(strategy={"kind": "mean", "screen": {}}, training={"kind": "kseed"})
