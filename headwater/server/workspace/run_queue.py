"""RunQueue: the runs of a server, in the order in which they were submitted; one JSON file."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from headwater.config import LoadedFederation, load_federation
from headwater.config.federation import Federation
from headwater.config.traits import TrackerTraits
from headwater.errors import ConfigError, StorageError
from headwater.files import write_atomically
from headwater.protocol.control import RunState
from headwater.server.storage.run_folder import RunFolder
from headwater.server.workspace.required_inputs import require_inputs
from headwater.server.workspace.steering import CHANGEABLE, PLACES, require_known, require_promised

StopRequest: TypeAlias = Literal["", "pause", "stop"]
ENDED: tuple[RunState, ...] = ("finished", "stopped")
_MOST_RESOLVED = 64
"""Runs whose settings are held: a status asks for those of every run that goes on."""

_IN_FILE = {"stop_request": "wish"}
"""Fields that the file has under other names: its format outlives the names in the code."""
_IN_CODE = {name: field for field, name in _IN_FILE.items()}


@dataclass(frozen=True)
class RunEntry:
    """One run and its state in the file.

    Args:
        run: its id, ``NAME-N``.
        name: of the federation.
        state: ``waiting`` is never written: it is ``running``.
        reason: why it is paused or failed.
        submitted: Unix seconds.
        changes: the organiser's, by full key; TOML values.
        rollback: the version to go on from; taken between rounds.
        restored: how often it was restored from a backup.
        stop_request: whether it pauses or stops after its open round; a restart does not forget it.
        again: it failed for want of room, and is tried again by itself.
        folder: where its file's relative paths start by now, relative to the server's folder where it
            lies within; as it was submitted, if empty.
        leaving: the client for whose sake it goes back to ``rollback``; empty of any other reason.
    """

    run: str
    name: str
    state: RunState
    reason: str
    submitted: float
    changes: Mapping[str, str] = field(default_factory=dict)
    rollback: int | None = None
    restored: int = 0
    stop_request: StopRequest = ""
    again: bool = False
    folder: str = ""
    leaving: str = ""

    @property
    def wire_run_id(self) -> str:
        """What clients know it as: another run after a restore, since they may be rounds ahead of it.

        No run has such an id, which ends in ``-N``; and a device can make a folder of it.
        """
        return f"{self.run}.{self.restored}" if self.restored else self.run


class RunQueue:
    """Thread-safe.

    Args:
        path: the file.
        runs: the folder of the runs' folders.
    """

    def __init__(self, path: Path, runs: Path) -> None:
        self._path, self._runs = path, runs
        self._lock = threading.RLock()
        self._entries: dict[str, RunEntry] = self._load()
        self._resolved: dict[str, tuple[RunEntry, Federation]] = {}

    def entries(self) -> tuple[RunEntry, ...]:
        """All runs, the oldest first."""
        with self._lock:
            return tuple(self._entries.values())

    def has(self, run: str) -> bool:
        """Whether there is a run of this id."""
        with self._lock:
            return run in self._entries

    def get(self, run: str) -> RunEntry:
        """The run of this id; the latest, if it is empty.

        Raises:
            ConfigError: there is none.
        """
        with self._lock:
            if not run and self._entries:
                return next(reversed(self._entries.values()))
            if run in self._entries:
                return self._entries[run]
            known = ", ".join(list(self._entries)[-5:]) or "none yet"
        if not self._entries:
            raise ConfigError(
                f"run {run}" if run else "run",
                expected="a run that was submitted",
                got="none yet",
                hint="Submit one: headwater server submit DIR FEDERATION.toml",
            )
        raise ConfigError(
            f"run {run!r}", expected=f"one of the latest runs, {known}, or an earlier one", got="no such run"
        )

    def submit(self, toml: str, folder: Path) -> tuple[RunEntry, tuple[str, ...]]:
        """Check the federation, make its run folder, and queue it.

        Args:
            toml: the federation file's text.
            folder: where its relative paths start.

        Returns:
            The run, and what may fail later, one sentence each.

        Raises:
            ConfigError: it is wrong, or cannot run on a server.
            ModelError, DataError: the base model or the test file is not there.
            StorageError: it cannot be written.
        """
        with self._lock:
            incoming = self._runs / "submitted.toml"
            write_atomically(incoming, toml.encode())
            try:
                loaded = load_federation(incoming, folder=folder, name="federation file")
            finally:
                incoming.unlink(missing_ok=True)
            warnings = require_inputs(loaded)
            name = loaded.settings.federation.name
            stem = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.")[:40] or "run"
            number = 1 + sum(e.run.rpartition("-")[0] == stem for e in self._entries.values())
            while (self._runs / f"{stem}-{number}").exists():
                number += 1
            run = f"{stem}-{number}"
            origin = {"engine": "server", "folder": self._kept(loaded.folder, self._runs / run)}
            RunFolder.create(self._runs / run, loaded, origin)
            entry = RunEntry(run, name, "queued", "", time.time())
            self._put(entry)
            return entry, warnings

    def _kept(self, folder: Path, start: Path) -> str:
        """``folder`` as it is written down: relative to ``start`` if it lies within the server's folder."""
        server = self._runs.parent.resolve()
        inside = folder.resolve().is_relative_to(server)
        return os.path.relpath(folder.resolve(), start.resolve()) if inside else str(folder)

    def open(self, run: str) -> tuple[RunFolder, LoadedFederation]:
        """The run's folder and its federation as it was submitted, but for where model and test file lie."""
        entry = self.get(run)
        folder, loaded, _ = RunFolder.open(self._runs / entry.run)
        start = (self._runs.parent / entry.folder).resolve() if entry.folder else loaded.folder
        places = [f"{key}={value}" for key, value in entry.changes.items() if key in PLACES]
        file = folder.path / "federation.toml"
        moved = load_federation(file, places, folder=start, trackers=False)
        return folder, replace(moved, start_file=loaded.start_file, run=loaded.run)

    def trackers(self, run: str) -> tuple[TrackerTraits, ...]:
        """The run's trackers, as its ``federation.toml`` has them now.

        Raises:
            ConfigError: there is no such kind, or the server's owner does not allow it.
        """
        file = self._runs / self.get(run).run / "federation.toml"
        return load_federation(file, name=f"run {run}").trackers

    def move(self, run: str, folder: Path) -> RunEntry:
        """From now on the run's relative paths start at ``folder``."""
        with self._lock:
            entry = replace(self.get(run), folder=self._kept(folder, self._runs.parent))
            self._put(entry)
            return entry

    def begin(self, run: str) -> bool:
        """Write down that the run is worked on; False if it was paused or stopped since it was chosen."""
        with self._lock:
            entry = self.get(run)
            if entry.state not in ("queued", "running", "failed"):
                return False
            self._put(replace(entry, state="running", reason="", again=False))
            return True

    def set_state(self, run: str, state: RunState, reason: str = "", *, again: bool = False) -> RunEntry:
        """Write the run's state down; a pending request to pause or stop is cleared."""
        with self._lock:
            entry = replace(self.get(run), state=state, reason=reason, again=again, stop_request="")
            self._put(entry)
            return entry

    def request_stop(self, run: str, request: StopRequest) -> RunEntry:
        """Note what is to become of the run after its open round."""
        with self._lock:
            entry = replace(self.get(run), stop_request=request)
            self._put(entry)
            return entry

    def change(self, run: str, changes: Mapping[str, str]) -> RunEntry:
        """Change settings from the next round on.

        Raises:
            ConfigError: a key that cannot be changed, or a value that does not fit.
        """
        with self._lock:
            changed = self._changed(self.get(run), changes)
            self._put(changed)
            return changed

    def _changed(self, entry: RunEntry, changes: Mapping[str, str]) -> RunEntry:
        known = require_known(changes)
        if unknown := sorted(changes.keys() - known.keys()):
            raise ConfigError(
                f"run {entry.run}: {unknown[0]}",
                expected=f"one of the settings that may change within a run: {', '.join(CHANGEABLE)}",
                got="another setting",
                hint="To train something else, submit another federation.",
            )
        full = {known[key]: value for key, value in changes.items()}
        changed = replace(entry, changes={**entry.changes, **full})
        settings = self.settings(changed)
        if "cohort.min_clients" in full:
            require_promised(f"run {entry.run}", self.settings(replace(entry, changes={})), settings)
        return changed

    def settings(self, entry: RunEntry) -> Federation:
        """The run's federation with its changes.

        Raises:
            ConfigError: they do not fit together.
        """
        with self._lock:
            before, settings = self._resolved.get(entry.run, (None, None))
            if settings is None or before is None or before.changes != entry.changes:
                path = self._runs / entry.run / "federation.toml"
                changes = [f"{k}={v}" for k, v in entry.changes.items()]
                settings = load_federation(path, changes, name=f"run {entry.run}", trackers=False).settings
                self._resolved[entry.run] = entry, settings
                while len(self._resolved) > _MOST_RESOLVED:
                    del self._resolved[next(iter(self._resolved))]
            return settings

    def request_rollback(
        self, run: str, version: int | None, *, leaving: str = "", rounds: int | None = None
    ) -> RunEntry:
        """Note the version to go on from, the client that leaves and all rounds then, in one write.

        None for the version once it is done; None for the rounds leaves them.
        """
        with self._lock:
            entry = replace(self.get(run), rollback=version, leaving=leaving)
            if rounds is not None:
                entry = self._changed(entry, {"rounds": str(rounds)})
            self._put(entry)
            return entry

    def mark_restored(self) -> None:
        """All runs were put back to an earlier moment: clients are to take them for new ones."""
        with self._lock:
            for entry in self.entries():
                self._put(replace(entry, restored=entry.restored + 1))

    def _put(self, entry: RunEntry) -> None:
        entries = {**self._entries, entry.run: entry}
        text = json.dumps([_renamed(asdict(e), _IN_FILE) for e in entries.values()], indent=1)
        write_atomically(self._path, text.encode())
        self._entries = entries

    def _load(self) -> dict[str, RunEntry]:
        if not self._path.exists():
            return {}
        try:
            rows: list[dict[str, Any]] = json.loads(self._path.read_text(encoding="utf-8"))
            return {row["run"]: RunEntry(**_renamed(row, _IN_CODE)) for row in rows}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StorageError(
                f"{self._path}",
                expected="the list of runs",
                got=str(error),
                hint="Restore it from a backup: headwater server restore.",
            ) from error


def _renamed(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in row.items()}
