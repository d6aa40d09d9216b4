"""The laws of a merge rule: inherit :class:`AggregatorLaws` and name the rule.

Everything is compared bit for bit: :func:`bits` turns an accumulator or a result into bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from headwater.errors import DecodeError, EmptyRound, SpecMismatch, UpdateRejected
from headwater.merging.accumulator_bytes import dump, load
from headwater.merging.coverage import covered_by
from headwater.merging.participants import Participants
from headwater.merging.plan import MergePlan, NoisePlan, Update
from headwater.seeds.coefficients import SeedCoefficients, SeedPlan
from headwater.seeds.directions import Directions
from headwater.state import AdapterState, StateSpec, TensorSpec

BOUND = 4.0


def lora_spec(d_in: int, d_out: int, rank: int, *, scaling: float = 2.0, head: int = 0) -> StateSpec:
    """One LoRA module and a head: 1 000 000 values at (62500, 62500, 8)."""
    tensors = [
        TensorSpec("q.lora_A", (rank, d_in), "lora_a"),
        TensorSpec("q.lora_B", (d_out, rank), "lora_b", pair="q.lora_A", scaling=scaling),
    ]
    if head:
        tensors.append(TensorSpec("head", (head,), "head"))
    return StateSpec.of(tensors)


SPEC = lora_spec(3, 2, 2, head=2)


def state_of(spec: StateSpec, values: Any) -> AdapterState:
    """A state from anything that NumPy takes for ``spec.numel`` numbers."""
    return AdapterState.from_vector(spec, torch.from_numpy(np.array(values, dtype=np.float32)))


def update_of(spec: StateSpec, client: str, delta: Any, fisher: Any = None) -> Update:
    statistics = {} if fisher is None else {"fisher": state_of(spec, fisher)}
    return Update(client, 1, state_of(spec, delta), examples=1, statistics=statistics)


SEEDS = SeedPlan(0, 12, "gaussian", 15, 9)


def directions() -> Directions:
    """What :data:`SEEDS` stand for."""
    return Directions(bytes(range(16)), SEEDS.distribution, SPEC.numel)


def bits(thing: Any) -> Any:
    """``thing`` as nested tuples of bytes, equal only if every bit is."""
    if isinstance(thing, np.ndarray):
        return str(thing.dtype), thing.shape, thing.tobytes()
    if isinstance(thing, Tensor):
        return str(thing.dtype), tuple(thing.shape), thing.numpy().tobytes()
    if isinstance(thing, AdapterState):
        return thing.tobytes()
    if isinstance(thing, Participants):
        return tuple(sorted(thing.clients)), thing.weight
    if isinstance(thing, Mapping):
        return tuple((key, bits(thing[key])) for key in sorted(thing))
    if dataclasses.is_dataclass(thing):
        return tuple(bits(getattr(thing, f.name)) for f in dataclasses.fields(thing))
    if isinstance(thing, float):
        return thing.hex()
    return thing


# Multiples of 1/4 meet in exact ties all the time; the others have full mantissas, signed zeros,
# denormals and the bound itself.
VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 0.25, -0.25, 0.5, -0.5, 1.0, -1.0, BOUND, -BOUND, 1e-40]),
    st.floats(-BOUND, BOUND, width=32),
)


@st.composite
def rounds(draw: Any) -> tuple[MergePlan, list[Update]]:
    """A plan and an update of every client in it."""
    count = draw(st.integers(1, 5))
    weights = draw(st.lists(st.sampled_from([1, 2, 3, 1000, 2**30]), min_size=count, max_size=count))
    plan = MergePlan(SPEC, {f"c{i}": w for i, w in enumerate(weights)}, BOUND)
    numbers = st.lists(VALUES, min_size=SPEC.numel, max_size=SPEC.numel)
    updates = []
    for name in plan.weights:
        fisher = np.abs(np.array(draw(numbers), dtype=np.float32)) / np.float32(BOUND)
        updates.append(update_of(SPEC, name, draw(numbers), fisher))
    return plan, updates


NOISES = st.sampled_from([0.0, 1e-6, 0.5, 3.0, 1e9])
METHODS = st.sampled_from(["default", "phone", "sensor"])
PROGRESS = st.dictionaries(METHODS, st.sampled_from([0.0, 1e-9, 0.3, 1.0]))


@st.composite
def mixed_rounds(
    draw: Any, sent: Sequence[str] = ("delta", "tensors", "rank", "scalars")
) -> tuple[MergePlan, list[Update]]:
    """The same for rules that take several kinds of update: deltas of parts, scalars, noise."""
    plan, updates = draw(rounds())
    kinds = {name: draw(st.sampled_from(sent)) for name in plan.weights}
    names = st.lists(st.sampled_from([t.name for t in SPEC]), unique=True).map(tuple)
    plan = dataclasses.replace(
        plan,
        weights={name: min(weight, 2**20) for name, weight in plan.weights.items()},
        seeds=SEEDS,
        directions=directions(),
        tensors={name: draw(names) for name, kind in kinds.items() if kind == "tensors"},
        ranks={name: draw(st.integers(0, 2)) for name, kind in kinds.items() if kind == "rank"},
        noise=draw(st.none() | st.builds(NoisePlan, NOISES, st.dictionaries(METHODS, NOISES), PROGRESS)),
        groups={name: draw(METHODS) for name in plan.weights},
        use=draw(st.booleans()),
    )
    steps = st.lists(
        st.tuples(st.integers(0, SEEDS.count - 1), st.integers(-32767, 32767)), max_size=SEEDS.entries
    )
    mixed = []
    for update in updates:
        delta, mask = update.delta, covered_by(plan, update.client)
        if kinds[update.client] == "scalars":
            delta = SeedCoefficients.of(SEEDS, draw(steps))
        elif mask is not None:
            delta = AdapterState.from_vector(SPEC, torch.where(mask, delta.vector(), 0.0))
        mixed.append(dataclasses.replace(update, delta=delta, noise=draw(NOISES)))
    return plan, mixed


LAW = settings(
    max_examples=50,
    deadline=None,
    # The health check fears one test with several classes behind it; inheriting laws is just that.
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)


FEW = settings(LAW, max_examples=12)
"""For laws of bytes: what they add to the others is no matter of values."""


class AggregatorLaws:
    """Give ``rule()``; for something else than an Aggregator also ``finish``, for other updates
    ``rounds``."""

    refuses_values = True
    """Whether non-finite and out-of-bound values are refused."""

    rounds = staticmethod(rounds)
    """The strategy of plans and updates."""

    def rule(self, spec: StateSpec) -> Any:
        raise NotImplementedError

    def finish(self, rule: Any, acc: Any) -> Any:
        return rule.finalize(acc)

    def fold(self, rule: Any, plan: MergePlan, updates: Sequence[Update]) -> Any:
        acc = rule.init(plan)
        for update in updates:
            acc = rule.add(acc, update)
        return acc

    @LAW
    @given(st.data())
    def test_init_is_the_identity(self, data: st.DataObject) -> None:
        plan, updates = data.draw(self.rounds())
        rule = self.rule(SPEC)
        expected = bits(self.fold(rule, plan, updates))
        assert bits(rule.combine(rule.init(plan), self.fold(rule, plan, updates))) == expected
        assert bits(rule.combine(self.fold(rule, plan, updates), rule.init(plan))) == expected

    @LAW
    @given(st.data(), st.randoms(use_true_random=False))
    def test_any_order_gives_the_same_bits(self, data: st.DataObject, random: Any) -> None:
        plan, updates = data.draw(self.rounds())
        rule = self.rule(SPEC)
        shuffled = random.sample(updates, len(updates))
        first, second = self.fold(rule, plan, updates), self.fold(rule, plan, shuffled)
        assert bits(first) == bits(second)
        assert bits(self.finish(rule, first)) == bits(self.finish(rule, second))

    @LAW
    @given(st.data())
    def test_combine_is_associative_and_commutative(self, data: st.DataObject) -> None:
        plan, updates = data.draw(self.rounds())
        rule = self.rule(SPEC)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(updates)), min_size=2, max_size=2)))
        groups = [updates[: cuts[0]], updates[cuts[0] : cuts[1]], updates[cuts[1] :]]

        def accs() -> list[Any]:
            return [self.fold(rule, plan, group) for group in groups]

        a, b, c = accs()
        left = bits(rule.combine(rule.combine(a, b), c))
        a, b, c = accs()
        assert bits(rule.combine(a, rule.combine(b, c))) == left
        a, b, c = accs()
        assert bits(rule.combine(rule.combine(c, b), a)) == left
        assert bits(self.fold(rule, plan, updates)) == left

    @LAW
    @given(st.data())
    def test_add_is_combine_with_a_singleton(self, data: st.DataObject) -> None:
        plan, updates = data.draw(self.rounds())
        rule = self.rule(SPEC)
        added = rule.add(self.fold(rule, plan, updates[:-1]), updates[-1])
        combined = rule.combine(self.fold(rule, plan, updates[:-1]), self.fold(rule, plan, updates[-1:]))
        assert bits(added) == bits(combined)

    @LAW
    @given(st.data())
    def test_refused_updates_leave_no_trace(self, data: st.DataObject) -> None:
        plan, updates = data.draw(self.rounds())
        plan = dataclasses.replace(plan, weights={**plan.weights, "late": 1})
        rule = self.rule(SPEC)
        acc = self.fold(rule, plan, updates)
        before = bits(acc)
        zeros = [0.0] * SPEC.numel
        other = lora_spec(3, 2, 2, scaling=1.0, head=2)  # same shapes, another meaning
        refused = [
            (update_of(SPEC, "stranger", zeros, zeros), UpdateRejected),
            (updates[0], UpdateRejected),
            (update_of(other, "late", zeros, zeros), SpecMismatch),
        ]
        if self.refuses_values:
            above = np.nextafter(np.float32(BOUND), np.float32(9))
            refused += [
                (update_of(SPEC, "late", [*zeros[:-1], value], zeros), UpdateRejected)
                for value in (np.nan, np.inf, -np.inf, above, -above)
            ]
        for update, error in refused:
            with pytest.raises(error, match=update.client):
                rule.add(acc, update)
            assert bits(acc) == before
        assert "late" in bits(rule.add(acc, update_of(SPEC, "late", zeros, zeros)))[0][0]

    @LAW
    @given(st.data())
    def test_groups_that_share_a_client_are_refused(self, data: st.DataObject) -> None:
        plan, updates = data.draw(self.rounds())
        rule = self.rule(SPEC)
        left, right = self.fold(rule, plan, updates), self.fold(rule, plan, updates[:1])
        before = bits(left), bits(right)
        with pytest.raises(UpdateRejected, match=updates[0].client):
            rule.combine(left, right)
        assert (bits(left), bits(right)) == before

    @FEW
    @given(st.data())
    def test_bytes_are_the_accumulator(self, data: st.DataObject) -> None:
        plan, updates = data.draw(self.rounds())
        rule = self.rule(SPEC)
        cut = data.draw(st.integers(0, len(updates)))
        whole = bits(self.fold(rule, plan, updates))
        half = dump(rule, self.fold(rule, plan, updates[:cut]))
        assert dump(rule, load(rule, plan, half)) == half
        rest = load(rule, plan, dump(rule, self.fold(rule, plan, updates[cut:])))
        joined = rule.combine(load(rule, plan, half), rest)
        assert bits(joined) == whole
        # what an edge is told of the plan is enough for the same sums
        names = [update.client for update in updates[cut:]]
        if names:
            part = plan.part(names)
            there = dump(rule, self.fold(rule, part, updates[cut:]))
            here = load(rule, part, there)
            here.participants.plan = plan
            assert bits(rule.combine(load(rule, plan, half), here)) == whole

    def test_a_thousand_clients_flat_in_a_tree_and_shuffled(self) -> None:
        rng = np.random.default_rng(7)
        plan = MergePlan(SPEC, {f"c{i:03}": 1 + i % 5 for i in range(1000)}, BOUND)
        numbers = np.round(rng.normal(size=(1000, SPEC.numel)) * 4) / 4
        updates = [
            update_of(SPEC, name, row.clip(-BOUND, BOUND), np.abs(row).clip(0, 1))
            for name, row in zip(plan.weights, numbers, strict=True)
        ]
        rule = self.rule(SPEC)
        flat = dump(rule, self.fold(rule, plan, updates))
        order = rng.permutation(1000)
        tree = rule.init(plan)
        for edge in range(10):
            part = self.fold(rule, plan, [updates[i] for i in order[edge::10]])
            tree = rule.combine(tree, load(rule, plan, dump(rule, part)))
        assert dump(rule, tree) == flat
        assert bits(self.finish(rule, tree)) == bits(self.finish(rule, load(rule, plan, flat)))

    @FEW
    @given(st.data())
    def test_other_bytes_are_refused(self, data: st.DataObject) -> None:
        plan, updates = data.draw(self.rounds())
        rule = self.rule(SPEC)
        good = dump(rule, self.fold(rule, plan, updates))
        at = data.draw(st.integers(0, len(good) - 1))
        flipped = good[:at] + bytes([good[at] ^ 1 << data.draw(st.integers(0, 7))]) + good[at + 1 :]
        for wrong in (flipped, good[:at], good + b"\0"):
            with pytest.raises(DecodeError):
                load(rule, plan, wrong)
            if len(wrong) > 70:  # a liar makes the checksum right: sums that could be, or an error
                lie = wrong[:6] + hashlib.sha256(wrong[38:]).digest() + wrong[38:]
                with contextlib.suppress(DecodeError, UpdateRejected, EmptyRound):
                    self.finish(rule, load(rule, plan, lie))

    def test_groups_of_different_plans_are_refused(self) -> None:
        rule = self.rule(SPEC)
        left = rule.init(MergePlan(SPEC, {"a": 1}, BOUND))
        with pytest.raises(SpecMismatch):
            rule.combine(left, rule.init(MergePlan(SPEC, {"a": 2}, BOUND)))

    def test_nobody_is_an_empty_round(self) -> None:
        rule = self.rule(SPEC)
        with pytest.raises(EmptyRound):
            self.finish(rule, rule.init(MergePlan(SPEC, {"a": 1}, BOUND)))

    def test_a_million_values_with_exact_ties(self) -> None:
        spec = lora_spec(62_500, 62_500, 8)
        assert spec.numel == 1_000_000
        rng = np.random.default_rng(5)
        plan = MergePlan(spec, {"a": 3, "b": 1, "c": 2, "d": 1}, BOUND)
        updates = []
        for name in plan.weights:
            delta = rng.normal(size=spec.numel)
            delta[::2] = np.round(delta[::2] * 2) / 2  # half of the coordinates on a coarse grid
            fisher = rng.exponential(size=spec.numel) * 0.9
            updates.append(update_of(spec, name, delta.clip(-BOUND, BOUND), fisher))
        rule = self.rule(spec)
        forward = self.fold(rule, plan, updates)
        tree = rule.combine(
            self.fold(rule, plan, [updates[3], updates[1]]), self.fold(rule, plan, [updates[2], updates[0]])
        )
        assert bits(forward) == bits(tree)
        assert bits(self.finish(rule, forward)) == bits(self.finish(rule, tree))
