"""Weights & Biases, offline: a run in the run folder, which ``wandb sync`` sends for who wants that."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headwater.config.traits import TrackerTraits
from headwater.server.round_record import RoundRecord
from headwater.server.trackers.numbers import allowed, by_name
from headwater.server.trackers.tracker import RunStart, RunTracker
from headwater.text import plain

PROJECT = "headwater"
_KEPT = ("adapter_sha256", "adapter_round", "stopped", "federation_sha256")
"""Of ``summary.json``, in the run's summary."""


class WandB(RunTracker):
    """wandb hands each round to a process of its own, which writes it; a later start begins another file.

    What that process had not written when the server was killed is lost there, which no resume tells again.
    The files of one run have its id, so that ``wandb sync`` puts them together. Nothing is sent from here,
    and nothing of this machine, its code or its output is kept.
    """

    def __init__(self, settings: TrackerTraits, folder: Path) -> None:
        super().__init__(settings, folder)
        self._run: Any = None  # wandb's types are not looked at

    def start(self, run: RunStart) -> None:
        """Begin a file, with the settings as its config."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its makers hear of no federation
        import wandb  # an extra

        # By its time to the nanosecond: wandb's own names are the same for two starts within a second.
        own = self.folder / f"{time.time_ns():019d}"
        own.mkdir(parents=True)  # where it cannot write, wandb would write elsewhere without a word
        self._run = wandb.init(
            project=PROJECT,
            id=allowed(run.run).replace("/", "_")[-64:],
            name=plain(run.settings.federation.name, 120),
            config=run.settings.model_dump(mode="json") | {"headwater_metric": run.metric},
            settings=wandb.Settings(
                mode="offline",
                root_dir=str(own),
                reinit="create_new",  # another run of this process goes on
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
            ),
        )

    def round(self, record: RoundRecord) -> None:
        """Its numbers and its clients' quartiles, with the round as the step.

        Raises:
            FileNotFoundError: the run's file is gone.
        """
        if not Path(self._run.settings.sync_file).exists():
            raise FileNotFoundError(self._run.settings.sync_file)
        self._run.log({"round/number": record.round, **by_name(record)}, step=record.round, commit=True)

    def end(self, summary: Mapping[str, Any]) -> None:
        """What the run came to, and the exported adapter among the run's files."""
        self._run.summary.update({key: plain(summary[key]) for key in _KEPT if summary.get(key) is not None})
        if self.adapter.is_dir():
            kept = Path(self._run.dir) / "adapter"  # a copy: wandb itself would only link to the files
            shutil.copytree(self.adapter, kept, dirs_exist_ok=True)
            self._run.save(str(kept / "*"), base_path=self._run.dir, policy="now")

    def close(self) -> None:
        """End the run; wandb's process writes what is left, moments later."""
        if self._run is not None:
            self._run.finish()
