"""SummedAggregator: a rule of ``headwater merge`` whose terms are added up as clients answer, in int64.

Each term is a function of the client's own update, computed in float64 and rounded once; what is added is
weight·round(term·2^bits). So the laws hold as they do for the mean, and a rule has one formula offline and
in a round. Weights are shares: where a paper sums T adapters, a server learning rate of T is its sum.

:class:`TwoPassAggregator` does it twice. The second accumulator begins with what the first came to, and
whoever folds gives it every update again (:meth:`~headwater.merging.aggregator.Aggregator.next_pass`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from headwater.errors import DecodeError, EmptyRound, UpdateRejected
from headwater.merging.aggregator import Aggregator, Merged
from headwater.merging.fixed_point import require_bounded, require_norm, require_range, zeros
from headwater.merging.offline.rule import Floats
from headwater.merging.participants import Participants
from headwater.merging.plan import MergePlan, Update
from headwater.merging.rule_sums import RuleSums, Sum, Term, TwoPassSums
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec

_ROUNDING = 1 + 1e-12
"""A term, which is computed in float64, may be so much above the bound that its formula has."""
_FINE = 0.5
"""What the rounding to an integer leaves, at most."""


@dataclass(frozen=True)
class RuleAccumulator:
    """Who is in, and the sums.

    Args:
        participants: who is in. In the second pass the plan has only those of the first, with their weights.
        sums: int64 by the number of the sum, in units of 2^-bits; ``"1 rest"`` is what the rounding of sum 1
            left, in units of 2^-(bits + rest).
        first: of the second pass, what the first came to: float64 by number. Empty in the first.
    """

    participants: Participants
    sums: dict[str, Tensor]
    first: dict[str, Tensor] = field(default_factory=dict)


class SummedAggregator(Aggregator[RuleAccumulator]):
    """A rule's sums.

    Args:
        sums: of the rule.
        key: of rules that draw: numbers are a client's own, of the round that it answers and of one tensor.
    """

    def __init__(self, sums: RuleSums[Any], key: Key) -> None:
        self.sums, self.key = sums, key

    def init(self, plan: MergePlan) -> RuleAccumulator:
        """Zeros, 8 bytes a value and sum.

        Raises:
            ConfigError: weights and bounds that leave too few digits.
        """
        return RuleAccumulator(Participants(plan), _zeros(plan, self._kinds(plan), plan.total_weight))

    def identity(self) -> Mapping[str, Any]:
        """The rule, its settings, and what it draws with."""
        return {"rule": self.sums.rule.name, **self.sums.rule.model_dump(), "key": self.key.digest.hex()}

    def require_sound(self, acc: RuleAccumulator) -> None:
        """Each sum within its bounds, and together what the rule says of them."""
        plan, weight = acc.participants.plan, acc.participants.weight
        kinds, clients = self._kinds(plan), len(acc.participants.clients)
        if acc.first or acc.sums.keys() != self.init(plan).sums.keys():
            raise DecodeError("accumulator, sums", expected="those of the first pass", got="others")
        for number, kind in enumerate(kinds):
            times = self._times(kind, weight, clients)
            most = math.ceil(kind.bound * _ROUNDING * 2.0 ** plan.scale_bits(kind.bound)) * times
            require_range(acc.sums[f"{number}"], f"sum {number}", low=-most if kind.signed else 0, high=most)
            if kind.fine:
                most = round(_FINE * 2.0 ** plan.scale_bits(_FINE)) * times
                require_range(acc.sums[f"{number} rest"], f"rest of sum {number}", low=-most, high=most)
            if plan.norm_bound is not None and kind.degree:
                own = kind.bound * (plan.norm_bound / plan.value_bound) ** kind.degree
                times, unit = weight if kind.weighted else clients, 2.0 ** -plan.scale_bits(kind.bound)
                total = acc.sums[f"{number}"].double() * unit
                require_norm(total, f"sum {number}", most=times * own, slack=2 * times * kind.size * unit)
        if clients and not self.sums.sound(plan.spec, self._floats(acc), clients, plan.value_bound):
            raise DecodeError("accumulator, sums", expected="sums that fit each other", got="others")

    def add(self, acc: RuleAccumulator, update: Update) -> RuleAccumulator:
        """Add the update's terms."""
        plan = acc.participants.plan
        weight = acc.participants.weight_of(update)
        vector = acc.participants.values_of(update).vector()
        require_bounded(vector, plan.spec, bound=plan.value_bound, who=f"client {update.client}")
        terms = self._terms(acc, update, vector.numpy().astype(np.float64), weight)
        kinds, most = self._kinds_of(acc), self._most_weight(acc)
        units = [plan.scale_bits(kind.bound, most) for kind in kinds]
        rest = plan.scale_bits(_FINE, most)
        for number, part, term in terms:
            kind, times = kinds[number], weight if kinds[number].weighted else 1
            scaled = term * 2.0 ** units[number]
            whole = np.rint(scaled)
            self._join(acc.sums[f"{number}"], part, whole, times)
            if kind.fine:
                self._join(acc.sums[f"{number} rest"], part, np.rint((scaled - whole) * 2.0**rest), times)
        acc.participants.enter(update.client)
        return acc

    def combine(self, left: RuleAccumulator, right: RuleAccumulator) -> RuleAccumulator:
        """Add the sums of two groups."""
        left.participants.require_disjoint(right.participants)
        for name, total in left.sums.items():
            self.sums.join(total.numpy(), right.sums[name].numpy(), out=total.numpy())
        left.participants.join(right.participants)
        return left

    def finalize(self, acc: RuleAccumulator) -> Merged:
        """What the sums come to.

        The report has ``delta_norm`` (L2) and ``nonzero``, the fraction of values that are not 0.
        """
        spec = self._someone(acc).plan.spec
        merged = self.sums.result(spec, self._floats(acc), len(acc.participants.clients))
        # adding zero makes one zero of two
        delta = AdapterState.from_vector(spec, torch.from_numpy((merged + 0.0).astype(np.float32)))
        report = {"delta_norm": delta.norm(), "nonzero": np.count_nonzero(merged) / max(1, spec.numel)}
        clients = tuple(sorted(acc.participants.clients))
        return Merged(delta, clients, acc.participants.weight, report)

    def _kinds(self, plan: MergePlan) -> tuple[Sum, ...]:
        return self.sums.sums(plan.spec, plan.value_bound)

    def _kinds_of(self, acc: RuleAccumulator) -> tuple[Sum, ...]:
        return self._kinds(acc.participants.plan)

    def _most_weight(self, acc: RuleAccumulator) -> int:
        """The most that weights can sum to: it decides the units."""
        return acc.participants.plan.total_weight

    def _times(self, kind: Sum, weight: int, clients: int) -> int:
        """How often the largest term can be in a sum over so many clients."""
        return weight if kind.weighted else clients

    def _terms(self, acc: RuleAccumulator, update: Update, values: Floats, weight: int) -> Iterator[Term]:
        key = self.key.child("draw", update.round, update.client)
        return self.sums.terms(acc.participants.plan.spec, values, lambda name: key.child(name).numpy())

    def _join(self, total: Tensor, part: slice, units: Floats, times: int) -> None:
        some = total.numpy()[part]
        self.sums.join(some, units.astype(np.int64) * times, out=some)

    def _floats(self, acc: RuleAccumulator) -> tuple[Floats, ...]:
        """The sums, with weights that sum to one where they are weighted."""
        plan, most, found = acc.participants.plan, self._most_weight(acc), []
        for number, kind in enumerate(self._kinds_of(acc)):
            bits = plan.scale_bits(kind.bound, most)
            total = acc.sums[f"{number}"].numpy() * 2.0**-bits
            if kind.fine:
                total += acc.sums[f"{number} rest"].numpy() * 2.0 ** -(bits + plan.scale_bits(_FINE, most))
            found.append(total / acc.participants.weight if kind.weighted else total)
        return tuple(found)

    def _someone(self, acc: RuleAccumulator) -> Participants:
        if not acc.participants.clients:
            raise EmptyRound(self.sums.rule.name, expected="at least one accepted update", got="none")
        return acc.participants


