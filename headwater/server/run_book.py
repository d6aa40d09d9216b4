"""RunBook: the runs of a server, in the order in which they were submitted; one JSON file."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from headwater.config import LoadedFederation, load_federation
from headwater.config.federation import Federation
from headwater.errors import ConfigError, StorageError
from headwater.files import write_atomically
from headwater.protocol.control import RunState
from headwater.server.run_folder import RunFolder

CHANGEABLE = {
    "rounds": "federation.rounds",
    "deadline_s": "cohort.deadline_s",
    "min_clients": "cohort.min_clients",
    "clients_per_round": "cohort.clients_per_round",
    "target_clients": "cohort.target_clients",
    "retry_s": "cohort.retry_s",
    "every": "evaluation.every",
    "evaluation_deadline_s": "evaluation.deadline_s",
    "patience": "evaluation.patience",
    "buffer": "schedule.buffer",
    "max_staleness": "schedule.max_staleness",
    "staleness_exponent": "schedule.staleness_exponent",
}
"""What an organiser may change between rounds, by its short name."""
Wish: TypeAlias = Literal["", "pause", "stop"]
ENDED: tuple[RunState, ...] = ("finished", "stopped")


@dataclass(frozen=True)
class RunEntry:
    """One run as it stands in the book.

    Args:
        run: its id, ``NAME-N``.
        name: of the federation.
        state: ``waiting`` is never written: it is ``running``.
        reason: why it is paused or failed.
        submitted: Unix seconds.
        changes: the organiser's, by full key; TOML values.
        rollback: the version to go on from; taken between rounds.
        restored: how often it was restored from a backup.
        wish: what is to become of it after its open round; a restart does not forget it.
        again: it failed for want of room, and is tried again by itself.
    """

    run: str
    name: str
    state: RunState
    reason: str
    submitted: float
    changes: Mapping[str, str] = field(default_factory=dict)
    rollback: int | None = None
    restored: int = 0
    wish: Wish = ""
    again: bool = False

    @property
    def known_as(self) -> str:
        """What clients know it as: another run after a restore, since they may be rounds ahead of it.

        No run has such an id, which ends in ``-N``; and a device can make a folder of it.
        """
        return f"{self.run}.{self.restored}" if self.restored else self.run


class RunBook:
    """Thread-safe.

    Args:
        path: the file.
        runs: the folder of the runs' folders.
    """

    def __init__(self, path: Path, runs: Path) -> None:
        self._path, self._runs = path, runs
        self._lock = threading.RLock()
        self._entries: dict[str, RunEntry] = self._load()

    def entries(self) -> tuple[RunEntry, ...]:
        """All runs, the oldest first."""
        with self._lock:
            return tuple(self._entries.values())

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
        hint = "Submit one: headwater server submit DIR FEDERATION.toml"
        raise ConfigError(f"run {run!r}", expected=f"one of the runs ({known})", got="another", hint=hint)

    def submit(self, toml: str, folder: Path) -> RunEntry:
        """Check the federation, make its run folder, and queue it.

        Args:
            toml: the federation file's text.
            folder: where its relative paths start.

        Raises:
            ConfigError: it is wrong, or cannot run on a server.
            StorageError: it cannot be written.
        """
        with self._lock:
            incoming = self._runs / "submitted.toml"
            write_atomically(incoming, toml.encode())
            try:
                loaded = load_federation(incoming, folder=folder)
            finally:
                incoming.unlink(missing_ok=True)
            name = loaded.settings.federation.name
            stem = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.")[:40] or "run"
            number = 1 + sum(e.run.rpartition("-")[0] == stem for e in self._entries.values())
            while (self._runs / f"{stem}-{number}").exists():
                number += 1
            run = f"{stem}-{number}"
            RunFolder.create(self._runs / run, loaded, {"engine": "server"})
            entry = RunEntry(run, name, "queued", "", time.time())
            self._put(entry)
            return entry

    def open(self, run: str) -> tuple[RunFolder, LoadedFederation]:
        """The run's folder and its federation as it was submitted."""
        folder, loaded, _ = RunFolder.open(self._runs / run)
        return folder, loaded

    def begin(self, run: str) -> bool:
        """Write down that the run is worked on; False if it was paused or stopped since it was chosen."""
        with self._lock:
            entry = self.get(run)
            if entry.state not in ("queued", "running", "failed"):
                return False
            self._put(replace(entry, state="running", reason="", again=False))
            return True

    def set_state(self, run: str, state: RunState, reason: str = "", *, again: bool = False) -> RunEntry:
        """Write down how the run stands; what was wished before is done with."""
        with self._lock:
            entry = replace(self.get(run), state=state, reason=reason, again=again, wish="")
            self._put(entry)
            return entry

    def wish_end(self, run: str, wish: Wish) -> RunEntry:
        """Note what is to become of the run after its open round."""
        with self._lock:
            entry = replace(self.get(run), wish=wish)
            self._put(entry)
            return entry

    def change(self, run: str, changes: Mapping[str, str]) -> RunEntry:
        """Change settings from the next round on.

        Raises:
            ConfigError: a key that cannot be changed, or a value that does not fit.
        """
        with self._lock:
            entry = self.get(run)
            full = {CHANGEABLE.get(key, key): value for key, value in changes.items()}
            for key in full:
                if key not in CHANGEABLE.values():
                    raise ConfigError(
                        f"run {entry.run}: {key}",
                        expected=f"one of {', '.join(CHANGEABLE)}",
                        got="another key",
                        hint="What clients train cannot change within a run: submit another.",
                    )
            changed = replace(entry, changes={**entry.changes, **full})
            self.settings(changed)
            self._put(changed)
            return changed

    def settings(self, entry: RunEntry) -> Federation:
        """The run's federation with its changes.

        Raises:
            ConfigError: they do not fit together.
        """
        path = self._runs / entry.run / "federation.toml"
        return load_federation(path, [f"{k}={v}" for k, v in entry.changes.items()]).settings

    def wish_rollback(self, run: str, version: int | None) -> RunEntry:
        """Note the version to go on from; None once it is done."""
        with self._lock:
            entry = replace(self.get(run), rollback=version)
            self._put(entry)
            return entry

    def mark_restored(self) -> None:
        """All runs were put back to an earlier moment: clients are to take them for new ones."""
        with self._lock:
            for entry in self.entries():
                self._put(replace(entry, restored=entry.restored + 1))

    def _put(self, entry: RunEntry) -> None:
        entries = {**self._entries, entry.run: entry}
        text = json.dumps([asdict(e) for e in entries.values()], indent=1)
        write_atomically(self._path, text.encode())
        self._entries = entries

    def _load(self) -> dict[str, RunEntry]:
        if not self._path.exists():
            return {}
        try:
            rows: list[dict[str, Any]] = json.loads(self._path.read_text(encoding="utf-8"))
            return {row["run"]: RunEntry(**row) for row in rows}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StorageError(
                f"{self._path}",
                expected="the list of runs",
                got=str(error),
                hint="Restore it from a backup: headwater server restore.",
            ) from error
