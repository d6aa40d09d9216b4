"""The owner's agent: :func:`run_agent` for ``headwater client run``, :class:`Agent` beneath it.

Three threads: the main one waits for a signal, the connection keeper keeps it up, and one fetches,
answers and delivers, a task at a time. No torch, no open port, and nothing that comes over the network
is imported, unpickled or put on ``sys.path``: bytes in, bytes out.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from headwater import __version__
from headwater.client.agent.connection_keeper import ConnectionKeeper, Heartbeats, for_a_person
from headwater.client.agent.data_stamp import RowsRead
from headwater.client.agent.owner_log import OwnerLog, StatusFile
from headwater.client.agent.preflight import missing_paths, read_authority
from headwater.client.agent.task_clock import AgentStopping
from headwater.client.agent.task_handler import TaskHandler, WorkerProtocol
from headwater.client.agent.worker import Worker, WorkerOptions
from headwater.client.masking.masked_sums import MASKS, MaskedSums
from headwater.config.agent import AgentSettings
from headwater.config.plugins import AGENT_ALLOWS, allow_only
from headwater.errors import ConfigError, ConnectionLost, DecodeError, HeadwaterError, Refused, StorageError
from headwater.locks import lock_file, take, take_within

if TYPE_CHECKING:
    from headwater.flower.fleet_client import Delivery

MASKS_KIND = "query.masks"
BUSY_S, IDLE_S, METERED_S = 0.1, 2.0, 30.0
"""Between two questions for a task: right after one, after a while, and after a while on a metered link."""
PAUSED_S = 5.0
"""Between two looks whether a day's cap still holds."""
UNFIT = frozenset({400, 411, 413, 415, 422})
"""With these the server refuses a reply by its size or form: the same bytes will never do."""
KINDS = {"query": "profile", MASKS_KIND: "masks"}
"""What a task is called to the owner, where Flower has another word."""
SHUTDOWN_S = 3.0
"""How long the server may take to hear that the agent ends."""


class Connection(Heartbeats, Protocol):
    """What an agent needs of :class:`headwater.flower.fleet_client.FleetClient`.

    Heartbeats may come from any thread at any time, everything else from one at a time.
    """

    def deactivate(self) -> None:
        """Deactivate this device at the server."""

    def receive(self) -> Delivery | None:
        """The next message, if there is one."""

    def reply(self, delivery: Delivery, data: bytes) -> None:
        """Answer it; safe to call again."""


class Handler(Protocol):
    """What an agent needs of whoever answers: :class:`TaskHandler`, or an edge aggregator's."""

    @property
    def metered(self) -> bool:
        """Whether to ask the server less often."""

    @property
    def rows(self) -> RowsRead | None:
        """The owner's rows that are in memory."""

    def answer(self, parts: Mapping[str, bytes]) -> bytes:
        """The signed reply to one delivery."""

    def instead_of(self, signed: bytes, status: int, reason: str) -> bytes | None:
        """What to say in place of a reply that the server refuses."""

    def count(self, size: int) -> None:
        """Count the bytes of a message."""

    def paused(self) -> str | None:
        """Why nothing should be fetched now, if so."""

    def rest(self) -> None:
        """Give memory back, where nothing is to be done for long."""

    def recheck(self, doing: Callable[[str], None] = ...) -> None:
        """Check what may have changed."""


