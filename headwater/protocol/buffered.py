"""BufferedCoordinator: asynchronous versions, as FedBuff makes them (arXiv 2106.06639). No I/O, no clock.

Clients do not wait for each other. Whoever is free is asked with the newest version; the first
``buffer`` updates, whichever versions they started from, make the next one; whoever is still at work
stays at work. Events and actions are those of :mod:`headwater.protocol.machine`; ``Begin.round``
is the version to be made, and in ``Ask``, ``Arrived``, ``Fold``, ``Folded``, ``Failed`` and
``Discard`` the round is the version that the client started from::

    IDLE ── Begin ──▶ OPEN ── buffer full, or nobody at work, or deadline ──▶ IDLE   (Close, or Halt)

Between versions nothing can be folded: leave replies with the transport until the next ``Begin``.
:func:`~headwater.protocol.staleness.staleness_weight` is what an older update still weighs.
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
from headwater.protocol.staleness import staleness_weight as staleness_weight

SILENT_S = 1e-6
"""After its deadline a client is looked at this much later: a sum of floats may fall short of it."""


class BufferedChanges(TypedDict, total=False):
    """What :meth:`BufferedCoordinator.reconfigure` takes."""

    rounds: int
    buffer: int
    max_staleness: int
    min_clients: int
    deadline_s: float | None
    retry_s: float | None
    at_once: int | None


@dataclass(frozen=True, slots=True)
class BufferedRules:
    """When a version is made.

    Args:
        rounds: the last version's number.
        buffer: so many accepted updates make a version.
        max_staleness: an update is dropped if more versions than this were begun since its client was
            asked; the client is asked anew.
        min_clients: with fewer accepted updates no version is made.
        deadline_s: a version is made this long after it began, with who arrived; never if None.
        retry_s: makes the machine persistent, as in :class:`~headwater.protocol.coordinator.RoundRules`.
        at_once: so many clients work at the same time; all if None. One that is silent for longer
            than ``deadline_s`` does not count, or a few dead clients could keep the others out.

    Raises:
        ConfigError: ``min_clients`` above ``buffer``, or a number out of range.
    """

    rounds: int
    buffer: int
    max_staleness: int = 20
    min_clients: int = 1
    deadline_s: float | None = None
    retry_s: float | None = None
    at_once: int | None = None

    def __post_init__(self) -> None:
        positive = [v for v in (self.deadline_s, self.retry_s, self.at_once) if v is not None]
        if (
            not 1 <= self.min_clients <= self.buffer
            or self.max_staleness < 0
            or any(v <= 0 for v in positive)
        ):
            raise ConfigError(
                "schedule",
                expected="1 ≤ min_clients ≤ buffer, max_staleness ≥ 0, and the others above 0",
                got=str(self),
            )


class BufferedCoordinator(CoordinatorBase[BufferedRules]):
    """Makes each version of the updates that come first; a client is at most once in each.

    Args:
        rules: when a version is made.
        done: versions that an earlier process made.
    """

    _what, _ends = "version", "to be made"

    def __init__(self, rules: BufferedRules, *, done: int = 0) -> None:
        super().__init__(rules, done)
        self._clients: set[str] = set()  # who may be asked in this version
        self._queue: list[str] = []  # free, to be asked as soon as there is room
        self._absent: set[str] = set()  # to be asked after Joined
        self._working: dict[str, int] = {}  # asked, nothing heard: the version it started from
        self._asked_s: dict[str, float] = {}  # of those at work
        self._folding: dict[str, int] = {}  # Fold was said, the outcome is open
        self._accepted: dict[str, int] = {}
        self._failed: dict[str, str] = {}
        self._gone: set[str] = set()

    def go_on(self, working: Mapping[str, tuple[int, float]]) -> None:
        """Clients that an earlier process asked are at work: by name, from which version and since when."""
        self._working |= {client: version for client, (version, _) in working.items()}
        self._asked_s |= {client: asked_s for client, (_, asked_s) in working.items()}

    @property
    def working(self) -> Mapping[str, int]:
        """Who was asked and has not answered, and the version each started from."""
        return dict(self._working)

    @property
    def reachable(self) -> int:
        """How many updates the open version can still be made of, if everyone answers.

        Below ``min_clients`` a persistent machine can never make it: begin it anew in another.
        """
        sure = self._accepted.keys() | self._folding.keys()
        may = self._working.keys() | set(self._queue) | self._absent
        if self._rules.retry_s is not None:
            may |= self._clients
        return len(sure | (may - self._gone))

    def reconfigure(self, **changes: Unpack[BufferedChanges]) -> None:
        """Change rules from the next version on; arguments that are left out stay, clients go on working.

        Raises:
            ConfigError: a version is open, fewer than are made, or rules that do not fit together.
        """
        self._change(changes)

    @property
    def waiting_for(self) -> frozenset[str]:
        """The clients that were asked, for this version or an earlier one, and have not answered."""
        return frozenset(self._working)

    @property
    def next_s(self) -> float:
        """Also when one that is silent no longer counts, so that another can be asked."""
        found, deadline_s = super().next_s, self._rules.deadline_s
        if self._queue and deadline_s is not None and self._asked_s:
            found = min(found, min(self._asked_s.values()) + deadline_s + SILENT_S)
        return found

    def _handlers(self) -> Mapping[tuple[Phase, type], Handler]:
        return _TRANSITIONS

    # One handler per cell of the table; ``event`` is of the type in the cell.

    def _begin(self, event: Event) -> list[Action]:
        assert isinstance(event, Begin)
        self._check(event)
        rules, version, started = self._rules, event.round, dict(event.started)
        self._phase, self._number, self._now_s = Phase.OPEN, version, event.now_s
        self._set_deadline()
        self._accepted = {client: started.get(client, version) for client in event.accepted}
        # what would be too stale when it comes is not waited for: its client is free
        self._working = {
            client: origin
            for client, origin in self._working.items()
            if version - origin <= rules.max_staleness and client not in self._accepted
        }
        self._asked_s = {client: self._asked_s[client] for client in self._working}
        busy = self._accepted.keys() | self._working.keys()
        self._queue = [client for client in dict.fromkeys(event.clients) if client not in busy]
        self._clients = set(event.clients) | set(event.absent)
        self._absent = set(event.absent) - busy - set(event.clients)
        self._folding, self._failed, self._gone = {}, {}, set()
        self._retries = Retries(rules.retry_s)
        return self._settle()

    def _check(self, event: Begin) -> None:
        rules = self._rules
        count = len({*event.clients, *event.accepted, *event.absent, *self._working})
        least = 1 if rules.retry_s is None else rules.min_clients  # a persistent one would wait for ever
        if count < least or not self._number < event.round <= rules.rounds:
            raise ConfigError(
                f"version {event.round}",
                expected=f"at least {least} client{'s' * (least > 1)} "
                f"and a version in {self._number + 1}…{rules.rounds}",
                got=f"{count} clients",
            )
        if any(not 1 <= origin <= event.round for _, origin in event.started):
            raise ConfigError(
                f"version {event.round}",
                expected="accepted updates that started from it or before",
                got=f"{event.started}",
            )

    def _arrived(self, event: Event) -> list[Action]:
        assert isinstance(event, Arrived)
        client, origin = event.client, event.round
        if self._working.get(client) != origin:
            return [Discard(client, origin, self._why_not(client, origin))]
        self._forget(client)
        self._folding[client] = origin
        return [Fold(client, origin)]

    def _why_not(self, client: str, origin: int) -> str:
        """Why a reply is not one that is waited for."""
        if self._number - origin > self._rules.max_staleness:
            most = self._rules.max_staleness
            return f"too stale: version {self._number} is open, at most {most} older is taken"
        if client in self._working:
            return f"not what it was asked: it works from version {self._working[client]}"
        known = client in self._accepted or client in self._folding or client in self._failed
        return "answered already" if known else "was not asked"

    def _arrived_while_idle(self, event: Event) -> list[Action]:
        assert isinstance(event, Arrived)
        self._free(event)
        return [Discard(event.client, event.round, "between versions: no buffer is open")]

    def _folded(self, event: Event) -> list[Action]:
        assert isinstance(event, Folded)
        if self._folding.get(event.client) != event.round:
            return []
        self._accepted[event.client] = self._folding.pop(event.client)
        self._failed.pop(event.client, None)
        return self._settle()

    def _failed_event(self, event: Event) -> list[Action]:
        assert isinstance(event, Failed)
        client = event.client
        if event.round not in (self._working.get(client), self._folding.get(client)):
            return []
        self._forget(client)
        self._folding.pop(client, None)
        self._failed[client] = event.reason
        if client in self._clients - self._gone:
            self._retries.later(client, self._now_s)
        return self._settle()

    def _failed_while_idle(self, event: Event) -> list[Action]:
        assert isinstance(event, Failed)
        self._free(event)
        return []

    def _gone_event(self, event: Event) -> list[Action]:
        assert isinstance(event, Gone)
        client = event.client
        self._gone.add(client)
        self._absent.discard(client)
        self._queue = [other for other in self._queue if other != client]
        if client in self._working or client in self._failed:
            self._failed[client] = event.reason
        self._retries.take(client)
        self._forget(client)
        return self._settle()

    def _gone_while_idle(self, event: Event) -> list[Action]:
        assert isinstance(event, Gone)
        self._forget(event.client)
        return []

    def _joined(self, event: Event) -> list[Action]:
        assert isinstance(event, Joined)
        if not self._retries.take(event.client) and event.client not in self._absent:
            return []
        self._absent.discard(event.client)
        self._queue.append(event.client)
        return self._settle()

    def _tick(self, event: Event) -> list[Action]:
        assert isinstance(event, Tick)
        rules = self._rules
        self._now_s = max(self._now_s, event.now_s)
        if self._ends_s is not None and event.now_s >= self._ends_s and not self._folding:
            if len(self._accepted) >= rules.min_clients:
                return self._end()
            if rules.retry_s is None:
                silent = f"no answer within {rules.deadline_s:g} s"
                self._failed |= dict.fromkeys(self._working, silent)
                self._working, self._asked_s = {}, {}
                return self._end()
            self._set_deadline()
        self._queue += self._retries.due(self._now_s)
        return self._settle()

    # --- what the handlers share ------------------------------------------------------------------

    def _forget(self, client: str) -> None:
        """Stop expecting anything of this client."""
        self._working.pop(client, None)
        self._asked_s.pop(client, None)

    def _free(self, event: Arrived | Failed) -> None:
        """Between versions: a client at work has ended, and is asked in the next one."""
        if self._working.get(event.client) == event.round:
            self._forget(event.client)

    def _room(self) -> int:
        """How many more clients may be asked now."""
        rules = self._rules
        if rules.at_once is None:
            return len(self._queue)
        silent_since = -float("inf") if rules.deadline_s is None else self._now_s - rules.deadline_s
        busy = sum(self._asked_s[client] > silent_since for client in self._working)
        return max(0, rules.at_once - busy - len(self._folding))

    def _settle(self) -> list[Action]:
        """Make the version if the buffer is full or no client is left; else ask the free clients."""
        count, folding = len(self._accepted), len(self._folding)
        if count + folding >= self._rules.buffer:
            return [] if folding else self._end()
        room = self._room() if self._queue else 0
        asked, self._queue = self._queue[:room], self._queue[room:]
        self._working |= dict.fromkeys(asked, self._number)
        self._asked_s |= dict.fromkeys(asked, self._now_s)
        if self._working or folding:
            return [Ask(client, self._number) for client in asked]
        may_wait = self._absent or self._rules.retry_s is not None
        return [] if count < self._rules.min_clients and may_wait else self._end()

    def _end(self) -> list[Action]:
        self._phase = Phase.IDLE
        accepted = tuple(sorted(self._accepted))
        failed = tuple(sorted((c, why) for c, why in self._failed.items() if c not in self._working))
        if len(accepted) < self._rules.min_clients:
            return [Halt(self._number, accepted, failed)]
        last = self._number == self._rules.rounds or self._stopping
        return [Close(self._number, accepted, failed, last, tuple(sorted(self._accepted.items())))]


_TRANSITIONS: Mapping[tuple[Phase, type], Handler] = {
    (Phase.IDLE, Begin): BufferedCoordinator._begin,
    (Phase.IDLE, Arrived): BufferedCoordinator._arrived_while_idle,
    (Phase.IDLE, Folded): BufferedCoordinator._nothing,
    (Phase.IDLE, Failed): BufferedCoordinator._failed_while_idle,
    (Phase.IDLE, Gone): BufferedCoordinator._gone_while_idle,
    (Phase.IDLE, Joined): BufferedCoordinator._nothing,
    (Phase.IDLE, Tick): BufferedCoordinator._nothing,
    (Phase.IDLE, Stop): BufferedCoordinator._stop,
    (Phase.OPEN, Begin): BufferedCoordinator._begin_while_open,
    (Phase.OPEN, Arrived): BufferedCoordinator._arrived,
    (Phase.OPEN, Folded): BufferedCoordinator._folded,
    (Phase.OPEN, Failed): BufferedCoordinator._failed_event,
    (Phase.OPEN, Gone): BufferedCoordinator._gone_event,
    (Phase.OPEN, Joined): BufferedCoordinator._joined,
    (Phase.OPEN, Tick): BufferedCoordinator._tick,
    (Phase.OPEN, Stop): BufferedCoordinator._stop,
}
