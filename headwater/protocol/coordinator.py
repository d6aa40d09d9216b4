"""Coordinator: which client is asked, which reply is folded, when a round ends. No I/O, no clock.

Feed it events with :meth:`Coordinator.receive`; do what the returned actions say. Time comes in as
``Tick(now_s)``. The transitions are the table at the end of the file::

    IDLE ── Begin ──▶ OPEN ── enough, or all answered, or deadline ──▶ IDLE   (Close, or Halt)
                       │  Arrived ▶ Fold or Discard · Folded · Failed · Gone · Joined · Tick · Stop

A round's participants, and each one's single chance to be folded, are decided here and nowhere
else: a late, repeated or unasked reply is discarded by name, whatever the transport delivers.

With ``retry_s`` the machine is *persistent*, as a daemon needs it: it never halts. A round with
fewer than ``min_clients`` accepted updates stays open, and whoever failed is asked again. Without,
as in a simulation, such a round ends in ``Halt``. The events and actions here are also those of
:class:`headwater.protocol.buffered.BufferedCoordinator`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeAlias, TypedDict, Unpack

from headwater.errors import ConfigError
from headwater.protocol.retries import Retries


class Phase(Enum):
    """Where the machine is."""

    IDLE = "idle"
    OPEN = "open"


# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """Open ``round`` with these clients at time ``now_s``.

    ``accepted``: whose updates an earlier process had accepted into this round. They are not asked;
    they count even if they are not among ``clients`` any more. Buffered only: ``started``, the version
    that such an update started from, where it is not this one; ``absent``, who may be asked after
    ``Joined``.
    """

    round: int
    clients: tuple[str, ...]
    now_s: float
    accepted: tuple[str, ...] = ()
    started: tuple[tuple[str, int], ...] = ()
    absent: tuple[str, ...] = ()


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
class Gone:
    """A client is revoked: it is not asked again in this round. Its accepted update stays."""

    client: str
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class Joined:
    """A client of this round that failed because it was not there is there now."""

    client: str
    round: int


@dataclass(frozen=True, slots=True)
class Tick:
    """It is ``now_s``."""

    now_s: float


@dataclass(frozen=True, slots=True)
class Stop:
    """End after the open round (at once if none is open)."""

    reason: str


Event: TypeAlias = Begin | Arrived | Folded | Failed | Gone | Joined | Tick | Stop


# --- actions --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """Send this client its task. An earlier request to it that was not answered is void."""

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
    """The round is over: merge what was folded. ``failed`` says why, of everyone else who was asked."""

    round: int
    accepted: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    last: bool
    """Whether no round follows."""
    started: tuple[tuple[str, int], ...] = ()
    """Buffered only: the version that each accepted update started from."""
    spared: tuple[str, ...] = ()
    """Those of ``failed`` who did nothing wrong: enough updates were in before theirs."""


@dataclass(frozen=True, slots=True)
class Halt:
    """Too few were accepted; nothing is merged and the state stays as it was."""

    round: int
    accepted: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]


Action: TypeAlias = Ask | Fold | Discard | Close | Halt


# --- the machine ----------------------------------------------------------------------------------


class Changes(TypedDict, total=False):
    """What :meth:`Coordinator.reconfigure` takes."""

    rounds: int
    min_clients: int
    target: int | None
    deadline_s: float | None
    retry_s: float | None


@dataclass(frozen=True, slots=True)
class Rules:
    """When a round ends: the arguments of :class:`Coordinator`."""

    rounds: int
    min_clients: int = 1
    target: int | None = None
    deadline_s: float | None = None
    retry_s: float | None = None

    def __post_init__(self) -> None:
        least, most = self.min_clients, self.target
        times = [t for t in (self.deadline_s, self.retry_s) if t is not None]
        if least < 1 or (most is not None and most < least) or any(t <= 0 for t in times):
            raise ConfigError(
                "cohort",
                expected="1 ≤ min_clients ≤ target, and times above 0",
                got=f"min_clients {least}, target {most}, "
                f"deadline_s {self.deadline_s}, retry_s {self.retry_s}",
            )


def require_same_kind(before: float | None, after: float | None) -> None:
    """Raise ``ConfigError`` if a machine would become persistent, or cease to be, within a round."""
    if (before is None) != (after is None):
        raise ConfigError(
            "retry_s", expected="a machine that stays what it is", got=f"{before} before, {after} now"
        )


class Coordinator:
    """Synchronous rounds: one open version at a time.

    Args:
        rounds: the last round's number.
        min_clients: with fewer accepted updates no round closes.
        target: a round closes as soon as so many updates are in; if None, when all have answered.
        deadline_s: a round closes this long after it began, with who arrived; never if None.
        retry_s: makes the machine persistent; a client that failed is asked again after so long,
            then with doubled pauses (:class:`Retries`).
        done: rounds that an earlier process finished.

    Raises:
        ConfigError: ``target`` below ``min_clients``, or a number that must be positive is not.
    """

    def __init__(
        self,
        rounds: int,
        *,
        min_clients: int = 1,
        target: int | None = None,
        deadline_s: float | None = None,
        retry_s: float | None = None,
        done: int = 0,
    ) -> None:
        self._rules = Rules(rounds, min_clients, target, deadline_s, retry_s)
        self._phase = Phase.IDLE
        self._round = done
        self._now_s = self._began_s = self._counted_from_s = 0.0
        self._ends_s: float | None = None
        self._clients: set[str] = set()
        self._waiting: set[str] = set()  # asked, nothing heard
        self._folding: set[str] = set()  # Fold was said, the outcome is open
        self._accepted: set[str] = set()
        self._failed: dict[str, str] = {}  # the latest reason, also while the client is asked again
        self._gone: set[str] = set()
        self._spared: set[str] = set()
        self._retries = Retries(retry_s)
        self._stopping = False

    @property
    def phase(self) -> Phase:
        """Where the machine is."""
        return self._phase

    @property
    def stopping(self) -> bool:
        """Whether a stop was asked for."""
        return self._stopping

    @property
    def persistent(self) -> bool:
        """Whether it never halts: it has a ``retry_s``."""
        return self._rules.retry_s is not None

    @property
    def reachable(self) -> int:
        """How many updates the open round can still end with, if everyone answers.

        Below ``min_clients`` (too many were revoked) a persistent round can never close: begin it
        anew, with more clients or a smaller minimum, in another machine.
        """
        if self._rules.retry_s is None:
            return len(self._accepted | self._folding | self._waiting)
        return len(self._clients - (self._gone - self._accepted - self._folding))

    def reconfigure(self, **changes: Unpack[Changes]) -> None:
        """Other rules from the next round on; what is not named stays.

        Raises:
            ConfigError: a round is open, fewer rounds than are done, or rules that do not fit together.
        """
        if self._phase is not Phase.IDLE:
            raise ConfigError(
                f"round {self._round}", expected="it to close before rules change", got="an open round"
            )
        if changes.get("rounds", self._round) < self._round:
            raise ConfigError(
                "rounds", expected=f"at least {self._round}: they are done", got=str(changes["rounds"])
            )
        self._rules = replace(self._rules, **changes)

    @property
    def waiting_for(self) -> frozenset[str]:
        """The clients of the open round that were asked and have not answered."""
        return frozenset(self._waiting)

    def retime(self, *, deadline_s: float | None, retry_s: float | None) -> None:
        """Other times, at once: they hold for the open round too, counted from where they were counted.

        Raises:
            ConfigError: a time is not above 0, or ``retry_s`` comes or goes.
        """
        require_same_kind(self._rules.retry_s, retry_s)
        self._rules = replace(self._rules, deadline_s=deadline_s, retry_s=retry_s)
        if self._phase is Phase.OPEN:
            self._ends_s = None if deadline_s is None else self._counted_from_s + deadline_s
            self._retries.retime(retry_s, self._now_s)

    def receive(self, event: Event) -> list[Action]:
        """Take one event; return what to do, in order.

        Raises:
            ConfigError: ``Begin`` while a round is open, or with too few clients, or out of order.
        """
        return _TRANSITIONS[self._phase, type(event)](self, event)

    # One handler per cell of the table; ``event`` is of the type in the cell.

    def _begin(self, event: Event) -> list[Action]:
        assert isinstance(event, Begin)
        rules, accepted = self._rules, set(event.accepted)
        asked = [client for client in dict.fromkeys(event.clients) if client not in accepted]
        least = 1 if rules.retry_s is None else rules.min_clients  # a persistent one would wait for ever
        if len(asked) + len(accepted) < least or not self._round < event.round <= rules.rounds:
            raise ConfigError(
                f"round {event.round}",
                expected=f"at least {least} client{'s' * (least > 1)} "
                f"and a round in {self._round + 1}…{rules.rounds}",
                got=f"{len(asked) + len(accepted)} clients",
            )
        self._phase, self._round = Phase.OPEN, event.round
        self._now_s = self._began_s = event.now_s
        self._set_deadline()
        self._clients = accepted | set(asked)
        self._waiting, self._folding, self._accepted = set(asked), set(), accepted
        self._failed, self._gone, self._retries = {}, set(), Retries(rules.retry_s)
        self._spared = set()
        return self._close_if_over() or [Ask(client, event.round) for client in asked]

    def _begin_while_open(self, event: Event) -> list[Action]:
        raise ConfigError(f"round {self._round}", expected="it to close before another begins", got="Begin")

    def _arrived(self, event: Event) -> list[Action]:
        assert isinstance(event, Arrived)
        if event.round != self._round:
            return [Discard(event.client, event.round, f"late: round {self._round} is open")]
        if event.client not in self._waiting:
            known = event.client in self._clients
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
        if event.round != self._round or event.client not in self._folding:
            return []
        self._folding.discard(event.client)
        self._accepted.add(event.client)
        self._failed.pop(event.client, None)
        return self._close_if_over()

    def _failed_event(self, event: Event) -> list[Action]:
        assert isinstance(event, Failed)
        client = event.client
        if event.round != self._round or client not in self._waiting | self._folding:
            return []
        self._waiting.discard(client)
        self._folding.discard(client)
        self._failed[client] = event.reason
        if client not in self._gone:
            self._retries.later(client, self._now_s)
        return self._close_if_over()

    def _gone_event(self, event: Event) -> list[Action]:
        assert isinstance(event, Gone)
        client = event.client
        if event.round != self._round or client not in self._clients:
            return []
        self._gone.add(client)
        self._retries.take(client)
        if client in self._accepted | self._folding:  # what is in the accumulator stays there
            return []
        self._waiting.discard(client)
        self._failed[client] = event.reason
        return self._close_if_over()

    def _joined(self, event: Event) -> list[Action]:
        assert isinstance(event, Joined)
        if event.round != self._round or not self._retries.take(event.client):
            return []
        return self._ask([event.client])

    def _tick(self, event: Event) -> list[Action]:
        assert isinstance(event, Tick)
        self._now_s = max(self._now_s, event.now_s)
        if self._ends_s is not None and event.now_s >= self._ends_s:
            if self._rules.retry_s is None or len(self._accepted) >= self._rules.min_clients:
                self._give_up(f"no answer within {self._ends_s - self._began_s:g} s")
                return self._close_if_over()
            if not self._folding:  # else the next tick sees what became of it
                self._set_deadline()
        return self._ask(self._retries.due(self._now_s))

    def _stop(self, event: Event) -> list[Action]:
        self._stopping = True
        return []

    def _nothing(self, event: Event) -> list[Action]:
        return []

    # --- what the handlers share ------------------------------------------------------------------

    def _set_deadline(self) -> None:
        deadline_s, self._counted_from_s = self._rules.deadline_s, self._now_s
        self._ends_s = None if deadline_s is None else self._now_s + deadline_s

    def _ask(self, clients: list[str]) -> list[Action]:
        self._waiting.update(clients)
        return [Ask(client, self._round) for client in clients]

    def _give_up(self, reason: str) -> None:
        """Wait for nobody any longer, but for what is being folded."""
        for client in self._waiting:
            earlier = self._failed.get(client)
            self._failed[client] = reason if earlier is None else f"{reason}; before: {earlier}"
        self._waiting = set()
        self._retries.clear()

    def _close_if_over(self) -> list[Action]:
        rules, count = self._rules, len(self._accepted)
        if rules.target is not None and count >= rules.target:
            self._spared |= self._waiting - self._failed.keys()
            self._give_up("not needed: enough updates were in")
        too_few = count < rules.min_clients
        if self._waiting or self._folding or (too_few and rules.retry_s is not None):
            return []
        self._phase = Phase.IDLE
        accepted, failed = tuple(sorted(self._accepted)), tuple(sorted(self._failed.items()))
        if too_few:
            return [Halt(self._round, accepted, failed)]
        last, spared = self._round == rules.rounds or self._stopping, tuple(sorted(self._spared))
        return [Close(self._round, accepted, failed, last, spared=spared)]


_TRANSITIONS: dict[tuple[Phase, type], Callable[[Coordinator, Event], list[Action]]] = {
    (Phase.IDLE, Begin): Coordinator._begin,
    (Phase.IDLE, Arrived): Coordinator._arrived_while_idle,
    (Phase.IDLE, Folded): Coordinator._nothing,
    (Phase.IDLE, Failed): Coordinator._nothing,
    (Phase.IDLE, Gone): Coordinator._nothing,
    (Phase.IDLE, Joined): Coordinator._nothing,
    (Phase.IDLE, Tick): Coordinator._nothing,
    (Phase.IDLE, Stop): Coordinator._stop,
    (Phase.OPEN, Begin): Coordinator._begin_while_open,
    (Phase.OPEN, Arrived): Coordinator._arrived,
    (Phase.OPEN, Folded): Coordinator._folded,
    (Phase.OPEN, Failed): Coordinator._failed_event,
    (Phase.OPEN, Gone): Coordinator._gone_event,
    (Phase.OPEN, Joined): Coordinator._joined,
    (Phase.OPEN, Tick): Coordinator._tick,
    (Phase.OPEN, Stop): Coordinator._stop,
}
