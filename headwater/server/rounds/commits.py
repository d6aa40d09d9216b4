"""Commits: what a round that has ended leaves on disk, in an order that a crash cannot harm."""

from __future__ import annotations

import time

from headwater.config import LoadedFederation
from headwater.server.events import Observer, RoundEnded
from headwater.server.metrics import metric_name
from headwater.server.round_record import RoundRecord
from headwater.server.storage.checkpoint import Checkpoint
from headwater.server.storage.durability import Durability
from headwater.server.storage.run_folder import RunFolder


class Commits:
    """Writes the rounds of a run.

    Args:
        loaded: the federation, with the settings that hold now.
        run: the run's id.
        folder: where rounds and checkpoints are written.
        durability: what a daemon adds: every round's adapter is kept as a version.
        observer: is told of each round that is written.
    """

    def __init__(
        self,
        loaded: LoadedFederation,
        run: str,
        folder: RunFolder,
        durability: Durability | None,
        observer: Observer,
    ) -> None:
        self._loaded, self._run, self._folder = loaded, run, folder
        self._durability, self._observer = durability, observer
        self._metric = metric_name(loaded.settings)

    def commit(
        self, checkpoint: Checkpoint, record: RoundRecord, value: float, cohort: tuple[str, ...]
    ) -> None:
        """Write the round's line first, then the checkpoint: a resume drops a line without its checkpoint.

        Args:
            checkpoint: after the round.
            record: the round's line.
            value: of the deciding metric; NaN if not evaluated.
            cohort: the clients whose updates are in it.
        """
        self._folder.append_round(record)
        number = checkpoint.server.round
        self._add_version(checkpoint, cohort, value, note=f"round {number}" if number else "initial")
        checkpoint.save(self._folder.checkpoint)
        if self._durability is not None:
            self._durability.versions.prune()
        self._observer(RoundEnded(record.round, record, self._metric, value))

    def commit_rollback(self, checkpoint: Checkpoint, version: int) -> None:
        """Write a checkpoint that has the values of an earlier version, as a version of its own."""
        note = f"rollback to version {version}"
        self._add_version(checkpoint, (), float("nan"), parent=version, note=note)
        checkpoint.save(self._folder.checkpoint)

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
