"""Versions: the adapters that a run made, by number, with their lineage.

::

    versions.jsonl         one row per version, for ever
    v000012.safetensors    the values of version 12, while they are kept
    pinned.json            the versions that somebody asked to keep

Adding writes the values, then the row: a row never lacks its values. A run adds a version *before* its
checkpoint, so a crash between the two leaves a version of a round that did not happen. It is either
added again, which gives the same number, or dropped by :meth:`Versions.keep_through`.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from headwater.errors import ConfigError, StorageError
from headwater.files import clear_temporaries, make_folder, sync_folder
from headwater.protocol.control import AdapterRow
from headwater.receipts.bundle import bundle
from headwater.server.storage.adapter_version_files import load_values, save_values
from headwater.server.storage.tar import tar
from headwater.server.storage.version_pins import VersionPins
from headwater.server.storage.version_rows import VersionRows

if TYPE_CHECKING:  # torch and transformers: who only lists versions needs neither
    from headwater.state import AdapterState, StateSpec
    from headwater.training.context import TrainingContext

_NAME = re.compile(r"v(\d{6,})\.safetensors")
_SCRATCH = ".export-"
_OPEN: weakref.WeakValueDictionary[Path, Versions] = weakref.WeakValueDictionary()
_OPENING = threading.Lock()


class Versions:
    """The versions of one run.

    Threads may share it. A second one over the same folder must not be opened while the first adds: it
    would take values that have no row yet for what a crash left.

    Values are kept of the last ``keep`` versions, the best one, the first one, and those pinned;
    :meth:`prune` deletes the others. Rows are kept for ever. In memory is what is kept, not the rows.

    Args:
        folder: made if absent. What a crash left half done in it is removed.
        keep: how many of the last versions keep their values; at least 1.

    Raises:
        StorageError: the folder cannot be read or written, or a row before the last one is damaged.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder, self._keep = folder, max(1, keep)
        self._lock = threading.RLock()
        try:
            make_folder(folder)
            sync_folder(folder)
            clear_temporaries(folder)
            for left in folder.glob(f"{_SCRATCH}*"):
                shutil.rmtree(left, ignore_errors=True)
        except OSError as error:
            raise StorageError(
                f"opening {folder}",
                expected="a folder that can be written",
                got=error.strerror or str(error),
                hint="Fix the rights or the disk, then start the server again.",
            ) from error
        self._rows = VersionRows(folder / "versions.jsonl")
        self._pins = VersionPins(folder / "pinned.json")
        self._forget_after(self._rows.count)

    @staticmethod
    def of_run(run_folder: Path, keep: int) -> Versions:
        """The versions of the run that this folder is of; the same object to all who have it at a time.

        A second one would clear away the first one's exports as if a crash had left them, and know
        nothing of what the first one pins.
        """
        folder = (run_folder / "versions").resolve()
        with _OPENING:
            found = _OPEN.get(folder)
            if found is None:
                found = _OPEN[folder] = Versions(folder, keep=keep)
            return found

    # --- what there is ----------------------------------------------------------------------------

    def rows(self) -> tuple[AdapterRow, ...]:
        """All versions in order; ``best`` is true for the one best, ``kept`` where values are on disk."""
        with self._lock:
            kept = self._kept()
            best = self._rows.best
            return tuple(
                replace(row, best=row.version == best, kept=row.version in kept) for row in self._rows.read()
            )

    def last_version(self) -> int:
        """The newest version; 0 where there is none. Reads no file, as :meth:`rows` does."""
        return self._rows.count

    def descends_from(self, round: int) -> bool:
        """Whether the newest version was made, in however many steps, from one of this round.

        Not from those that a rollback gave up. Reads no file.
        """
        with self._lock:
            return self._rows.descends_from(round)

    def best_version(self) -> int:
        """The best version, or the last one where none was measured; 0 where there is none."""
        return self._rows.best or self._rows.count

    def state(self, version: int, spec: StateSpec) -> AdapterState:
        """The values of a version.

        Raises:
            ConfigError: there is no such version, or its values were pruned.
            StorageError: they are damaged.
            SpecMismatch: they are of another adapter.
        """
        row = self._row(version)
        try:
            return load_values(self._path(version), row, spec)
        except FileNotFoundError:
            raise self._absent(version, "one whose values were pruned") from None

    # --- what a run does --------------------------------------------------------------------------

    def add(
        self,
        state: AdapterState,
        *,
        run: str,
        round: int,
        parent: int,
        config_sha256: str,
        cohort: Sequence[str],
        metric: str,
        value: float,
        best: bool,
        note: str,
        created: float,
    ) -> AdapterRow:
        """Keep ``state`` as the next version; values and row are on disk when this returns.

        The same run, round, values and note as the last version's are that version again: what a run
        does that was killed before its checkpoint. Its row stays as it is.

        Args:
            state: the global adapter.
            run: id of the run.
            round: the round that made it; 0 for the initial one.
            parent: the version it was made from; 0 for the first.
            config_sha256: of the resolved federation.
            cohort: the clients whose updates are in it, in any order.
            metric: name of the deciding metric.
            value: its value; NaN if not measured.
            best: whether no version before is better.
            note: ``initial``, ``round 7``, ``rollback to version 3``.
            created: Unix seconds.

        Raises:
            ConfigError: ``parent`` is not a version.
            StorageError: the disk is full or not writable; the versions before are intact.
        """
        digest = state.sha256()
        with self._lock:
            last = self._rows.last
            again = last is not None and (last.run, last.round, last.sha256, last.note) == (
                run,
                round,
                digest,
                note,
            )
            if again and last is not None:
                save_values(self._path(last.version), last, state)  # the same bytes; mends a damaged file
                return self._shown(last)
            if not 0 <= parent <= self._rows.count:
                raise ConfigError(
                    "adapter version", expected=f"a parent of 0 to {self._rows.count}", got=str(parent)
                )
            row = AdapterRow(
                run=run,
                version=self._rows.count + 1,
                round=round,
                parent=parent,
                sha256=digest,
                config_sha256=config_sha256,
                cohort=tuple(sorted(cohort)),
                metric=metric,
                value=value,
                best=best,
                kept=True,
                created=created,
                note=note,
            )
            save_values(self._path(row.version), row, state)
            self._rows.append(row)
            return self._shown(row)

    def keep_through(self, round: int, sha256: str = "") -> None:
        """Drop versions that never happened: of rounds after ``round``, the last one committed.

        Args:
            round: the checkpoint's round.
            sha256: of the checkpoint's state, if given. Versions after the last one that has it are
                dropped too: a rollback that was not committed has the checkpoint's round.

        Raises:
            StorageError: the rows could not be written; they are as before.
        """
        with self._lock:
            rows = list(self._rows.read())
            kept = next((i for i, row in enumerate(rows) if row.round > round), len(rows))
            same = [i for i in range(kept) if rows[i].sha256 == sha256]
            kept = same[-1] + 1 if same else kept
            if kept == len(rows):
                return
            self._rows.cut(rows[:kept])
            self._forget_after(kept)

    def holding(self, client: str) -> tuple[int, ...]:
        """The versions that something of this client is in: its own update, or an earlier version's."""
        with self._lock:
            found: set[int] = set()
            for row in self._rows.read():
                if client in row.cohort or row.parent in found:
                    found.add(row.version)
            return tuple(sorted(found))

    def newest_without(self, client: str) -> AdapterRow | None:
        """The newest version on the line to the last one that nothing of this client is in, values kept.

        None where the last one has nothing of it. The first version has nothing of anybody, and is kept.

        Raises:
            ConfigError: it is not there any more.
        """
        with self._lock:
            holding, kept = set(self.holding(client)), self._kept()
            at = self._rows.count
            if at not in holding:
                return None
            parents = {row.version: row for row in self._rows.read()}
            while at and (at in holding or at not in kept):
                at = parents[at].parent
            if not at:
                raise self._absent(1, "one whose values are gone")
            return self._shown(parents[at])

    def drop_values(self, versions: Iterable[int]) -> None:
        """Delete the values of these versions, pinned or not; their rows stay.

        Raises:
            StorageError: a file could not be deleted.
        """
        with self._lock:
            for version in sorted(set(versions) & self._kept()):
                try:
                    if version in self._pins.versions:
                        self._pins.remove(version)
                    self._path(version).unlink(missing_ok=True)
                except OSError as error:
                    raise StorageError(
                        f"{self._path(version)}",
                        expected="to delete it",
                        got=error.strerror or str(error),
                        hint="Fix the rights or the disk, then start the server again.",
                    ) from error

    def pin(self, version: int) -> None:
        """Keep the values of ``version`` for ever.

        Raises:
            ConfigError: there is no such version, or its values were pruned.
            StorageError: the note could not be written.
        """
        with self._lock:
            self._row(version)
            if not self._path(version).exists():
                raise self._absent(version, "one whose values were pruned")
            self._pins.add(version)

    def unpin(self, version: int) -> None:
        """Keep the values of ``version`` only as long as any other's; the next :meth:`prune` may delete them.

        Raises:
            ConfigError: nobody pinned it.
            StorageError: the note could not be written.
        """
        with self._lock:
            self._pins.remove(version)

    def prune(self) -> tuple[int, ...]:
        """Delete the values of all versions but the last ``keep``, the best, the first and pinned ones.

        Call it after the checkpoint: until then the last version may yet be dropped. Not durable: what a
        power cut brings back is deleted by the next call.

        Returns:
            The versions whose values are gone.
        """
        with self._lock:
            last = range(self._rows.count - self._keep + 1, self._rows.count + 1)
            wanted = {1, self._rows.best, *last} | self._pins.versions
            gone = []
            for version in sorted(self._kept() - wanted):
                with contextlib.suppress(OSError):  # the next call tries again
                    self._path(version).unlink(missing_ok=True)
                    gone.append(version)
            return tuple(gone)

    # --- what an organiser takes away -------------------------------------------------------------

    def export(
        self, version: int, context: TrainingContext, folder: Path, card: Mapping[str, object]
    ) -> None:
        """Write a version as a folder for ``PeftModel.from_pretrained``, with the run's receipts up to it.

        Raises:
            ConfigError: there is no such version, or its values were pruned.
            StorageError: the values are damaged, or ``folder`` cannot be written.
        """
        state = self.state(version, context.spec)
        context.export(state, folder, card, bundle(self._folder.parent / "receipts", state.sha256()))

    def tar(self, version: int, context: TrainingContext, card: Mapping[str, object]) -> Iterator[bytes]:
        """The folder that :meth:`export` writes as a tar, in pieces of at most 1 MiB.

        The same version and card give the same bytes. Its members are the folder's files, without a
        leading folder. Needs the adapter's size of room beside the versions until it is read or closed.

        Raises:
            ConfigError: there is no such version, or its values were pruned.
            StorageError: the values are damaged, or there is no room.
        """
        try:
            with tempfile.TemporaryDirectory(
                prefix=_SCRATCH, dir=self._folder, ignore_cleanup_errors=True
            ) as scratch:
                folder = Path(scratch) / "adapter"
                self.export(version, context, folder, card)
                yield from tar(folder)
        except OSError as error:
            raise StorageError(
                f"export of version {version}",
                expected=f"room in {self._folder}",
                got=error.strerror or str(error),
                hint="Free space, then export again.",
            ) from error

    # --- files ------------------------------------------------------------------------------------

    def _path(self, version: int) -> Path:
        return self._folder / f"v{version:06d}.safetensors"

    def _shown(self, row: AdapterRow) -> AdapterRow:
        return replace(row, best=row.version == self._rows.best, kept=True)

    def _kept(self) -> set[int]:
        names = (_NAME.fullmatch(path.name) for path in self._folder.iterdir())
        return {int(name[1]) for name in names if name}

    def _row(self, version: int) -> AdapterRow:
        row = self._rows.find(version)
        if row is None:
            raise self._absent(version, "no such version")
        return row

    def _absent(self, version: int, got: str) -> ConfigError:
        kept = sorted(self._kept())
        shown = [str(v) for v in kept] if len(kept) <= 8 else [*map(str, kept[:3]), "…", *map(str, kept[-4:])]
        return ConfigError(
            f"adapter version {version}",
            expected=f"one whose values are kept: {', '.join(shown) or 'there are none yet'}",
            got=got,
            hint="List them: headwater server adapters list.",
        )

    def _forget_after(self, version: int) -> None:
        """Delete what belongs to no row; where that fails, the next version overwrites it."""
        for left in self._kept():
            if left > version:
                with contextlib.suppress(OSError):
                    self._path(left).unlink(missing_ok=True)
        self._pins.forget_after(version)
