"""Follower: what a run on a local network shows and decides, from the daemon's status and events.

A daemon waits for clients for ever, since an organiser may wait for them for weeks. Here all of them are
processes of this machine: one whose agent has ended or is silent is lost, and a round that cannot end ends
the run, as with the other engines.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from headwater.config import LoadedFederation
from headwater.config.federation import Federation
from headwater.errors import (
    ConfigError,
    ConnectionLost,
    FederationStopped,
    HeadwaterError,
    StorageError,
)
from headwater.protocol.control import RunRow, Status, WatchEvent
from headwater.protocol.failures import how_ended
from headwater.server.clients.handshake import name_reasons
from headwater.server.events import (
    ClientAsked,
    ClientDone,
    ClientFailed,
    Evaluating,
    Notice,
    Observer,
    RoundEnded,
    RoundStarted,
    RunStarted,
    Waiting,
)
from headwater.server.metrics import metric_name
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.network import LocalNetwork

POLL_S = 0.3
SILENT_S = 120.0
"""An agent of this machine that the daemon has not heard of for so long is lost."""
EVENT_S = 5.0
"""So long the event of a failed run may come after its row."""
RESTARTS = 2
"""An agent that ends by itself is started again so often."""
ENDED = ("finished", "stopped", "failed", "paused")


def held(settings: Federation) -> dict[str, str]:
    """What holds a run back while it is above the number of clients: settings by short name, as they are.

    ``min_clients``, and what may not be below it.
    """
    cohort, schedule = settings.cohort, settings.schedule
    found = {"min_clients": cohort.min_clients, "target_clients": cohort.target_clients}
    if not settings.privacy.noised:  # with noise a round may ask fewer, and never more than there are
        found["clients_per_round"] = cohort.clients_per_round
    found["buffer"] = schedule.buffer
    return {name: str(value) for name, value in found.items() if value is not None}


class Follower:
    """One run from its submission to its end.

    Args:
        network: daemon and agents.
        run: id of the run.
        loaded: the federation.
        observer: is told what happens.
        should_stop: asked often; True ends the run after the open round.

    Attributes:
        lost: who cannot take part any more: refused before the first round, or without an agent; and why.
    """

    def __init__(
        self,
        network: LocalNetwork,
        run: str,
        loaded: LoadedFederation,
        observer: Observer,
        should_stop: Callable[[], bool],
    ) -> None:
        self._network, self._run, self._loaded = network, run, loaded
        self._observer, self._should_stop = observer, should_stop
        self._least = loaded.settings.cohort.min_clients
        self._held = held(loaded.settings)
        self._folder = RunFolder(network.run_folder(run))
        self._events: queue.Queue[WatchEvent] = queue.Queue()
        self._ended = threading.Event()
        self._stopping = False
        self._told = -1  # the last round that the observer knows to have ended
        self._open = 0
        self._evaluating = False
        self._assembled = False
        self._failure_told, self._code = False, ""  # whether the run's failure was told, and its error's code
        self._known: set[str] = set()
        self._missing: tuple[str, ...] = ()
        self.lost: dict[str, str] = {}
        self._failed: dict[int, dict[str, str]] = {}
        self._asked: set[tuple[str, str]] = set()
        self._seen_s: dict[str, float] = {}
        self._restarts: dict[str, int] = {}
        self._began_s = time.monotonic()

    def hold(self) -> None:
        """Let no round begin before :meth:`follow` has seen every client."""
        self._change(dict.fromkeys(self._held, str(len(self._network.agents) + 1)))

    def follow(self) -> None:
        """Until the run has ended, is paused as asked, cannot go on, or the daemon got the same signal.

        Raises:
            FederationStopped: too few clients are left, the daemon ended, or the run failed.
            StorageError: it failed for want of a disk.
        """
        done = self._folder.checkpoint_round()  # a line without its checkpoint is made again
        self._told = -1 if done is None else done
        settings = self._loaded.settings.federation
        self._observer(RunStarted(settings.rounds, max(self._told, 0), len(self._network.agents)))
        reader = threading.Thread(target=self._read, daemon=True, name="events")
        reader.start()
        try:
            while True:
                if self._ended_with_us():
                    self._tell_rounds()
                    return
                status = self._status()
                if status is not None and self._step(status):
                    return
                time.sleep(POLL_S)
        finally:
            self._ended.set()
            reader.join(5)

    def _step(self, status: Status) -> bool:
        """One look; whether the run is over."""
        row = next(r for r in status.runs if r.run == self._run)
        self._take_stop(row)
        self._drain()
        self._tell_rounds()
        if row.state in ENDED:
            if row.state == "failed":
                self._await_failure()
                stopped = StorageError if self._code == StorageError.code else FederationStopped
                raise stopped(
                    f"run {self._run}",
                    expected="it to go on",
                    got=row.reason.rstrip("."),
                    hint="Mend it, then --resume.",
                )
            return True
        self._look_at_agents(status)
        if self._assembled:
            self._tell_open(row, status)
            self._require_enough(row)
        else:
            self._assemble(status)
        return False

    def _await_failure(self) -> None:
        """Wait a moment for the event that says with which code the run failed; the row only has the text."""
        ends_s = time.monotonic() + EVENT_S
        while not self._failure_told and time.monotonic() < ends_s:
            time.sleep(0.05)
            self._drain()

    # --- the daemon -------------------------------------------------------------------------------

    def _read(self) -> None:
        """Events into the queue, in a thread of its own."""
        try:
            with self._network.control() as control:
                for event in control.watch(-1, self._ended.is_set):
                    self._events.put(event)
        except HeadwaterError as error:
            if not self._ended.is_set():
                self._observer(Notice(f"events of the daemon: {error}"))

    def _status(self) -> Status | None:
        """None where it did not answer this time."""
        try:
            with self._network.control() as control:
                return control.status()
        except ConnectionLost:
            return None

    def _change(self, changes: dict[str, str]) -> None:
        with self._network.control() as control:
            control.change(self._run, changes)

    def _ended_with_us(self) -> bool:
        """Whether the daemon got the same signal: systemd and Slurm signal all processes of a job.

        Raises:
            FederationStopped: it ended otherwise.
        """
        daemon = self._network.daemon
        if daemon.alive:
            return False
        if self._should_stop() and daemon.process is not None and daemon.process.returncode == 0:
            return True
        raise FederationStopped(
            "daemon", expected="to live as long as the run", got="its end", hint=daemon.tail()
        )

    def _take_stop(self, row: RunRow) -> None:
        if not self._should_stop() or self._stopping or row.state in ENDED:
            return
        self._stopping = True
        try:
            with self._network.control() as control:
                control.pause(self._run)
        except ConfigError as error:  # it ended at this moment
            self._observer(Notice(str(error)))
        except ConnectionLost:
            self._stopping = False  # at the next look

    # --- clients ----------------------------------------------------------------------------------

    def _assemble(self, status: Status) -> None:
        """Let the first round begin once every client has said what it has, or is lost."""
        names = set(self._network.agents)
        # the daemon knows a version from the client's answer to this start of it
        self._known = {c.client for c in status.clients if c.version} & names - self.lost.keys()
        missing = tuple(sorted(names - self._known - self.lost.keys()))
        if missing != self._missing:
            self._missing = missing
            self._observer(Waiting(len(self._known), len(self._known) + len(missing), missing))
        if missing:
            return
        if len(self._known) < self._least:
            raise FederationStopped(
                "federation",
                expected=f"at least {self._least} clients that can take part",
                got=f"{len(self._known)}{name_reasons(sorted(self.lost.items()))}",
                hint="Mend what is wrong with them, then --resume.",
            )
        self._assembled = True
        self._change(self._held)

    def _look_at_agents(self, status: Status) -> None:
        """Start an agent again that ended; one that does not stay, or is silent, is lost."""
        now, online = time.monotonic(), {c.client for c in status.clients if c.state == "online"}
        for name, agent in self._network.agents.items():
            if name in self.lost:
                continue
            if name in online:
                self._seen_s[name] = now
            if not agent.alive:
                code = agent.process.returncode if agent.process is not None else None
                how = "before it had begun" if code is None else how_ended(code)
                if self._restarts.get(name, 0) >= RESTARTS:
                    self._give_up(name, f"its agent ended, {how}: {agent.tail(3)}")
                    continue
                self._restarts[name] = self._restarts.get(name, 0) + 1
                self._observer(Notice(f"the agent of {name} ended, {how}: it is started again"))
                agent.start()
            elif now - self._seen_s.get(name, self._began_s) > SILENT_S:
                self._give_up(name, f"its agent has not been heard of for {SILENT_S:.0f} s")

    def _give_up(self, name: str, reason: str) -> None:
        self.lost[name] = reason
        self._failed.setdefault(self._open, {})[name] = reason
        self._observer(ClientFailed(self._open, name, reason))
        with self._network.control() as control:
            control.revoke(name)

    def _require_enough(self, row: RunRow) -> None:
        """End the run where the open round can no longer get the updates that it needs.

        Raises:
            FederationStopped: says whose are missing.
        """
        failed = {**self._failed.get(self._open, {}), **self.lost}
        if not row.asked or len(set(self._network.agents) - failed.keys()) >= self._least:
            return
        raise FederationStopped(
            f"round {self._open}",
            expected=f"at least {self._least} updates",
            got=f"{row.accepted}{name_reasons(sorted(failed.items()))}",
            hint=f"The state after round {self._open - 1} is kept: mend the clients, then --resume, "
            "or mend the file and start anew.",
        )

    # --- what the observer is told ----------------------------------------------------------------

    def _drain(self) -> None:
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return
            if event.run == self._run and "state" in event.data:
                self._failure_told = event.data["state"] == "failed"
                self._code = str(event.data.get("code", ""))
            client, number = event.data.get("client"), event.data.get("round", 0)
            if event.kind != "client" or event.run != self._run or not isinstance(client, str) or not client:
                continue
            number = int(number)
            if event.data.get("failed"):
                reason = event.text.removeprefix(f"round {number}: ")
                self._failed.setdefault(number, {})[client] = reason
                if not self._assembled:
                    self.lost[client] = reason
                self._observer(ClientFailed(number, client, reason))
            elif "round" in event.data:
                self._failed.get(number, {}).pop(client, None)
                self._observer(ClientDone(number, client, 0))

    def _tell_rounds(self) -> None:
        metric = metric_name(self._loaded.settings)
        for record in self._folder.read_rounds():
            if record.round > self._told:
                self._told, self._evaluating = record.round, False
                self._failed.pop(self._told, None)
                self._observer(RoundEnded(self._told, record, metric, record.deciding(metric)))

    def _tell_open(self, row: RunRow, status: Status) -> None:
        if row.asked and self._open <= self._told:
            self._open, self._asked = self._told + 1, set()
            self._observer(RoundStarted(self._open, row.asked))
        if self._open > self._told and not row.asked and not self._evaluating:
            self._evaluating = True
            self._observer(Evaluating(self._open))
        for client in status.clients:
            kind, _, number = client.doing.partition(" ")
            if number and (client.client, client.doing) not in self._asked:
                self._asked.add((client.client, client.doing))
                self._observer(ClientAsked(int(number), client.client, kind, 0))
