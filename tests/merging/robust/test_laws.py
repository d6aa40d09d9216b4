"""The laws of merge rules for those against hostile clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from headwater.config.strategy import Strategy
from headwater.merging.accumulator_bytes import dump, load
from headwater.merging.plan import MergePlan, Update
from headwater.seeds.keys import Key
from headwater.state import StateSpec
from headwater.strategies.rules import rule_in_round
from tests.laws.aggregator_laws import LAW, SPEC, AggregatorLaws, bits, mixed_rounds, rounds, state_of


class RobustLaws(AggregatorLaws):
    """One rule, or several in turns."""

    tables: Sequence[dict[str, Any]]
    table: dict[str, Any]

    def rounds(self) -> Any:
        def choose(found: Any) -> Any:
            self.table, drawn = found
            return drawn

        return st.tuples(st.sampled_from(self.tables), rounds()).map(choose)

    def rule(self, spec: StateSpec) -> Any:
        return made(getattr(self, "table", self.tables[0]), spec)

    def fold(self, rule: Any, plan: MergePlan, updates: Sequence[Update]) -> Any:
        self.seen = {**getattr(self, "seen", {}), **{update.client: update for update in updates}}
        return super().fold(rule, plan, updates)

    def finish(self, rule: Any, acc: Any) -> Any:
        while (following := rule.next_pass(acc)) is not None:
            for client in acc.participants.clients:
                following = rule.add(following, self.seen[client])
            acc = following
        return rule.finalize(acc)


def made(table: dict[str, Any], spec: StateSpec) -> Any:
    """The rule of a table, in a round that starts from halves."""
    strategy = TypeAdapter(Strategy).validate_python(table)
    return rule_in_round(strategy, state_of(spec, [0.5] * spec.numel), Key.root(0))


LAWS = AggregatorLaws()


class TestInPasses(RobustLaws):
    tables = ({"kind": "geometric_median", "passes": 3}, {"kind": "geometric_median", "passes": 1})


KEPT: Sequence[dict[str, Any]] = (
    {"kind": "krum", "faulty": 0, "space": "product"},
    {"kind": "geometric_median", "space": "product"},
    {"kind": "fltrust", "trusted": ["c0"], "space": "product"},
    {"kind": "fltrust", "trusted": ["c0", "c1"]},
    {"kind": "trimmed_mean", "drop": 0},
)
"""Their accumulators are the median's, whose laws hold; they differ in the last step."""


@settings(LAW, max_examples=20)
@given(mixed_rounds(("delta", "rank", "tensors")), st.sampled_from(KEPT), st.randoms(use_true_random=False))
def test_the_last_step_takes_updates_in_any_order(found: Any, table: dict[str, Any], random: Any) -> None:
    plan, updates = found
    of = made(table, SPEC)
    if table["kind"] == "krum" and len(updates) < 3:
        return
    shuffled = random.sample(updates, len(updates))
    cut = random.randint(0, len(updates))
    whole, left, right = (
        AggregatorLaws.fold(LAWS, of, plan, some) for some in (updates, shuffled[:cut], shuffled[cut:])
    )
    joined = load(of, plan, dump(of, of.combine(right, left)))
    assert bits(of.finalize(joined)) == bits(of.finalize(whole))
