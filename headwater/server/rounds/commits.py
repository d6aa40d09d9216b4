"""Commits: what a round that has ended leaves on disk, in an order that a crash cannot harm."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from headwater.config import LoadedFederation
from headwater.receipts.receipt import Entry, Kind
from headwater.receipts.written import ReceiptBook
from headwater.server.events import Observer, RoundEnded
from headwater.server.metrics import metric_name
from headwater.server.round_record import RoundRecord
from headwater.server.storage.checkpoint import Checkpoint
from headwater.server.storage.durability import Durability
from headwater.server.storage.run_folder import RunFolder
from headwater.server.storage.version_rows import WITHOUT


class Commits:
    """Writes the rounds of a run.

    Args:
        loaded: the federation, with the settings that hold now.
        run: the run's id.
        folder: where rounds and checkpoints are written.
        durability: what a daemon adds: every round's adapter is kept as a version.
        observer: is told of each round that is written.
        book: the run's receipts.
    """

    def __init__(
        self,
        loaded: LoadedFederation,
        run: str,
        folder: RunFolder,
        durability: Durability | None,
        observer: Observer,
        book: ReceiptBook,
    ) -> None:
        self._loaded, self._run, self._folder = loaded, run, folder
        self._durability, self._observer = durability, observer
        self._metric = metric_name(loaded.settings)
        self._book = book

    def commit(
        self,
        checkpoint: Checkpoint,
        record: RoundRecord,
        value: float,
        entries: Sequence[Entry],
        *,
        base: str,
        about: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Write the round's line first, then the checkpoint: a resume drops a line without its checkpoint.

        Args:
            checkpoint: after the round.
            record: the round's line.
            value: of the deciding metric; NaN if not evaluated.
            entries: the updates that are in it.
            base: hash of the adapter before; empty before round 0.
            about: of round 0, what the run goes on from: see :class:`headwater.receipts.receipt.Receipt`.
        """
        self._folder.append_round(record)
        number = checkpoint.server.round
        cohort = tuple(sorted(entry.client for entry in entries))
        self._add_version(checkpoint, cohort, value, note=f"round {number}" if number else "initial")
        self._save(checkpoint, "round" if base else "start", base, entries, about)
        if self._durability is not None:
            self._durability.versions.prune()
        self._observer(RoundEnded(record.round, record, self._metric, value))

    def commit_rollback(self, checkpoint: Checkpoint, version: int, *, base: str, leaving: str = "") -> None:
        """Write a checkpoint that has the values of an earlier version, as a version of its own.

        Args:
            checkpoint: with these values.
            version: they are of.
            base: hash of the adapter before.
            leaving: the client that left, for whose sake it is done.
        """
        back = f"rollback to version {version}"
        note = f"{WITHOUT}{leaving}: version {version}" if leaving else back
        self._add_version(checkpoint, (), float("nan"), parent=version, note=note)
        to = self._book.number_of(checkpoint.server.state.sha256())
        if base == checkpoint.server.state.sha256():  # done before a crash, or changes nothing
            replace(checkpoint, receipt=self._book.head).save(self._folder.checkpoint)
            return
        about = {"to": "" if to is None else str(to)}
        if leaving:
            about["leaf"] = self._book.leaf_after(to, leaving)
        self._save(checkpoint, "leaving" if leaving else "rollback", base, (), about)

    def _save(
        self,
        checkpoint: Checkpoint,
        kind: Kind,
        base: str,
        entries: Sequence[Entry],
        about: Mapping[str, str],
    ) -> None:
        """The receipt first, then the checkpoint, whose head says which receipt was the last."""
        head = self._book.add(
            kind,
            round=checkpoint.server.round,
            base=base,
            result=checkpoint.server.state.sha256(),
            settings=self._loaded.sha256(),
            rule=self._loaded.settings.strategy.kind,
            entries=entries,
            about=about,
        )
        replace(checkpoint, receipt=head).save(self._folder.checkpoint)

    def _add_version(
        self,
        checkpoint: Checkpoint,
        cohort: tuple[str, ...],
        value: float,
        *,
        note: str,
        parent: int | None = None,
    ) -> None:
        if self._durability is None:
            return
        versions = self._durability.versions
        number = checkpoint.server.round
        # the values of a rollback are another round's, whatever this one measured
        best = parent is None and checkpoint.tracker.best_round == number
        versions.add(
            checkpoint.server.state,
            run=self._run,
            round=number,
            parent=versions.last_version() if parent is None else parent,
            config_sha256=self._loaded.sha256(),
            cohort=cohort,
            metric=self._metric,
            value=value,
            best=best,
            note=note,
            created=time.time(),
        )
