"""Participants: who is in an accumulator, and who may still enter. Every rule shares it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from headwater.errors import SpecMismatch, UpdateRejected
from headwater.merging.plan import MergePlan, Update
from headwater.state import AdapterState


@dataclass
class Participants:
    """The clients of one accumulator and their summed weight. Owned by the accumulator."""

    plan: MergePlan
    clients: set[str] = field(default_factory=set)
    weight: int = 0

    @staticmethod
    def all_of(plan: MergePlan, clients: Collection[str]) -> Participants:
        """These clients of a plan."""
        found = Participants(plan)
        for client in clients:
            found.enter(client)
        return found

    def weight_of(self, update: Update) -> int:
        """The integer weight of an update that may enter; changes nothing.

        Raises:
            UpdateRejected: the client is not in the plan, or already in.
            SpecMismatch: the delta has another spec than the plan.
        """
        weight = self.plan.weights.get(update.client)
        if weight is None:
            raise UpdateRejected(
                f"client {update.client}",
                expected="a client of this round's plan",
                got="a name that is not in it",
                hint="Only clients that were asked may answer.",
            )
        if update.client in self.clients:
            raise UpdateRejected(
                f"client {update.client}",
                expected="one update per client and round",
                got="a second one",
                hint="The first one counts.",
            )
        if isinstance(update.delta, AdapterState):
            update.delta.require_spec(self.plan.spec, f"client {update.client}, delta")
        return weight

    def values_of(self, update: Update) -> AdapterState:
        """The delta of an update that must have one.

        Raises:
            UpdateRejected: it has scalars.
        """
        if not isinstance(update.delta, AdapterState):
            raise UpdateRejected(
                f"client {update.client}",
                expected="a delta",
                got="coefficients of seeds",
                hint="Only strategy 'mean' merges both.",
            )
        return update.delta

    def enter(self, client: str) -> None:
        """Note that ``client`` is in, after its values were added."""
        self.clients.add(client)
        self.weight += self.plan.weights[client]

    def require_disjoint(self, other: Participants) -> None:
        """Check that ``other`` may be combined with this one; changes nothing.

        Raises:
            UpdateRejected: the two share a client.
            SpecMismatch: the two follow different plans, so their units differ.
        """
        if self.plan is not other.plan and self.plan != other.plan:
            raise SpecMismatch(
                "combined accumulators",
                expected="one merge plan",
                got="two that differ in spec, weights or bound",
                hint="Initialise every group of a round from the same plan.",
            )
        shared = self.clients & other.clients
        if shared:
            raise UpdateRejected(
                f"client {min(shared)}",
                expected="disjoint groups of clients",
                got=f"{len(shared)} in both",
                hint="An update must be folded into one group only.",
            )

    def join(self, other: Participants) -> None:
        """Take over the clients of ``other``."""
        self.clients |= other.clients
        self.weight += other.weight
