"""Run: what a federation came to, from its folder; and :func:`simulate`, which makes one from Python."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.config.load import LoadedFederation
from headwater.config.origin import base_of_run
from headwater.errors import ModelError
from headwater.server.events import Observer
from headwater.server.metrics import metric_name
from headwater.server.round_record import RoundRecord
from headwater.server.storage.run_folder import RunFolder

if TYPE_CHECKING:  # torch, where a run is only read
    from headwater.adapters.predict import Predictor
    from headwater.simulation.simulate import Engine


@dataclass(frozen=True)
class Run:
    """A run folder that a simulation, or a server, wrote. Make it with :func:`simulate` or :meth:`open`.

    Args:
        folder: of the run.
        federation: the settings that it ran with.
    """

    folder: Path
    federation: LoadedFederation

    @staticmethod
    def open(folder: str | Path) -> Run:
        """The run in ``folder``.

        Raises:
            ConfigError: it is no run folder.
        """
        found, loaded, _ = RunFolder.open(Path(folder))
        return Run(found.path, loaded)

    @cached_property
    def rounds(self) -> list[dict[str, Any]]:
        """What happened in each round, from round 0, before training: the lines of ``rounds.jsonl``."""
        return [dict(record.content) for record in self._records]

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What it came to: ``summary.json``; empty before its end."""
        path = self.folder / "summary.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}

    @property
    def metric(self) -> str:
        """The name of the metric that decides."""
        return metric_name(self.federation.settings)

    @property
    def values(self) -> dict[int, float]:
        """The deciding metric by round, where it was measured: on the test rows, else over the clients."""
        values = {record.round: record.deciding(self.metric) for record in self._records}
        return {number: value for number, value in values.items() if math.isfinite(value)}

    @cached_property
    def _records(self) -> list[RoundRecord]:
        return RunFolder(self.folder).read_rounds()

    @property
    def adapter(self) -> Path:
        """The folder of the trained adapter; ``PeftModel.from_pretrained`` loads it, too."""
        return RunFolder(self.folder).adapter

    def predictor(self, base: str | Path | None = None) -> Predictor:
        """The base with the trained adapter, to classify or answer.

        Args:
            base: folder or hub name of the base model, if it is no longer where the run found it.

        Raises:
            ModelError: there is no adapter yet, or the base is another one.
        """
        if not self.adapter.is_dir():
            raise ModelError(f"run {self.folder}", expected="an adapter", got="none: the run has not ended")
        from headwater.adapters.predict import Predictor

        found = base_of_run(self.adapter) if base is None else str(base)
        return Predictor.open(self.adapter, base=found)


def simulate(
    federation: LoadedFederation,
    out: str | Path,
    *,
    engine: Engine = "inprocess",
    workers: int = 1,
    observer: Observer = lambda event: None,
) -> Run:
    """Run a federation on this machine, from its first round to its end.

    Args:
        federation: from :func:`headwater.load`.
        out: the run's folder: new or empty.
        engine: as of ``headwater simulate``.
        workers: processes that train.
        observer: is told what happens: :mod:`headwater.server.events`.

    Raises:
        HeadwaterError: what is wrong with settings, data or model, or that the federation cannot go on.
            The folder stays, and ``headwater simulate --resume`` goes on with it.
    """
    from headwater.simulation.simulate import simulate as run  # torch

    folder = RunFolder.create(Path(out), federation, {"engine": engine})
    run(federation, folder, engine=engine, workers=workers, observer=observer)
    return Run(folder.path, federation)
