"""The organiser's daemon, ``headwater server run DIR``: :func:`run`.

One process with three ports::

    fleet    TLS              RequestAuthenticator ─ FleetServer   agents; the one port others must reach
    control  mutual TLS       gRPC ─ ControlService                the organiser's commands
    web      loopback, token  web ─ ControlService                 status page, Prometheus

and one thread, this one, that works on the runs, one after the other. All that must last is in the
workspace's files; what Flower holds of it is rebuilt at each start. So a kill at any moment costs at
most what was not yet accepted, and nothing grows with the rounds.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from headwater import __version__
from headwater.config.daemon import split_address
from headwater.config.plugins import SERVER_ALLOWS, allow_only
from headwater.errors import HeadwaterError, StorageError
from headwater.flower.fleet_server import FleetServer
from headwater.proto.control import serve
from headwater.security.certificates import days_left
from headwater.security.signing import PublicIdentity
from headwater.server.agent_port.reply_auth import ReplyVerifier
from headwater.server.agent_port.request_auth import Limits, RequestAuthenticator
from headwater.server.clients.run_control import Interrupted
from headwater.server.daemon.control_service import ControlService
from headwater.server.daemon.listening import EnrolledNodes, listening, register
from headwater.server.daemon.logs import log_to
from headwater.server.http_protocol import fleet_port
from headwater.server.monitoring.counters import ClientFacts
from headwater.server.monitoring.monitor import Monitor
from headwater.server.status_page.app import make_app
from headwater.server.status_page.serve import serving
from headwater.server.storage.run_folder import RunFolder
from headwater.server.workspace.last_seen import EVERY_S, LastSeen
from headwater.server.workspace.registry import ClientRecord, ClientRegistry
from headwater.server.workspace.run_queue import RunEntry, RunQueue
from headwater.server.workspace.workspace import Workspace

if TYPE_CHECKING:  # torch and transformers: not before the first run
    from headwater.server.daemon.run_job import RunJob

LOG = logging.getLogger("headwater.server")
RETRY_AFTER_S = 60.0
"""A run that a full disk stopped is tried again after this long."""
GRACE_S = 15.0
"""A daemon that was told to end and is still at work (evaluating) after this long ends all the same."""
IDLE_POLL_S = 0.25


def run(workspace: Workspace) -> int:
    """Serve until SIGTERM or SIGINT; the exit code, 1 if the fleet port died.

    Raises:
        HeadwaterError: the workspace is not in order, or a port is taken.
    """
    settings = workspace.settings
    allow_only(settings.plugins.allow, SERVER_ALLOWS)
    with (
        workspace.locked(),
        log_to(workspace.log, most_bytes=settings.retention.log_bytes, files=settings.retention.logs),
    ):
        daemon = Daemon(workspace)
        with daemon.serving(), _shutdown_on_signal(daemon):
            LOG.info("headwater %s serves %s, pid %d", __version__, workspace.path, os.getpid())
            for name, address in daemon.addresses.items():
                LOG.info("%s port: %s", name, address)
            for notice in workspace.notices():
                LOG.warning("%s", notice)
            daemon.work()
        LOG.info("ended")
    return 1 if daemon.failed else 0


class Daemon:
    """One start of the daemon.

    Args:
        workspace: open and locked.

    Attributes:
        addresses: of the three ports, once :meth:`serving`.
        failed: whether it ended by itself, for want of a port.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        limits, self._keep = workspace.settings.limits, workspace.settings.retention.adapters
        self._ending, self._awake = threading.Event(), threading.Event()
        self._job: RunJob | None = None
        self._retry_at_s: dict[str, float] = {}
        self.addresses: dict[str, str] = {}
        self.failed = False
        self._fleet: threading.Thread | None = None
        self._registry: ClientRegistry = workspace.registry()
        self._link = FleetServer(
            max_reply_bytes=lambda name: self._job.max_reply_bytes(name) if self._job else 2**20
        )
        self._last_seen, self._noted_s = LastSeen(workspace.last_seen), time.monotonic()
        for record in self._registry.by_name().values():
            self._enrol(record)
        self._registry.on_change(self._enrol)
        self._authenticator = RequestAuthenticator(
            self._link.app,
            self._link,
            self._registry,
            Limits(
                bytes_per_hour=limits.bytes_per_hour,
                requests_at_once=limits.requests_at_once,
                body_s=limits.body_s,
            ),
        )
        certificate, _ = workspace.credentials.server()
        self._monitor = Monitor(
            version=__version__,
            clients=self._facts,
            refused=self._authenticator.refusals,
            certificate_days=lambda: int(days_left(certificate)),
        )
        self._book = RunQueue(workspace.runs_book, workspace.runs)
        self._service = ControlService(
            self._book,
            self._registry,
            self._monitor,
            lambda: self._job,
            keep=self._keep,
            wake=self._awake.set,
        )
        self._door = ReplyVerifier(self._registry, self._monitor.refused)

    def end(self) -> None:
        """End the current job now, at a point where nothing is lost: :meth:`work` returns soon."""
        self._ending.set()
        self._awake.set()

    # --- ports ------------------------------------------------------------------------------------

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Open the three ports; close them at the end.

        Raises:
            ConfigError: one is taken.
        """
        listen, credentials = self._workspace.settings.listen, self._workspace.credentials
        for entry in self._book.entries():
            self._restore(entry)
        certificate, key = credentials.server()
        with ExitStack() as stack:
            host, port = split_address(listen.fleet)
            folder = credentials.folder
            config = fleet_port(
                self._authenticator,
                host=host,
                port=port,
                certificate=folder / "server.pem",
                key=folder / "server.key",
            )
            self._fleet, self.addresses["fleet"] = stack.enter_context(listening(config))
            stack.callback(self.end)  # first of all that ends: then the port may
            control = serve(
                self._service,
                listen.control,
                server_cert=certificate,
                server_key=key,
                ca=credentials.ca(),
            )
            stack.callback(control.stop)
            self.addresses["control"] = control.address
            app = make_app(
                self._service, self._monitor, token=credentials.web_token(), rounds=self._rounds_file
            )
            web = stack.enter_context(serving(app, split_address(listen.web)[1]))
            self.addresses["web"] = f"http://127.0.0.1:{web}"
            stack.callback(self._monitor.close)  # first: it ends those who watch
            yield

    def _rounds_file(self, run: str) -> Path | None:
        path = RunFolder(self._workspace.runs / run).rounds
        return path if path.exists() else None

    def _restore(self, entry: RunEntry) -> None:
        """Tell the monitor of a run of an earlier start."""
        try:
            self._service.announce(entry)
            folder, loaded = self._book.open(entry.run)
            self._service.recall(entry, folder, loaded)
        except HeadwaterError as error:
            self._monitor.error(f"run {entry.run}: {error}", run=entry.run)

    # --- clients ----------------------------------------------------------------------------------

    def _enrol(self, record: ClientRecord) -> None:
        register(self._link, record)

    def _signing_keys(self) -> dict[str, bytes]:
        """By name, of all that may take part."""
        records = self._registry.by_name().items()
        return {name: r.public.signing_key for name, r in records if r.revoked_at is None}

    def _is_enrolled(self, name: str) -> bool:
        # asked of every client many times a second; a node is there exactly as long as its keys
        return self._link.node_of(name) is not None

    def _is_ending(self) -> bool:
        self._note_seen_soon()
        self._registry.refresh()  # the job asks this all the time: what another process revoked counts soon
        if self._fleet is not None and not self._fleet.is_alive():
            LOG.error("the fleet port has died: the daemon ends, to be started again")
            self.failed = True
            self._ending.set()
        return self._ending.is_set()

    def _note_seen_soon(self) -> None:
        """Once in :data:`EVERY_S`: asked many times a second, of up to thousands of clients."""
        if time.monotonic() >= self._noted_s + EVERY_S:
            self._noted_s = time.monotonic()
            self._note_seen()

    def _note_seen(self, *, now: bool = False) -> None:
        clock = time.monotonic()
        seen = {name: self._link.seen(name) for name in self._link.names()}
        self._last_seen.note({name: clock - at for name, at in seen.items() if at is not None}, now=now)

    def _facts(self) -> Iterator[ClientFacts]:
        online, now = self._link.online(), time.monotonic()
        for name, record in self._registry.by_name().items():
            seen = self._link.seen(name)
            age_s = self._last_seen.age_s(name) if seen is None else now - seen
            yield ClientFacts(
                name,
                _fingerprint(record.public),
                revoked=record.revoked_at is not None,
                online=name in online,
                seen_s_ago=age_s,
            )

    # --- runs -------------------------------------------------------------------------------------

    def work(self) -> None:
        """Work on the runs until told to end."""
        try:
            self._work()
        finally:
            self._note_seen(now=True)

    def _work(self) -> None:
        while not self._is_ending():
            entry = self._next()
            if entry is None:
                self._awake.wait(IDLE_POLL_S)
                self._awake.clear()
            else:
                self._do(entry)

    def _next(self) -> RunEntry | None:
        """The oldest run that can go on."""
        now = time.monotonic()
        for entry in self._book.entries():
            goes_on = entry.state in ("queued", "running") or (entry.state == "failed" and entry.again)
            # a disk so full that the book says "running" still must not be tried without a pause
            rests = entry.state != "queued" and now < self._retry_at_s.get(entry.run, now)
            if goes_on and not rests:
                return entry
        return None

    def _do(self, entry: RunEntry) -> None:
        job: RunJob | None = None
        self._retry_at_s.pop(entry.run, None)
        try:
            from headwater.server.daemon.run_job import Network, RunJob

            link = self._link
            network = Network(
                link.grid,
                EnrolledNodes(link),
                self._door,
                link.sessions,
                self._is_enrolled,
                link.names,
                self._workspace.settings.edges,
                self._signing_keys,
            )
            job = self._job = RunJob(
                entry,
                self._book,
                network,
                self._monitor,
                keep=self._keep,
                interrupted=self._is_ending,
                receipt_key=self._workspace.credentials.receipt_key,
            )
            job.run()
        except Interrupted:
            LOG.info("run %s goes on when the daemon is started again", entry.run)
        except StorageError as error:
            self._failed(entry, error, again=True)
            self._retry_at_s[entry.run] = time.monotonic() + RETRY_AFTER_S
        except HeadwaterError as error:
            self._failed(entry, error)
        except Exception as error:  # a defect of ours: the daemon stays, with the other runs
            LOG.exception("run %s", entry.run)
            self._failed(entry, error)
        finally:
            self._job = None

    def _failed(self, entry: RunEntry, error: Exception, *, again: bool = False) -> None:
        code = error.code if isinstance(error, HeadwaterError) else ""
        self._monitor.run_state(entry.run, "failed", str(error), code)
        try:
            stop_requested = bool(self._book.get(entry.run).stop_request)  # then it was to end anyway
            self._book.set_state(entry.run, "failed", str(error), again=again and not stop_requested)
        except StorageError:  # a full disk: the book cannot say so either
            self._retry_at_s[entry.run] = time.monotonic() + RETRY_AFTER_S


_fingerprint = functools.lru_cache(maxsize=2**14)(PublicIdentity.fingerprint)
"""Costs a millisecond, and a status has one for each client."""


@contextmanager
def _shutdown_on_signal(daemon: Daemon) -> Iterator[None]:
    """SIGTERM and SIGINT end the daemon; what it cannot interrupt is left after a while."""

    def end(number: int, frame: FrameType | None) -> None:
        daemon.end()
        timer = threading.Timer(GRACE_S, os._exit, (0,))  # as safe as a kill: nothing depends on an end
        timer.daemon = True
        timer.start()

    old: dict[int, Callable[[int, FrameType | None], object] | int | None] = {
        number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
