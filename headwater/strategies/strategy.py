"""The server's maths, state in and state out: :class:`Strategy` and :class:`ServerState`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headwater.merging.aggregator import Aggregator, Merged
from headwater.merging.control_variates import ControlPlan
from headwater.merging.plan import MergePlan, NoisePlan
from headwater.privacy.correlated.mechanism import Mechanism, Participation
from headwater.protocol.messages import ClientPlan, ClientProfile
from headwater.seeds.keys import Key
from headwater.seeds.seeded_state import SeededState
from headwater.seeds.slopes import SeedSlopes
from headwater.state import AdapterState
from headwater.strategies.error_shift import ShiftPlan


@dataclass(frozen=True, slots=True)
class NoiseSequence:
    """Correlated noise over rounds that follow each other.

    Args:
        first: the round that it begins with.
        mechanism: the matrix.
        participation: over how many rounds, and in which of them one owner can be.
    """

    first: int
    mechanism: Mechanism
    participation: Participation

    def has(self, round: int) -> bool:
        """Whether it reaches as far as this round."""
        return round < self.first + self.participation.rounds


@dataclass(frozen=True, slots=True)
class PrivacyState:
    """What a federation with noise must know from round to round.

    Args:
        clip: C of the next round.
        multiplier: z, fixed when the run began; of all rounds together where their noise is correlated.
        sequence: the correlated noise of the next round; None where each round has its own.
        asked: with correlated noise, by owner, the last round that asked it, and how many have.
    """

    clip: float
    multiplier: float
    sequence: NoiseSequence | None = None
    asked: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class ServerState:
    """The server's whole checkpoint.

    Args:
        round: the last finished round; 0 before the first.
        state: the global adapter.
        momentum: m, the server optimiser's first moment, of the same spec; None without one.
        noise: how far the updates of the last rounds lie apart, and why; None before anybody knows, and
            where nobody asks.
        seeded_state: ``state`` as coefficients of seeds; None where it is more than that.
        seed_slopes: how steep losses were along each seed; None without ``kseed`` and its ``pro``.
        second_moment: v, the server optimiser's second moment, of the same spec; None without one.
        control: c, the server's control variate (SCAFFOLD), of the same spec; None without one.
        shift: the sum of all that EF21's clients have sent, of the same spec; None without EF21.
        residual: e, what compression has kept back of the way down (:mod:`.broadcast`); None without any.
        privacy: bound and noise of the next round; None without noise.
        links: by client, how fast its last updates came, in bytes/s; empty without ``cohort.upload_s``.
    """

    round: int
    state: AdapterState
    momentum: AdapterState | None = None
    noise: NoisePlan | None = None
    seeded_state: SeededState | None = None
    seed_slopes: SeedSlopes | None = None
    second_moment: AdapterState | None = None
    control: AdapterState | None = None
    shift: AdapterState | None = None
    residual: AdapterState | None = None
    privacy: PrivacyState | None = None
    links: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


class Strategy(ABC):
    """Who trains what, and how the result moves the model. No clock, no file, no network."""

    @abstractmethod
    def init(self, state: AdapterState) -> ServerState:
        """The server's state before round 1, for an initial global adapter."""

    @abstractmethod
    def plan(
        self,
        server: ServerState,
        profiles: Mapping[str, ClientProfile],
        *,
        key: Key,
        method_names: Mapping[str, str] | None = None,
        population: Mapping[str, int] | None = None,
    ) -> RoundPlan:
        """The next round, number ``server.round + 1``: a function of its arguments.

        Args:
            server: the state after the last finished round.
            profiles: every client that can take part, by enrolled name.
            key: the federation's root key; the round's own key is derived from it.
            method_names: each client's method by name, where it was drawn among more clients than these.
            population: train examples of all known clients, online or not; those of ``profiles`` if absent.

        Raises:
            FederationStopped: no client can take part.
            ConfigError: a client's byte budget cannot be kept.
        """

    @abstractmethod
    def aggregator(self, plan: RoundPlan, base: AdapterState) -> Aggregator[Any]:
        """The rule that merges the updates of ``plan``, made by clients that start from ``base``."""

    @abstractmethod
    def update(self, server: ServerState, merged: Merged) -> ServerState:
        """The state after the round.

        Raises:
            SpecMismatch: the merged delta has another spec than the global adapter.
        """


@dataclass(frozen=True)
class RoundPlan:
    """One round: who takes part, what each is asked, how the result is merged.

    ``control`` is what a round with control variates (SCAFFOLD) counts with; None without. ``shift`` likewise
    of one with EF21.
    """

    round: int
    clients: Mapping[str, ClientPlan]
    merge: MergePlan
    control: ControlPlan | None = None
    shift: ShiftPlan | None = None
