"""Aggregator: the commutative monoid at the centre of the product."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from headwater.errors import ConfigError
from headwater.merging.plan import MergePlan, NoisePlan, Update
from headwater.security.secagg.ring import RingLayout
from headwater.seeds.directions import Integers
from headwater.seeds.slopes import SeedUse
from headwater.state import AdapterState, StateSpec

Acc = TypeVar("Acc")


class ClientMark(Protocol):
    """What a merge says of one client."""

    @property
    def suspect(self) -> str:
        """Why its update stands out; empty if it does not."""

    @property
    def left_out(self) -> bool:
        """Whether it was not merged."""

    def row(self) -> Mapping[str, Any]:
        """The same for the client's row of the round's record."""


@dataclass(frozen=True)
class Merged:
    """What a rule made of a round.

    Args:
        delta: the merged delta.
        clients: who is in it, sorted.
        weight: their weight.
        report: numbers for people.
        coefficients: the delta as the mean coefficient of each seed of the plan, int64, in units of
            2^-(unit_bits + FINE_BITS); None if values were merged too.
        noise: how far the updates lie apart, and why; None where the rule does not say.
        use: how far clients stepped along each seed, where the plan asks for it.
        control: the server's control variate after the round, where the strategy has one.
        shift: with EF21, the sum of all that was ever sent.
        marks: by client, how its update stands beside the others, where the strategy looks.
        clip: the bound that the next round clips to, with adaptive clipping.
        asked: of a private sum, whom the round asked, sorted: who is in no sum counts as asked, too.
    """

    delta: AdapterState
    clients: tuple[str, ...]
    weight: int
    report: Mapping[str, float] = field(default_factory=dict)
    coefficients: Integers | None = None
    noise: NoisePlan | None = None
    use: SeedUse | None = None
    control: AdapterState | None = None
    shift: AdapterState | None = None
    marks: Mapping[str, ClientMark] = field(default_factory=dict)
    clip: float | None = None
    asked: tuple[str, ...] = ()


class Aggregator(ABC, Generic[Acc]):
    """A merge rule as an accumulator that adds.

    Laws (``tests/laws/aggregator_laws.py``), bit for bit: ``init`` is the identity of ``combine``;
    ``combine`` is associative and commutative; ``add`` is ``combine`` with a singleton; any order of
    updates gives the same :class:`Merged`. They hold because every accumulator is int64 fixed point
    with scales that the plan fixes, or the updates themselves
    (:class:`~headwater.merging.buffered_rule.BufferedRule`).

    Attributes:
        additive: the accumulator is sums of what single clients sent, of a size that does not grow with
            clients: a secure sum, which shows the server nothing else, could feed it.
        passes: how often it must be given every update. Whoever folds gives an accumulator of several
            passes to :meth:`next_pass`, and what that returns each update again.
    """

    additive: ClassVar[bool] = True
    passes: int = 1

    def kept_bytes(self, spec: StateSpec, clients: int) -> int:
        """Memory of the updates of so many clients until they are merged; 0 of an additive rule."""
        return 0

    def next_pass(self, acc: Acc) -> Acc | None:
        """The empty accumulator of the pass after that of ``acc``, for the same clients.

        None after the last one: then :meth:`finalize` it.

        Raises:
            EmptyRound: no update was added.
        """
        return None

    def require_room(self, spec: StateSpec, clients: int) -> None:
        """Refuse a round whose updates could take more memory than the rule may.

        Args:
            spec: of the adapter.
            clients: that may be in one round.

        Raises:
            ConfigError: says how much, and of what.
        """

    def identity(self) -> Mapping[str, Any]:
        """What rules whose accumulators may be combined have in common: their numbers and texts."""
        return {k: v for k, v in sorted(vars(self).items()) if isinstance(v, bool | int | float | str)}

    def require_sound(self, acc: Acc) -> None:
        """Refuse an accumulator that another process added up, where no updates of its clients could.

        Whoever sums for some clients can then say no more than those clients together could have.
        Names, shapes, clients and plan have been checked. Without a method of its own a rule believes the
        rest.

        Raises:
            DecodeError: says what is wrong.
        """

    def sum_layout(self, plan: MergePlan) -> RingLayout:
        """The accumulator as one vector of integers, and what the sums of all the plan's clients can be.

        What follows from the plan and from who is in is not in the vector.

        Raises:
            ConfigError: the rule, or this plan, needs more than sums: it cannot be masked.
        """
        raise ConfigError(
            f"privacy.masks with {type(self).__name__}", expected="a rule that adds up",
            got="one that needs each update by itself", hint="Use strategy 'mean', 'ties' or 'fisher'.",
        )  # fmt: skip

    def to_sums(self, acc: Acc) -> list[Integers]:
        """The parts of :meth:`sum_layout`, int64."""
        raise NotImplementedError

    def from_sums(self, plan: MergePlan, clients: Collection[str], sums: Sequence[Integers]) -> Acc:
        """The accumulator of these clients, whose vectors add up to ``sums``: the very bits of ``add``."""
        raise NotImplementedError

    @abstractmethod
    def init(self, plan: MergePlan) -> Acc:
        """The empty accumulator."""

    @abstractmethod
    def add(self, acc: Acc, update: Update) -> Acc:
        """One client more. Consumes ``acc``.

        Raises:
            UpdateRejected: unknown client, client already in, non-finite or out-of-bound values,
                a missing or negative statistic. ``acc`` is then unchanged.
            SpecMismatch: the delta has another spec than the plan.
        """

    @abstractmethod
    def combine(self, left: Acc, right: Acc) -> Acc:
        """Two disjoint groups of clients. Consumes both.

        Raises:
            UpdateRejected: the groups share a client.
        """

    @abstractmethod
    def finalize(self, acc: Acc) -> Merged:
        """The merged delta. Of several passes, from the accumulator of the last one.

        Raises:
            EmptyRound: no update was added.
        """
