"""Coordinator: which client is asked, which reply is folded, when a round ends. No I/O, no clock.

Feed it events with :meth:`Coordinator.receive`; do what the returned actions say. Time comes in as
``Tick(now_s)``. The transitions are the table at the end of the file::

    IDLE ── Begin ──▶ OPEN ── enough, or all answered, or deadline ──▶ IDLE   (Close, or Halt)
                       │  Arrived ▶ Fold or Discard · Folded · Failed · Gone · Joined · Tick · Stop

A round's participants, and each one's single chance to be folded, are decided here and nowhere
else: a late, repeated or unasked reply is discarded by name, whatever the transport delivers.

With ``retry_s`` the machine is *persistent*, as a daemon needs it: it never halts. A round with
fewer than ``min_clients`` accepted updates stays open, and whoever failed is asked again. Without,
as in a simulation, such a round ends in ``Halt``. Events and actions: :mod:`headwater.protocol.machine`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict, Unpack

from headwater.errors import ConfigError
from headwater.protocol.machine import (
    Action,
    Arrived,
    Ask,
    Begin,
    Close,
    CoordinatorBase,
    Discard,
    Event,
    Failed,
    Fold,
    Folded,
    Gone,
    Halt,
    Handler,
    Joined,
    Phase,
    Stop,
    Tick,
)
from headwater.protocol.retries import Retries

# --- the machine ----------------------------------------------------------------------------------


class Changes(TypedDict, total=False):
    """What :meth:`Coordinator.reconfigure` takes."""

    rounds: int
    min_clients: int
    target: int | None
    deadline_s: float | None
    retry_s: float | None


@dataclass(frozen=True, slots=True)
class RoundRules:
    """When a synchronous round ends.

    Args:
        rounds: the last round's number.
        min_clients: with fewer accepted updates no round closes; 0 where a round of nobody counts, too.
        target: a round closes as soon as so many updates are in; if None, when all have answered.
        deadline_s: a round closes this long after it began, with who arrived; never if None.
        retry_s: makes the machine persistent; a client that failed is asked again after so long,
            then with doubled pauses (:class:`~headwater.protocol.retries.Retries`).

    Raises:
        ConfigError: ``target`` below ``min_clients``, or a number that must be positive is not.
    """

    rounds: int
    min_clients: int = 1
    target: int | None = None
    deadline_s: float | None = None
    retry_s: float | None = None

    def __post_init__(self) -> None:
        least, most = self.min_clients, self.target
        times = [t for t in (self.deadline_s, self.retry_s) if t is not None]
        if least < 0 or (most is not None and most < least) or any(t <= 0 for t in times):
            raise ConfigError(
                "cohort",
                expected="0 ≤ min_clients ≤ target, and times above 0",
                got=f"min_clients {least}, target {most}, "
                f"deadline_s {self.deadline_s}, retry_s {self.retry_s}",
            )


class Coordinator(CoordinatorBase[RoundRules]):
    """Synchronous rounds: one open version at a time.

    Args:
        rules: when a round ends.
        done: rounds that an earlier process finished.
    """

    def __init__(self, rules: RoundRules, *, done: int = 0) -> None:
        super().__init__(rules, done)
        self._began_s = 0.0
        self._clients: set[str] = set()
        self._waiting: set[str] = set()  # asked, nothing heard
        self._folding: set[str] = set()  # Fold was said, the outcome is open
        self._accepted: set[str] = set()
        self._failed: dict[str, str] = {}  # the latest reason, also while the client is asked again
        self._gone: set[str] = set()
        self._spared: set[str] = set()

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
        """Change rules from the next round on; arguments that are left out stay.

        Raises:
            ConfigError: a round is open, fewer rounds than are done, or rules that do not fit together.
        """
        self._change(changes)

    @property
    def waiting_for(self) -> frozenset[str]:
        """The clients of the open round that were asked and have not answered."""
        return frozenset(self._waiting)

    def _handlers(self) -> Mapping[tuple[Phase, type], Handler]:
        return _TRANSITIONS

    # One handler per cell of the table; ``event`` is of the type in the cell.

    def _begin(self, event: Event) -> list[Action]:
        assert isinstance(event, Begin)
        rules, accepted = self._rules, set(event.accepted)
        asked = [client for client in dict.fromkeys(event.clients) if client not in accepted]
        least = min(1, rules.min_clients)  # with none, a round of nobody closes at once
        if rules.retry_s is not None:
            least = rules.min_clients  # a persistent one would wait for ever
        if len(asked) + len(accepted) < least or not self._number < event.round <= rules.rounds:
            raise ConfigError(
                f"round {event.round}",
                expected=f"at least {least} client{'s' * (least > 1)} "
                f"and a round in {self._number + 1}…{rules.rounds}",
                got=f"{len(asked) + len(accepted)} clients",
            )
        self._phase, self._number = Phase.OPEN, event.round
        self._now_s = self._began_s = event.now_s
        self._set_deadline()
        self._clients = accepted | set(asked)
        self._waiting, self._folding, self._accepted = set(asked), set(), accepted
        self._failed, self._gone, self._retries = {}, set(), Retries(rules.retry_s)
        self._spared = set()
        return self._close_if_over() or [Ask(client, event.round) for client in asked]

    def _arrived(self, event: Event) -> list[Action]:
        assert isinstance(event, Arrived)
        if event.round != self._number:
            return [Discard(event.client, event.round, f"late: round {self._number} is open")]
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
        if event.round != self._number or event.client not in self._folding:
            return []
        self._folding.discard(event.client)
        self._accepted.add(event.client)
        self._failed.pop(event.client, None)
        return self._close_if_over()

    def _failed_event(self, event: Event) -> list[Action]:
        assert isinstance(event, Failed)
        client = event.client
        if event.round != self._number or not (client in self._waiting or client in self._folding):
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
        if event.round != self._number or client not in self._clients:
            return []
        self._gone.add(client)
        self._retries.take(client)
        if client in self._accepted or client in self._folding:  # what is in the accumulator stays there
            return []
        self._waiting.discard(client)
        self._failed[client] = event.reason
        return self._close_if_over()

    def _joined(self, event: Event) -> list[Action]:
        assert isinstance(event, Joined)
        if event.round != self._number or not self._retries.take(event.client):
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

    # --- what the handlers share ------------------------------------------------------------------

    def _ask(self, clients: list[str]) -> list[Action]:
        self._waiting.update(clients)
        return [Ask(client, self._number) for client in clients]

    def _give_up(self, reason: str) -> None:
        """Stop waiting for clients; updates that are being folded still count."""
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
            return [Halt(self._number, accepted, failed)]
        last, spared = self._number == rules.rounds or self._stopping, tuple(sorted(self._spared))
        return [Close(self._number, accepted, failed, last, spared=spared)]


_TRANSITIONS: Mapping[tuple[Phase, type], Handler] = {
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
