"""ControlService: the organiser's side of a running daemon, for gRPC, the web page and the command line."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from headwater.config import LoadedFederation
from headwater.errors import ConfigError, HeadwaterError
from headwater.protocol.control import AdapterRow, ClientRow, RunRow, RunState, Status, WatchEvent
from headwater.security.enrolment import read_request
from headwater.server.metrics import metric_name
from headwater.server.monitoring.monitor import Monitor
from headwater.server.storage.adapter_versions import Versions
from headwater.server.storage.run_folder import RunFolder
from headwater.server.workspace.registry import ClientRegistry
from headwater.server.workspace.required_inputs import require_inputs
from headwater.server.workspace.run_queue import ENDED, RunEntry, RunQueue
from headwater.server.workspace.steering import (
    PLACES,
    require_known,
    tell_changes,
    tell_stop_request,
    tell_unmet,
)

if TYPE_CHECKING:  # torch and transformers: an idle daemon has neither
    from headwater.server.daemon.run_job import RunJob
    from headwater.training.context import TrainingContext

_NO_RESULT = (
    "it was not at work, so summary, report and adapter/ are not written: "
    "headwater server adapters export has its adapter, and resume then stop writes them"
)


class ControlService:
    """Implements :class:`headwater.protocol.control.Organiser`. Thread-safe; nothing here waits for a round.

    Args:
        book: the runs.
        registry: the clients.
        monitor: what has happened.
        job: the run that the daemon works on, if any.
        keep: how many adapter versions a run keeps.
        wake: tells the daemon that there may be something to do.
    """

    def __init__(
        self,
        book: RunQueue,
        registry: ClientRegistry,
        monitor: Monitor,
        job: Callable[[], RunJob | None],
        *,
        keep: int,
        wake: Callable[[], None],
    ) -> None:
        self._book, self._registry, self._monitor = book, registry, monitor
        self._job, self._keep, self._wake = job, keep, wake
        self._loading = threading.Lock()

    def status(self) -> Status:  # noqa: D102 - the protocol says what each method does
        status = self._monitor.status()
        enrolled = _enrolled(status)
        return replace(status, runs=tuple(self._with_notes(row, enrolled) for row in status.runs))

    def _with_notes(self, row: RunRow, enrolled: int) -> RunRow:
        """The row, with what the organiser has asked for and what cannot be met."""
        if row.state in (*ENDED, "failed") or not self._book.has(row.run):
            return row
        entry = self._book.get(row.run)
        try:
            settings = self._book.settings(entry)
        except HeadwaterError:  # a damaged run folder, which the log has since the daemon's start
            return replace(row, note=tell_stop_request(entry.stop_request, row))
        return replace(
            row, note=tell_stop_request(entry.stop_request, row), warnings=tell_unmet(settings, row, enrolled)
        )

    def watch(  # noqa: D102
        self, after: int = 0, ended: Callable[[], bool] = lambda: False
    ) -> Iterator[WatchEvent]:
        return self._monitor.watch(after, ended)

    # --- runs -------------------------------------------------------------------------------------

    def submit(self, toml: str, folder: Path) -> RunRow:  # noqa: D102
        entry, warnings = self._book.submit(toml, folder)
        self.announce(entry)
        if self._book.settings(entry).cohort.deadline_s is None:
            no_deadline = "there is no cohort.deadline_s: a client that never answers holds its round open"
            self._monitor.notice(no_deadline, run=entry.run)
            warnings = (*warnings, no_deadline)
        self._wake()
        row = self._row(entry.run)
        return replace(row, warnings=(*row.warnings, *warnings))

    def announce(self, entry: RunEntry) -> None:
        """Tell the monitor of a run in the book."""
        rounds = self._book.settings(entry).federation.rounds
        self._monitor.run_queued(entry.run, entry.name, rounds, submitted=entry.submitted)
        if entry.state not in ("queued", "running"):
            self._monitor.run_state(entry.run, entry.state, entry.reason)

    def recall(self, entry: RunEntry, folder: RunFolder, loaded: LoadedFederation) -> None:
        """Tell the monitor what a run had come to: its rounds up to the checkpoint from which it goes on."""
        done = folder.checkpoint_round()
        records = [r for r in folder.read_rounds() if done is None or r.round <= done]
        self._monitor.run_restored(entry.run, records, metric_name(loaded.settings))

    def pause(self, run: str) -> RunRow:  # noqa: D102
        return self._end(run, "paused")

    def stop(self, run: str) -> RunRow:  # noqa: D102
        return self._end(run, "stopped")

    def _end(self, run: str, state: RunState) -> RunRow:
        entry = self._book.get(run)
        if entry.state in ENDED:
            raise ConfigError(
                f"run {entry.run}",
                expected="a run that goes on or waits",
                got=f"one that is {entry.state}",
                hint=self._name_others(entry.run, ("queued", "running", "paused", "failed")),
            )
        job = self._job_of(entry.run)
        if job is None:
            self._set(entry.run, state, "by the organiser")
            job = self._job_of(entry.run)  # it may have begun in between
        if job is not None:
            request: Literal["pause", "stop"] = "pause" if state == "paused" else "stop"
            self._book.request_stop(entry.run, request)
            job.request_stop(request)
            told = tell_stop_request(request, self._monitor_row(entry.run))
            self._monitor.run_told(entry.run, f"{told}, as the organiser asks")
        row = self._row(entry.run)
        if job is None and state == "stopped" and row.round:
            return replace(row, note=_NO_RESULT)
        return row

    def _name_others(self, run: str, states: Collection[RunState]) -> str:
        """A next step that names the runs which the organiser may have meant."""
        others = [e.run for e in self._book.entries() if e.state in states and e.run != run]
        return f"Name the run: {', '.join(others[-5:])}" if others else "See: headwater server status DIR"

    def _job_of(self, run: str) -> RunJob | None:
        """The daemon's work on this run, if that is what it works on."""
        job = self._job()
        return job if job is not None and job.entry.run == run else None

    def resume(self, run: str, folder: Path | None = None) -> RunRow:  # noqa: D102
        entry = self._book.get(run)
        if entry.state in ("queued", "running"):
            told = tell_stop_request(entry.stop_request, self._monitor_row(entry.run))
            raise ConfigError(
                f"run {entry.run}",
                expected="a run that is paused, or has failed, stopped or finished",
                got=f"one that is {entry.state}" + (f" and {told}" if told else ""),
                hint="Resume it then." if told else self._name_others(entry.run, ("paused", "failed")),
            )
        _, loaded = self._book.open(entry.run)
        moved = loaded if folder is None else replace(loaded, folder=folder)
        warnings = require_inputs(moved, f"headwater server resume DIR {entry.run}")
        if folder is not None:
            self._book.move(entry.run, folder)
        self._set(entry.run, "queued", "")
        self._wake()
        row = self._row(entry.run)
        return replace(row, warnings=(*row.warnings, *warnings))

    def change(self, run: str, changes: Mapping[str, str]) -> RunRow:  # noqa: D102
        entry = self._book.get(run)
        before, keys = self._book.settings(entry), tuple(require_known(changes).values())
        after = self._book.settings(self._book.change(entry.run, changes))
        told = tell_changes(before, after, keys, self._monitor_row(entry.run))
        self._monitor.run_changed(entry.run, rounds=after.federation.rounds, told=told)
        row = self._row(entry.run)
        warnings = self._try_places(entry.run) if PLACES.intersection(keys) else ()
        note = "; ".join(filter(None, (told, row.note)))
        # of a run that ended or failed, too: its new settings are there for when it is resumed
        unmet = tell_unmet(after, row, _enrolled(self._monitor.status()))
        return replace(row, note=note, warnings=(*unmet, *warnings))

    def _try_places(self, run: str) -> tuple[str, ...]:
        """What is not where the run's settings say by now; a warning, since it may be put there later."""
        try:
            return require_inputs(self._book.open(run)[1])
        except HeadwaterError as error:
            return (f"the run cannot go on like this: {error}",)

    def _set(self, run: str, state: RunState, reason: str) -> None:
        self._book.set_state(run, state, reason)
        self._monitor.run_state(run, state, reason)

    def _row(self, run: str) -> RunRow:
        return next(row for row in self.status().runs if row.run == run)

    def _monitor_row(self, run: str) -> RunRow:
        return next(row for row in self._monitor.status().runs if row.run == run)

    # --- clients ----------------------------------------------------------------------------------

    def accept(self, request: str) -> ClientRow:  # noqa: D102
        record = self._registry.accept(read_request(request))
        self._monitor.client_changed(record.public.name, "accepted")
        return self._client(record.public.name)

    def revoke(self, client: str) -> ClientRow:  # noqa: D102
        self._registry.revoke(client)
        self._monitor.client_changed(client, "revoked")
        return self._client(client)

    def _client(self, name: str) -> ClientRow:
        return next(row for row in self._monitor.status().clients if row.client == name)

    # --- adapters ---------------------------------------------------------------------------------

    def adapters(self, run: str = "") -> tuple[AdapterRow, ...]:  # noqa: D102
        return self._versions(self._book.get(run).run).rows()

    def export(self, run: str = "", version: int = 0) -> Iterator[bytes]:  # noqa: D102
        entry = self._book.get(run)
        versions, rows = self._versions(entry.run), self.adapters(entry.run)
        if not rows:
            raise ConfigError(
                f"run {entry.run}",
                expected="a run that has an adapter",
                got="one that has none yet",
                hint="The first is there once round 0 is evaluated.",
            )
        chosen = version or next((r.version for r in reversed(rows) if r.best), rows[-1].version)
        versions.pin(chosen)
        card = {"run": entry.run, "version": chosen, "federation": entry.name}
        yield from versions.tar(chosen, self._context(entry.run), card)

    def rollback(self, run: str, version: int) -> AdapterRow:  # noqa: D102
        entry = self._book.get(run)
        _require_nobody_leaving(entry)
        versions = self._versions(entry.run)
        row = next((r for r in versions.rows() if r.version == version), None)
        if row is None or not row.kept:
            raise ConfigError(
                f"run {entry.run}: version {version}",
                expected="a version whose values are still on disk",
                got="one whose values were deleted" if row else "no such version",
                hint="See: headwater server adapters list DIR",
            )
        versions.pin(version)
        self._book.request_rollback(entry.run, version)
        return row

    def forget(self, run: str, client: str) -> AdapterRow:  # noqa: D102
        entry = self._book.get(run)
        settings = self._book.settings(entry)
        if settings.strategy.control_variates or settings.codec.up.shifts:
            raise ConfigError(
                f"run {entry.run}",
                expected="a run whose clients keep no part of a common sum",
                got="strategy.control_variates, or error_feedback 'ef21'",
                hint="Revoke the client, and start a new run from a version without it: adapter.start.",
            )
        self.revoke(client)
        _require_nobody_leaving(entry, client)
        versions = self._versions(entry.run)
        row = versions.newest_without(client)
        if row is None:
            return replace(versions.rows()[-1], note=f"nothing of {client} is in it")
        if entry.leaving == client:  # asked for again: the rounds are added
            return row
        versions.pin(row.version)
        newest = versions.rows()[-1]
        rounds = settings.federation.rounds + newest.round - row.round
        self._book.request_rollback(entry.run, row.version, leaving=client, rounds=rounds)
        told = f"without {client} from version {row.version}; {newest.round - row.round} rounds more"
        self._monitor.run_changed(entry.run, rounds=rounds, told=told)
        return row

    def unpin(self, run: str, version: int) -> AdapterRow:  # noqa: D102
        entry = self._book.get(run)
        if entry.rollback == version:
            raise ConfigError(
                f"run {entry.run}: version {version}",
                expected="a version that the run does not need",
                got="the one that the run is about to go on from",
                hint="Unpin it once headwater server adapters list DIR shows the rollback.",
            )
        versions = self._versions(entry.run)
        versions.unpin(version)
        if entry.state in ENDED and self._job_of(entry.run) is None:
            versions.prune()  # no further round does it
        return next(row for row in versions.rows() if row.version == version)

    def _versions(self, run: str) -> Versions:
        if (job := self._job_of(run)) is not None:
            return job.versions
        folder, _ = self._book.open(run)
        return Versions.of_run(folder.path, self._keep)

    def _context(self, run: str) -> TrainingContext:
        if (job := self._job_of(run)) is not None and job.context is not None:
            return job.context
        from headwater.training.context import TrainingContext

        with self._loading:  # one at a time: a base model may be large
            # the run at work computes with its own threads, on which its last bits depend
            return TrainingContext.open(self._book.open(run)[1], threads=False)


def _require_nobody_leaving(entry: RunEntry, client: str = "") -> None:
    """Raise ``ConfigError`` where the run is about to go on without another client."""
    if entry.leaving not in ("", client):
        raise ConfigError(
            f"run {entry.run}",
            expected=f"a run that has gone on without {entry.leaving}",
            got="one that is about to, once its open round ends",
            hint="Ask again once headwater server adapters list DIR shows it.",
        )


def _enrolled(status: Status) -> int:
    """Devices that may take part."""
    return sum(client.state != "revoked" for client in status.clients)
