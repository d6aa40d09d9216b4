"""Coordinator: which client is asked, which reply is folded, when a round ends. No I/O, no clock.

Feed it events with :meth:`Coordinator.receive`; do what the returned actions say. Time comes in as
``Tick(now_s)``. The transitions are the table at the end of the file::

    IDLE ── Begin ──▶ OPEN ── all answered, or deadline ──▶ IDLE   (Close, or Halt below min_clients)
                       │  Arrived ▶ Fold or Discard · Folded · Failed · Tick · Stop

A round's participants, and each one's single chance to be folded, are decided here and nowhere
else: a late, repeated or unasked reply is discarded by name, whatever the transport delivers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from headwater.errors import ConfigError


class Phase(Enum):
    """Where the machine is."""

    IDLE = "idle"
    OPEN = "open"


# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """Open ``round`` with these clients at time ``now_s``."""

    round: int
    clients: tuple[str, ...]
    now_s: float


@dataclass(frozen=True, slots=True)
class Arrived:
    """A reply came in; it has not been decoded."""

    client: str
    round: int


@dataclass(frozen=True, slots=True)
class Folded:
    """The reply that was to be folded is in the accumulator."""

    client: str
    round: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A client said it failed, is gone, or its reply was refused."""

    client: str
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """It is ``now_s``."""

    now_s: float


@dataclass(frozen=True, slots=True)
class Stop:
    """End after the open round (at once if none is open)."""

    reason: str


Event: TypeAlias = Begin | Arrived | Folded | Failed | Tick | Stop


# --- actions --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """Send this client its task."""

    client: str
    round: int


@dataclass(frozen=True, slots=True)
class Fold:
    """Decode this reply and add it; report back with ``Folded`` or ``Failed``."""

    client: str
    round: int


@dataclass(frozen=True, slots=True)
class Discard:
    """Drop this reply unread."""

    client: str
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class Close:
    """The round is over: merge what was folded."""

    round: int
    accepted: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    last: bool
    """Whether no round follows."""


@dataclass(frozen=True, slots=True)
class Halt:
    """Too few were accepted; nothing is merged and the state stays as it was."""

    round: int
    accepted: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]


Action: TypeAlias = Ask | Fold | Discard | Close | Halt


class Coordinator:
    """Synchronous rounds: one open version at a time.

    Args:
        rounds: the last round's number.
        min_clients: fewer accepted updates halt the federation.
        deadline_s: a round closes this long after it began, with who arrived; never if None.
        done: rounds that an earlier process finished.
    """

    def __init__(
        self, rounds: int, *, min_clients: int = 1, deadline_s: float | None = None, done: int = 0
    ) -> None:
        self._rounds, self._min_clients, self._deadline_s = rounds, min_clients, deadline_s
        self._phase = Phase.IDLE
        self._round = done
        self._ends_s: float | None = None
        self._waiting: set[str] = set()  # asked, nothing heard
        self._folding: set[str] = set()  # Fold was said, the outcome is open
        self._accepted: set[str] = set()
        self._failed: dict[str, str] = {}
        self._stopping = False

    @property
    def phase(self) -> Phase:
        """Where the machine is."""
        return self._phase

    @property
    def stopping(self) -> bool:
        """Whether a stop was asked for."""
        return self._stopping

    def receive(self, event: Event) -> list[Action]:
        """Take one event; return what to do, in order.

        Raises:
            ConfigError: ``Begin`` while a round is open, or with no client, or out of order.
        """
        return _TRANSITIONS[self._phase, type(event)](self, event)

    # One handler per cell of the table; ``event`` is of the type in the cell.

    def _begin(self, event: Event) -> list[Action]:
        assert isinstance(event, Begin)
        if not event.clients or not self._round < event.round <= self._rounds:
            raise ConfigError(
                f"round {event.round}",
                expected=f"at least one client and a round in {self._round + 1}…{self._rounds}",
                got=f"{len(event.clients)} clients",
            )
        self._phase, self._round = Phase.OPEN, event.round
        self._ends_s = None if self._deadline_s is None else event.now_s + self._deadline_s
        self._waiting, self._folding = set(event.clients), set()
        self._accepted, self._failed = set(), {}
        return [Ask(client, event.round) for client in event.clients]

    def _begin_while_open(self, event: Event) -> list[Action]:
        raise ConfigError(f"round {self._round}", expected="it to close before another begins", got="Begin")

    def _arrived(self, event: Event) -> list[Action]:
        assert isinstance(event, Arrived)
        if event.round != self._round:
            return [Discard(event.client, event.round, f"late: round {self._round} is open")]
        if event.client not in self._waiting:
            known = event.client in self._accepted | self._folding | self._failed.keys()
            reason = "answered already" if known else "was not asked"
            return [Discard(event.client, event.round, reason)]
        self._waiting.discard(event.client)
        self._folding.add(event.client)
        return [Fold(event.client, event.round)]

    def _arrived_while_idle(self, event: Event) -> list[Action]:
        assert isinstance(event, Arrived)
        return [Discard(event.client, event.round, "late: no round is open")]

    def _folded(self, event: Event) -> list[Action]:
        assert isinstance(event, Folded)
        if event.round == self._round and event.client in self._folding:
            self._folding.discard(event.client)
            self._accepted.add(event.client)
        return self._close_if_over()

    def _failed_event(self, event: Event) -> list[Action]:
        assert isinstance(event, Failed)
        if event.round == self._round and event.client in self._waiting | self._folding:
            self._waiting.discard(event.client)
            self._folding.discard(event.client)
            self._failed[event.client] = event.reason
        return self._close_if_over()

    def _tick(self, event: Event) -> list[Action]:
        assert isinstance(event, Tick)
        if self._ends_s is None or event.now_s < self._ends_s:
            return []
        for client in self._waiting:
            self._failed[client] = f"no answer within {self._deadline_s:g} s"
        self._waiting = set()
        return self._close_if_over()

    def _stop(self, event: Event) -> list[Action]:
        self._stopping = True
        return []

    def _nothing(self, event: Event) -> list[Action]:
        return []

    def _close_if_over(self) -> list[Action]:
        if self._waiting or self._folding:
            return []
        self._phase = Phase.IDLE
        accepted, failed = tuple(sorted(self._accepted)), tuple(sorted(self._failed.items()))
        if len(accepted) < self._min_clients:
            return [Halt(self._round, accepted, failed)]
        return [Close(self._round, accepted, failed, self._round == self._rounds or self._stopping)]


_TRANSITIONS: dict[tuple[Phase, type], Callable[[Coordinator, Event], list[Action]]] = {
    (Phase.IDLE, Begin): Coordinator._begin,
    (Phase.IDLE, Arrived): Coordinator._arrived_while_idle,
    (Phase.IDLE, Folded): Coordinator._nothing,
    (Phase.IDLE, Failed): Coordinator._nothing,
    (Phase.IDLE, Tick): Coordinator._nothing,
    (Phase.IDLE, Stop): Coordinator._stop,
    (Phase.OPEN, Begin): Coordinator._begin_while_open,
    (Phase.OPEN, Arrived): Coordinator._arrived,
    (Phase.OPEN, Folded): Coordinator._folded,
    (Phase.OPEN, Failed): Coordinator._failed_event,
    (Phase.OPEN, Tick): Coordinator._tick,
    (Phase.OPEN, Stop): Coordinator._stop,
}
