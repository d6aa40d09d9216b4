"""Monitor: what has happened in a daemon, for everyone who asks, in memory that does not grow.

It watches runs (:meth:`Monitor.observer`) and is told the rest by the daemon. Whoever asks gets a
:class:`~headwater.protocol.control.Status`, or waits for events. What it holds is bounded: the latest events
(:class:`~.event_log.EventLog`), :data:`MOST_ENDED` ended runs, a row per enrolled client.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from headwater.process_memory import status_bytes
from headwater.protocol.control import RunState, Status, WatchEvent
from headwater.server.events import (
    ClientAsked,
    ClientDone,
    ClientFailed,
    ClientKnown,
    Evaluating,
    Event,
    Notice,
    Observer,
    RoundEnded,
    RoundStarted,
    RunStarted,
    Waiting,
    WaitingFor,
)
from headwater.server.monitoring.counters import ClientCounters, ClientFacts, RunCounters
from headwater.server.monitoring.event_log import MOST_TEXT, EventLog
from headwater.server.monitoring.refusals import Refusals
from headwater.server.round_record import RoundRecord
from headwater.text import finite, human_bytes, name_some, number, plain

MOST_ENDED = 100
MOST_CLIENTS = 10_000


class Monitor:
    """Thread-safe. The callables are asked whenever the status is, without a lock of ours held.

    Args:
        version: of Headwater.
        clients: every enrolled client; one that is not listed has no row.
        refused: what the port itself refused, by reason; added to what :meth:`refused` counted.
        certificate_days: how long the server's certificate is still valid.
        clock: Unix seconds.
    """

    def __init__(
        self,
        *,
        version: str,
        clients: Callable[[], Iterable[ClientFacts]] = tuple,
        refused: Callable[[], Mapping[str, int]] = dict,
        certificate_days: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._version, self._facts, self._port_refused = version, clients, refused
        self._certificate_days, self._clock = certificate_days, clock
        self._started = clock()
        self._lock = threading.RLock()
        self._ring = EventLog(clock)
        self._runs: dict[str, RunCounters] = {}
        self._clients: dict[str, ClientCounters] = {}
        self._refusals = Refusals()

    # --- who asks ---------------------------------------------------------------------------------

    def status(self) -> Status:
        """The state of the daemon, its runs and clients."""
        facts = sorted(self._facts(), key=lambda f: f.client)
        refused, days = Counter(self._port_refused()), self._certificate_days()
        with self._lock:
            self._clients = {f.client: self._clients.get(f.client, ClientCounters()) for f in facts}
            return Status(
                version=self._version,
                started=self._started,
                rss_bytes=status_bytes("VmRSS"),
                certificate_days=days,
                runs=tuple(counters.row() for counters in self._runs.values()),
                clients=tuple(self._clients[f.client].row(f) for f in facts),
                refused=dict(sorted((refused + self._refusals.counts).items())),
                errors=self._ring.errors(),
            )

    @property
    def started(self) -> float:
        """When it was made, Unix time: events are numbered anew from there."""
        return self._started

    @property
    def last_seq(self) -> int:
        """Number of the latest event; 0 before the first."""
        return self._ring.last

    def events(self, after: int, timeout_s: float = 0.0) -> list[WatchEvent]:
        """Events after a ``seq`` (all: -1), oldest first; see :meth:`EventLog.after`."""
        return self._ring.after(after, timeout_s)

    def watch(self, after: int = 0, ended: Callable[[], bool] = lambda: False) -> Iterator[WatchEvent]:
        """Events as ``Organiser.watch`` promises: 0 means from now on, -1 all; until ``ended`` or closed."""
        return self._ring.watch(after, ended)

    def close(self) -> None:
        """End every :meth:`watch` and every wait."""
        self._ring.close()

    # --- what the daemon tells --------------------------------------------------------------------

    def observer(self, run: str) -> Observer:
        """Who watches this run; give it to ``FederationServer``."""
        return partial(self._handle, run)

    def run_queued(
        self, run: str, name: str, rounds: int, *, metric: str = "", submitted: float | None = None
    ) -> None:
        """A run is there; also at the daemon's start, for each one it finds."""
        with self._lock:
            when = self._clock() if submitted is None else submitted
            self._runs[run] = RunCounters(run, plain(name, 120), rounds, when, metric=metric)
            ended = [key for key, old in self._runs.items() if old.ended]
            for key in ended[: max(len(ended) - MOST_ENDED, 0)]:
                del self._runs[key]
            self._ring.add("run", run, f"run {name}: queued, {rounds} rounds")

    def run_restored(self, run: str, records: Iterable[RoundRecord], metric: str) -> None:
        """Take over the rounds that an earlier daemon wrote: ``rounds.jsonl``. Once or often; no event."""
        with self._lock:
            for client, row in self._run(run).restore(records, metric):
                self._client(client).count(row)

    def run_state(self, run: str, state: RunState, reason: str = "", code: str = "") -> None:
        """A run goes on, waits, pauses or ends; ``failed`` is an error. The same state twice is no event.

        Args:
            run: its id.
            state: its new state.
            reason: of the state, for people.
            code: of the error that ended it, for programs: ``HW11``.
        """
        with self._lock:
            counters = self._run(run)
            reason = plain(reason, MOST_TEXT)
            if (counters.state, counters.reason) == (state, reason):
                return
            counters.state, counters.reason = state, reason
            if state not in ("running", "waiting"):
                counters.accepted = counters.asked = counters.open = 0
                for client in self._clients.values():
                    client.doing = "idle"
            text = f"run {counters.name or run}: {state}" + (f": {reason}" if reason else "")
            self._ring.add("error" if state == "failed" else "run", run, text, state=state, code=code)

    def run_told(self, run: str, told: str) -> None:
        """The organiser has asked something of a run."""
        with self._lock:
            self._ring.add("run", run, f"run {self._run(run).name or run}: {told}")

    def run_changed(self, run: str, *, rounds: int, told: str) -> None:
        """The organiser changed settings: ``told`` says which, and from when on."""
        with self._lock:
            counters = self._run(run)
            counters.rounds = rounds
            self._ring.add("run", run, f"run {counters.name or run}: {told}")

    def client_seen(self, client: str, *, version: str = "", examples: int | None = None) -> None:
        """A client has shown its version, or how many examples it has. No event."""
        with self._lock:
            counters = self._client(client)
            counters.version = plain(version, 40) or counters.version
            counters.examples = counters.examples if examples is None else examples

    def client_changed(self, client: str, text: str) -> None:
        """Something about a client that is no failure: ``accepted``, ``revoked``, ``is back``."""
        with self._lock:
            if client in self._clients:  # of its former keys: nothing that it was doing goes on
                self._clients[client].doing, self._clients[client].last_error = "idle", ""
        self._ring.add("client", "", f"client {client}: {text}", client=client)

    def refused(self, reason: str, client: str = "", *, count: int = 1) -> None:
        """Requests or updates were refused; ``client`` only if its key was proven."""
        reason, client = plain(reason, 120), plain(client, 80)
        with self._lock:
            reason, tell = self._refusals.add(reason, client, count, self._clock())
        if tell:
            who = f" from {client}" if client else ""
            self._ring.add("refused", "", f"refused {tell:,}{who}: {reason}", client=client, count=tell)

    def error(self, text: str, *, run: str = "", client: str = "") -> None:
        """Something went wrong that a person should know."""
        with self._lock:
            if client:
                self._client(client).last_error = plain(text, MOST_TEXT)
        self._ring.add("error", run, text, client=client)

    def notice(self, text: str, *, run: str = "") -> None:
        """Something a person should know that is no error."""
        self._ring.add("notice", run, text)

    # --- what a run tells -------------------------------------------------------------------------

    def _handle(self, run: str, event: Event) -> None:
        with self._lock:
            counters = self._run(run)
            match event:
                case RunStarted():
                    self._begun(counters, event)
                case Waiting():
                    waits = event.have < event.need
                    self.run_state(run, "waiting" if waits else "running", _lacks(event) if waits else "")
                case WaitingFor():
                    if counters.state == "running":  # while it is "waiting", what it lacks is told already
                        self.run_state(run, "running", _waits_for(event))
                case RoundStarted():
                    counters.asked, counters.accepted, counters.open = event.clients, 0, event.round
                    self._ring.add("round", run, f"round {event.round}: {event.clients} clients are asked")
                case ClientKnown():
                    self.client_seen(event.client, version=event.version, examples=event.examples)
                    client = self._client(event.client)
                    client.doing = "idle"
                    if client.unfit:
                        client.last_error, client.unfit = "", False
                case ClientAsked():
                    what = event.kind if event.kind == "profile" else f"{event.kind} {event.round}"
                    self._client(event.client).doing = what
                case ClientDone():
                    counters.accepted += 1
                    client = self._client(event.client)
                    client.doing, client.last_error, client.unfit = "idle", "", False
                    text = f"round {event.round}: update of {event.client}, {human_bytes(event.bytes_up)}"
                    self._ring.add("client", run, text, client=event.client, round=event.round)
                case ClientFailed():
                    client = self._client(event.client)
                    client.doing, client.last_error = "idle", plain(event.reason, MOST_TEXT)
                    client.unfit = not event.round  # what went wrong before any round is its profile
                    named = event.reason.startswith(f"client {event.client}")
                    reason = event.reason if named else f"client {event.client}: {event.reason}"
                    text = f"{_when(event.round, counters)}: {reason}"
                    self._ring.add("client", run, text, failed=1, client=event.client, round=event.round)
                case Evaluating():
                    counters.asked, counters.accepted, counters.open = 0, 0, event.round
                    self._ring.add("round", run, f"round {event.round}: evaluating")
                case RoundEnded():
                    self._ended(counters, event)
                case Notice():
                    self._ring.add("notice", run, event.text)

    def _begun(self, counters: RunCounters, event: RunStarted) -> None:
        counters.rounds, counters.round = event.rounds, event.done
        if event.done:  # the files' own sums, whatever was restored before
            counters.bytes_up, counters.bytes_down = event.bytes_up, event.bytes_down
        if counters.state in ("queued", "waiting"):
            self.run_state(counters.run, "running")
        done = f"{event.done} of {event.rounds} rounds are done"
        self._ring.add("run", counters.run, f"training begins with {event.clients} clients, {done}")

    def _ended(self, counters: RunCounters, event: RoundEnded) -> None:
        up, down = counters.bytes_up, counters.bytes_down
        counters.count(event.record, event.metric, event.value)
        rows = event.record.clients
        for name, row in counters.uncounted(event.record):
            self._client(name).count(row)
        for client in self._clients.values():  # evaluating ends without a word
            client.doing = "idle"
        measured = f", {event.metric} {number(event.value)}" if finite(event.value) is not None else ""
        went = f", up {human_bytes(counters.bytes_up - up)}, down {human_bytes(counters.bytes_down - down)}"
        accepted = sum(not row.failed for row in rows.values())
        who = f", {accepted} of {len(rows)} clients" if rows else ""
        numbers = {"value": event.value, "seconds": event.record.seconds}
        known = {key: n for key, value in numbers.items() if (n := finite(value)) is not None}
        text = f"round {event.round} of {counters.rounds}{measured}{went}{who}"
        self._ring.add("round", counters.run, text, round=event.round, metric=event.metric, ended=1, **known)

    # --- within -----------------------------------------------------------------------------------

    def _run(self, run: str) -> RunCounters:
        return self._runs.setdefault(run, RunCounters(run, "", 0, self._clock()))

    def _client(self, name: str) -> ClientCounters:
        if name not in self._clients and len(self._clients) >= MOST_CLIENTS:
            return ClientCounters()
        return self._clients.setdefault(name, ClientCounters())


def _when(round: int, counters: RunCounters) -> str:
    """In which round a client failed; a profile belongs to none, and is told with where the run stands."""
    if round:
        return f"round {round}"
    return f"while round {counters.open} is open" if counters.open else f"before round {counters.round + 1}"


def _lacks(event: Waiting) -> str:
    """How many clients are here, and who could come."""
    text = f"{event.have} of the {event.need} clients that a round needs are here"
    text += f", missing: {name_some(event.missing)}" if event.missing else ""
    lack = event.need - event.have - len(event.missing)
    return text + (f"; {lack} more must be enrolled" if lack > 0 else "")


def _waits_for(event: WaitingFor) -> str:
    """Who is waited for, by how it stands with each."""
    if not event.clients:
        return ""
    groups: dict[str, list[str]] = {}
    for client, how in event.clients:
        groups.setdefault(how, []).append(client)
    who = ", ".join(f"{name_some(names)} ({how})" for how, names in sorted(groups.items()))
    what = "evaluation" if event.kind == "evaluate" else "update"
    return f"round {event.round} waits for the {what} of {who}"