class MaximaAggregator(SummedAggregator):
    """A rule whose terms are joined by their maximum: one accumulator for all clients, but no sum."""

    additive: ClassVar[bool] = False

    def _times(self, kind: Sum, weight: int, clients: int) -> int:
        return 1


class TwoPassAggregator(SummedAggregator):
    """A rule's sums in two passes.

    Args:
        sums: of the rule.
    """

    passes: int = 2
    sums: TwoPassSums

    def __init__(self, sums: TwoPassSums) -> None:
        super().__init__(sums, Key.root(0))  # no such rule draws

    def kept_bytes(self, spec: StateSpec, clients: int) -> int:
        """What the updates take, at most, where they are kept in memory for the second pass."""
        return spec.nbytes * clients

    def next_pass(self, acc: RuleAccumulator) -> RuleAccumulator | None:  # noqa: D102 - inherited
        if acc.first:
            return None
        participants = self._someone(acc)
        plan = participants.plan
        found = self.sums.between(plan.spec, self._floats(acc), len(participants.clients))
        known = {name: plan.weights[name] for name in sorted(participants.clients)}
        plan = replace(plan, weights=known, others_weight=0)
        first = {f"{number}": torch.from_numpy(values) for number, values in enumerate(found)}
        kinds = self.sums.second_sums(plan.spec, plan.value_bound)
        return RuleAccumulator(Participants(plan), _zeros(plan, kinds, len(known)), first)

    def finalize(self, acc: RuleAccumulator) -> Merged:
        """What the sums of the second pass come to.

        Raises:
            UpdateRejected: somebody's update of the first pass did not come again.
        """
        participants = self._someone(acc)
        missing = participants.plan.weights.keys() - participants.clients
        if missing or not acc.first:
            raise UpdateRejected(
                f"client {min(missing or participants.clients)}",
                expected=f"its update in both passes of {self.sums.rule.name}",
                got="it in one",
                hint="Give what next_pass() returns every update again.",
            )
        return super().finalize(acc)

    def _kinds_of(self, acc: RuleAccumulator) -> tuple[Sum, ...]:
        plan = acc.participants.plan
        return self.sums.second_sums(plan.spec, plan.value_bound) if acc.first else self._kinds(plan)

    def _most_weight(self, acc: RuleAccumulator) -> int:
        """In the second pass terms hold their weights, at most 1."""
        plan = acc.participants.plan
        return len(plan.weights) if acc.first else plan.total_weight

    def _terms(self, acc: RuleAccumulator, update: Update, values: Floats, weight: int) -> Iterator[Term]:
        if not acc.first:
            return super()._terms(acc, update, values, weight)
        plan = acc.participants.plan
        first = tuple(acc.first[f"{number}"].numpy() for number in range(len(acc.first)))
        return self.sums.second_terms(plan.spec, first, values, weight / plan.total_weight, len(plan.weights))


def _zeros(plan: MergePlan, kinds: tuple[Sum, ...], most_weight: int) -> dict[str, Tensor]:
    found = {}
    for number, kind in enumerate(kinds):
        plan.scale_bits(kind.bound, most_weight)  # which may refuse the plan
        found[f"{number}"] = zeros(kind.size)
        if kind.fine:
            found[f"{number} rest"] = zeros(kind.size)
    return found
