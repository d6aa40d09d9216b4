"""RunFolder: the one folder that a run writes, and the checkpoint in it.

::

    adapter/          the result; loads with PeftModel.from_pretrained
    receipts/         one signed receipt per committed round: see headwater/receipts/
    federation.toml   the resolved federation file, with its hash
    rounds.jsonl      one line per round, from round 0 (before training)
    privacy.jsonl     what was released with noise, which nothing shortens; only with noise in [privacy]
    summary.json      written at the end
    report.html       written at the end
    state/            what --resume needs: checkpoint, origin, what the clients keep, a lock
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.config import LoadedFederation, load_federation
from headwater.errors import ConfigError, StorageError
from headwater.files import (
    append_line,
    clear_temporaries,
    each_line,
    is_temporary,
    make_folder,
    start_of,
    write_atomically,
)
from headwater.locks import lock_file, take, take_within
from headwater.server.round_record import RoundRecord
from headwater.text import json_safe

if TYPE_CHECKING:  # torch: who only reads a run needs none
    from headwater.adapters.start.start import Start

_MOST_HEAD = 100 << 20
"""Bytes of a safetensors file's head, as its own readers have it."""
_LOOKED_AT_S = 0.2
"""So long whoever wants a folder tries for it: :func:`in_use` holds its lock for an instant."""