class Agent:
    """Fetches, answers and delivers until stopped.

    Args:
        connection: to the server.
        handler: answers.
        say: takes a line for the owner's log.
        stop: ends everything within seconds.
        status: for ``headwater client status``.
        draw: uniform on (0, 1).
    """

    def __init__(
        self,
        connection: Connection,
        handler: Handler,
        say: Callable[[str], None],
        stop: threading.Event,
        status: StatusFile,
        *,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._connection_lock = threading.Lock()
        self.connection_keeper = ConnectionKeeper(connection, say, stop, self._connection_lock, draw=draw)
        self._connection, self._handler, self._say = connection, handler, say
        self._stop, self._status, self._draw = stop, status, draw
        self._undelivered: tuple[Delivery, bytes] | None = None
        self._longest_s = METERED_S if handler.metered else IDLE_S
        self._idle_s = BUSY_S
        self._paused = ""

    def run(self) -> None:
        """Until ``stop`` is set; returns within seconds of it."""
        threads = [
            threading.Thread(
                target=self.connection_keeper.run, args=(self._contact,), daemon=True, name="connection"
            ),
            threading.Thread(target=self._loop, daemon=True, name="loop"),
        ]
        for thread in threads:
            thread.start()
        while not self._stop.wait(1.0):  # in steps: a signal's handler runs between them
            pass
        self.connection_keeper.wake()
        threads[1].join(SHUTDOWN_S)  # it ends the worker, and delivers what is finished
        if self.connection_keeper.up.is_set():
            leaving = threading.Thread(target=self._leave, daemon=True)
            leaving.start()
            leaving.join(SHUTDOWN_S)

    def _leave(self) -> None:
        self._connection_lock.acquire(
            timeout=SHUTDOWN_S / 2
        )  # a download may hold it: then in the middle of that
        with contextlib.suppress(HeadwaterError):  # the server notices by itself, later
            self._connection.deactivate()

    def _contact(self) -> None:
        self._status.contact(self.connection_keeper.state)

    def _loop(self) -> None:
        self._work()
        if self._undelivered is not None and self.connection_keeper.up.is_set():
            # a finished update counts, also of a device that goes; after a restart the outbox has it
            try:
                self._deliver(*self._undelivered)
            except HeadwaterError as error:
                self._say(f"a finished reply stays here, the server did not take it: {error}")
        self._status.doing("nothing")

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                if self.connection_keeper.up.wait(0.5):
                    self._step()
                else:
                    self._status.note(self.connection_keeper.state, self.connection_keeper.again)
                    if self._undelivered is not None:
                        self._status.doing("keeps a finished reply for the server until it is reached")
                    self._handler.recheck(self._status.doing)
            except AgentStopping:
                return
            except (ConnectionLost, Refused) as error:
                self.connection_keeper.lost(error)
            except HeadwaterError as error:
                self._say(str(error))
                self._stop.wait(10 + 10 * self._draw())
            except Exception:  # an agent that is forgotten must not end of one bad message
                self._say("a fault in the agent: " + traceback.format_exc().replace("\n", " | "))
                self._stop.wait(30 + 30 * self._draw())

    def _step(self) -> None:
        """Deliver what waits, else fetch and answer one task, else wait a little."""
        if self._undelivered is not None:
            self._deliver(*self._undelivered)
            return
        self._handler.rest()
        self._status.rows(self._handler.rows)
        self._handler.recheck(self._status.doing)
        if (reason := self._handler.paused()) is not None:
            if reason.split(":")[0] != self._paused:
                self._paused = reason.split(":")[0]
                self._say(f"{reason}; nothing more is fetched today")
            self._stop.wait(PAUSED_S)
            return
        self._paused = ""
        with self._connection_lock:
            delivery = self._connection.receive()
        if delivery is None:
            self._rest(self._idle_s * (0.5 + 0.5 * self._draw()))
            self._idle_s = min(self._longest_s, self._idle_s * 1.5)
            return
        self._idle_s = BUSY_S
        self._status.task(KINDS.get(delivery.kind, delivery.kind))
        data = self._handler.answer(delivery.parts)
        self._status.rows(self._handler.rows)
        self._undelivered = replace(delivery, parts={}), data

    def _rest(self, seconds: float) -> None:
        """Wait, in steps: what the owner mends meanwhile is noticed, on a metered link too."""
        ends = time.monotonic() + seconds
        while not self._stop.is_set() and (left := ends - time.monotonic()) > 0:
            self._stop.wait(min(left, PAUSED_S))
            self._handler.recheck(self._status.doing)

    def _deliver(self, delivery: Delivery, data: bytes) -> None:
        """Send a reply; keep it if the connection is at fault, drop it if this message is over.

        One that the server refuses by its size or form gives way to a failure that says so: the server
        waits for something. What the reply carried returns to the residual with the next task, which
        names the last update that was accepted, as after any other refusal.
        """
        what = KINDS.get(delivery.kind, delivery.kind)
        self._handler.count(len(data))
        try:
            with self._connection_lock:
                self._connection.reply(delivery, data)
        except Refused as error:
            if for_a_person(error):
                raise
            if (
                error.status in UNFIT
                and (failure := self._handler.instead_of(data, error.status, error.got)) is not None
            ):
                self._undelivered = delivery, failure
                return
            self._say(f"{what}: the server does not want the reply any more: {error}")
        except DecodeError as error:  # again would be the same for ever; the outbox has it if it is asked for
            self._say(f"{what}: what the server answered to the reply cannot be read: {error}")
        else:
            self._say(f"{what}: answered, {len(data):,} bytes")
        self._undelivered = None
        self._status.doing("idle")


def run_agent(settings: AgentSettings, make: Callable[[WorkerOptions], WorkerProtocol] = Worker) -> int:
    """Run the agent until SIGTERM or Ctrl-C.

    Args:
        settings: the owner's file.
        make: the worker; by default a child process.

    Raises:
        ConfigError: no keys, no CA file, or a name other than the keys'.
        StorageError: another agent uses the same state folder, or it cannot be written.
    """
    from headwater.flower.fleet_client import FleetClient
    from headwater.security.signing import Identity

    file, state = settings.file, settings.state
    ca = read_authority(settings.ca)
    if not (state / "keys").is_dir():
        raise ConfigError(
            f"keys {state / 'keys'}",
            expected="this device's keys",
            got="nothing there",
            hint="Make them with: headwater client enroll CONFIG",
        )
    identity = Identity.load(state / "keys")
    if identity.name != file.name:
        raise ConfigError(
            "name", expected=f"{identity.name!r}, for which the keys were made", got=repr(file.name)
        )
    allow_only(file.plugins.allow, AGENT_ALLOWS)
    with only_agent(state):
        sweep(state)
        log = OwnerLog(state / "agent.log")
        stop = stop_on_signal()
        options = WorkerOptions(
            name=file.name,
            data=str(settings.data),
            state=str(state),
            threads=file.policy.threads,
            nice=file.policy.nice,
            memory_mb=file.policy.memory_mb,
            simulated_memory_mb=file.simulated_memory_mb,
            policy=file.policy.model_dump(),
            plugins=tuple(file.plugins.allow),
        )
        worker = make(options)
        public = identity.public.signing_key
        masks = MaskedSums(file.name, public, identity.sign_sum, state / MASKS)
        handler = TaskHandler(
            settings, worker, identity.sign_reply, log.say, should_stop=stop.is_set, masks=masks
        )
        connection = FleetClient(file.server, ca, identity, version=__version__)
        status = StatusFile(state / "status.json", file.server, settings.sha256)
        log.say(f"agent {__version__} of {file.name} for {file.server}, process {os.getpid()}")
        for line in missing_paths(settings):
            log.say(line)
        try:
            Agent(connection, handler, log.say, stop, status).run()
        finally:
            worker.close()
            status.note("ended")
        log.say("ended")
    return 0


_PREDECESSOR_S = 2.0
"""How long an agent may take to end, and `status` to look, before another finds the folder in use."""


@contextlib.contextmanager
def only_agent(state: Path) -> Iterator[None]:
    """Hold the state folder for this process.

    Raises:
        StorageError: another agent has it, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            state.mkdir(parents=True, exist_ok=True, mode=0o700)
            state.chmod(0o700)  # enrolling may have made it: updates that wait in it are nobody else's
            handle = stack.enter_context(lock_file(state / "lock"))
        except OSError as error:
            got = error.strerror or str(error)
            raise StorageError(
                f"state folder {state}", expected="a folder that can be written", got=got
            ) from None
        if not take_within(handle, _PREDECESSOR_S):
            raise StorageError(
                f"state folder {state}",
                expected="no other agent that uses it",
                got="one that runs",
                hint="End that one, or give this one a state folder and keys of its own.",
            )
        yield


def is_running(state: Path) -> bool:
    """Whether an agent holds this state folder."""
    try:
        with (state / "lock").open() as file:
            return not take(file.fileno(), shared=True)
    except FileNotFoundError:
        return False


def sweep(state: Path) -> None:
    """Remove what writers left that were killed in the middle."""
    for path in state.rglob(".*.tmp"):
        with contextlib.suppress(OSError):
            path.unlink()


def stop_on_signal() -> threading.Event:
    """An event that SIGTERM and Ctrl-C set."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    return stop