@dataclass(frozen=True)
class RunFolder:
    """Paths and whole-file writes of a run."""

    path: Path

    @property
    def adapter(self) -> Path:
        """The exported adapter."""
        return self.path / "adapter"

    @property
    def checkpoint(self) -> Path:
        """The server's checkpoint."""
        return self.path / "state" / "checkpoint.safetensors"

    @property
    def clients(self) -> Path:
        """The clients' stores, where the run simulates them."""
        return self.path / "state" / "clients"

    @property
    def start(self) -> Path:
        """What ``adapter.start`` named when the run began."""
        return self.path / "state" / "start.safetensors"

    @property
    def receipts(self) -> Path:
        """The run's receipts."""
        return self.path / "receipts"

    @property
    def ledger(self) -> Path:
        """What the run has released of its owners' data, an event a line."""
        return self.path / "privacy.jsonl"

    @property
    def release(self) -> Path:
        """The noised sum of the round that is ending, or ended last."""
        return self.path / "state" / "release.safetensors"

    @property
    def rounds(self) -> Path:
        """One JSON object per round."""
        return self.path / "rounds.jsonl"

    @staticmethod
    def create(path: Path, loaded: LoadedFederation, origin: Mapping[str, Any]) -> RunFolder:
        """A new run in ``path``, which must be absent, empty, or left by a run that never began.

        A run that stops before round 0 is written (wrong data, no such model) has nothing to lose, so
        the mended federation may be started with the same folder.

        Args:
            path: the folder.
            loaded: the resolved federation.
            origin: what a resume must know besides: engine, folder of the federation file.

        Raises:
            ConfigError: there is something in ``path``, or another process is at work in it.
            StorageError: ``path`` cannot be written.
        """
        if path.exists() and not path.is_dir():
            raise ConfigError(f"run folder {path}", expected="a folder", got="a file", hint="Choose another.")
        folder = RunFolder(path)
        if _never_began(path):
            with folder.locked():
                pass  # nobody is about to begin it
        elif _names(path):
            raise ConfigError(
                f"run folder {path}",
                expected="a new or empty folder",
                got="one with files in it",
                hint=f"Choose another --out, or continue that run: headwater simulate --resume {path}",
            )
        # the origin first: it is what tells a run that never began from somebody's own files
        folder.write_json(
            "state/origin.json",
            {"folder": str(loaded.folder), "bits": loaded.settings.federation.bits, **origin},
        )
        write_atomically(path / "federation.toml", loaded.to_toml().encode())
        folder.start.unlink(missing_ok=True)  # of a run that never began
        return folder

    @staticmethod
    def open(path: Path, *, trackers: bool = False) -> tuple[RunFolder, LoadedFederation, dict[str, Any]]:
        """A run to resume: its folder, its federation and its origin.

        Args:
            path: the folder.
            trackers: read whom the run is to be told to, too; else the federation has none.

        Raises:
            ConfigError: ``path`` is not a run folder, or its file says other ``bits`` than it began with.
        """
        try:
            origin = json.loads((path / "state" / "origin.json").read_text())
            source = path / origin["folder"]  # absolute, or relative to the run's folder
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(
                f"run folder {path}",
                expected="a folder made by headwater simulate",
                got="another one" if path.is_dir() else "no folder",
                hint="Give the folder that the run printed last.",
            ) from None
        loaded = load_federation(path / "federation.toml", folder=source, trackers=trackers)
        began, bits = origin.get("bits", "machine"), loaded.settings.federation.bits
        if bits != began:
            raise ConfigError(
                f"run folder {path}: federation.bits",
                expected=f"{began!r}, with which the run began",
                got=repr(bits),
                hint="Put it back as it was, or start a new run.",
            )
        folder = RunFolder(path)
        start = folder.start if folder.start.exists() else None
        return folder, replace(loaded, start_file=start, run=str(origin.get("run", loaded.run))), origin

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder: two processes must not write one run.

        Raises:
            ConfigError: another process holds it.
            StorageError: the folder cannot be written.
        """
        lock = self.path / "state" / "lock"
        with ExitStack() as stack:
            try:
                make_folder(lock.parent)
                handle = stack.enter_context(lock_file(lock))
            except OSError as error:
                raise StorageError(
                    f"run folder {self.path}",
                    expected="a folder that can be written",
                    got=error.strerror or str(error),
                    hint="Mend the rights, or choose another folder.",
                ) from None
            if not take_within(handle, _LOOKED_AT_S):
                raise ConfigError(
                    f"run folder {self.path}",
                    expected="a run that no other process works on",
                    got="one that a process works on",
                    hint="Wait for that run to end, or stop it.",
                )
            for folder in (self.path, self.path / "state", self.clients):
                clear_temporaries(folder)  # of a process that was killed: nobody else writes here now
            yield

    def keep_inputs(self, **sha256: str) -> None:
        """Note what the run begins with, by name (``base``, ``data``); a resume must have the same.

        Raises:
            ConfigError: one of them has changed since the checkpoint was written.
        """
        origin = json.loads((self.path / "state" / "origin.json").read_text())
        before = origin.get("inputs", {})
        for name, digest in sha256.items():
            if self.checkpoint.exists() and before.get(name, digest) != digest:
                raise ConfigError(
                    f"run folder {self.path}",
                    expected=f"the {name} that the run began with, sha256 {before[name][:12]}",
                    got=digest[:12],
                    hint="Put it back as it was, or start a new run.",
                )
        if before != sha256:
            self.write_json("state/origin.json", {**origin, "inputs": sha256})

    def changes(self, federation_sha256: str) -> list[dict[str, Any]]:
        """What of its settings was changed when it went on: after which round, from what, to what.

        Args:
            federation_sha256: of its settings now; what was never written into them is left out.
        """
        try:
            origin = json.loads((self.path / "state" / "origin.json").read_text())
            found = list(origin.get("changes", []))
            hashes = [entry["federation_sha256"] for entry in found]
        except (OSError, ValueError, LookupError, AttributeError, TypeError):  # whoever resumes it says so
            return []
        ends = [number for number, sha256 in enumerate(hashes, start=1) if sha256 == federation_sha256]
        return found[: max(ends, default=0)]

    def keep_start(self, start: Start | None) -> None:
        """Keep a copy of what the run starts from, which may be gone when it is resumed or exported.

        Raises:
            StorageError: the disk is full or not writable.
        """
        if start is not None and not self.start.exists():
            write_atomically(self.start, start.to_bytes(lineage=True))

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write ``name`` as indented JSON, atomically."""
        write_atomically(self.path / name, json.dumps(json_safe(content), indent=2).encode() + b"\n")

    def checkpoint_round(self) -> int | None:
        """The round after which the run goes on, from the checkpoint's head; None if that is not there."""
        try:
            with self.checkpoint.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                head = json.loads(file.read(min(length, _MOST_HEAD)))
            return int(json.loads(head["__metadata__"]["headwater"])["round"])
        except (OSError, ValueError, OverflowError, KeyError, TypeError):  # damaged: who loads it says so
            return None

    def append_round(self, record: RoundRecord) -> None:
        """Add a line to ``rounds.jsonl``; on disk before this returns, as the checkpoint is after it.

        Raises:
            StorageError: the disk is full or not writable; the lines before are intact.
        """
        append_line(self.rounds, record.line())

    def each_round(self) -> Iterator[RoundRecord]:
        """The whole lines of ``rounds.jsonl`` up to the first that is torn or of no round, one at a time.

        With thousands of clients a round a line has megabytes.
        """
        return (record for record, _ in self._sized_rounds())

    def _sized_rounds(self) -> Iterator[tuple[RoundRecord, int]]:
        """The records, each with the bytes of its line and line feed."""
        for line in each_line(self.rounds):
            try:
                record = RoundRecord.read(line)
            except ValueError:
                return
            yield record, len(line) + 1

    def read_rounds(self) -> list[RoundRecord]:
        """All that :meth:`each_round` yields."""
        return list(self.each_round())

    def keep_rounds(self, last: int) -> Iterator[RoundRecord]:
        """Drop the lines from the first of a round after ``last``, or torn one, on; yield the others.

        What is dropped is gone when this returns.
        """
        kept = 0
        for record, size in self._sized_rounds():
            if record.round > last:
                break
            kept += size
        if not self.rounds.exists() or self.rounds.stat().st_size > kept:
            write_atomically(self.rounds, start_of(self.rounds, kept))
        return self.each_round()


def in_use(path: Path) -> bool:
    """Whether a process works on the run in this folder; False where nobody may look."""
    try:
        with (path / "state" / "lock").open("rb") as lock:
            return not take(lock.fileno(), shared=True)
    except (OSError, StorageError):
        return False


def _names(folder: Path) -> set[str]:
    """What is in ``folder``, without what a killed process had not finished."""
    names = (entry.name for entry in folder.iterdir()) if folder.is_dir() else ()
    return {name for name in names if not is_temporary(name)}


def _never_began(path: Path) -> bool:
    """Whether ``path`` holds a run without a checkpoint, or the first step towards one, and nothing else."""
    top, state = _names(path), _names(path / "state")
    ours = "origin.json" in state or top == {"state"}
    return (
        ours
        and top <= {"state", "federation.toml", "rounds.jsonl", "receipts"}
        and state
        <= {"origin.json", "lock", "traceback.txt", "cohorts.json", "start.safetensors", "receipt.key"}
    )
