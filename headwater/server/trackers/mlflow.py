"""MLflow: a run in a SQLite store of the run folder's own, which ``mlflow ui`` shows."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from headwater.config.traits import TrackerTraits
from headwater.server.round_record import RoundRecord
from headwater.server.trackers.numbers import allowed, by_name
from headwater.server.trackers.tracker import RunStart, RunTracker
from headwater.text import plain

STORE = "mlflow.db"
EXPERIMENT = "headwater"
_RUN = "headwater.run"
"""The tag by which a later start finds its run."""
_COUNTED = "round/number"
"""The metric that every round has, written last."""
_MOST_PARAMS, _MOST_METRICS = 100, 1000
"""Of one call, which is one transaction."""
_KEPT = ("adapter_sha256", "adapter_round", "stopped", "federation_sha256")
"""Of ``summary.json``, as tags."""


class MLflow(RunTracker):
    """A round is in the store when :meth:`round` returns, once: one that comes again stays as it is.

    MLflow 3 takes no folder of plain files as a local store any more; hence SQLite.
    """

    def __init__(self, settings: TrackerTraits, folder: Path) -> None:
        super().__init__(settings, folder)
        self._client: Any = None  # mlflow's types are not looked at
        self._run = ""
        self._known: set[int] = set()

    def start(self, run: RunStart) -> None:
        """Find the run that an earlier start began, or begin it with the settings as its parameters."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # its makers hear of no federation
        from mlflow.tracking import MlflowClient  # an extra

        self.folder.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(f"sqlite:///{self.folder.resolve() / STORE}")
        experiment = self._experiment()
        runs = self._client.search_runs([experiment], f"tags.`{_RUN}` = '{allowed(run.run)}'", max_results=1)
        if runs:
            self._run = runs[0].info.run_id
            history = self._client.get_metric_history(self._run, _COUNTED)
            self._known = {metric.step for metric in history}
            self._client.update_run(self._run, status="RUNNING")
        else:
            self._begin(experiment, run)

    def round(self, record: RoundRecord) -> None:
        """Its numbers and its clients' quartiles, with the round as the step."""
        from mlflow.entities import Metric

        if record.round in self._known:
            return
        now = int(time.time() * 1000)
        values = by_name(record) | {_COUNTED: float(record.round)}
        metrics = [Metric(name, value, now, record.round) for name, value in values.items()]
        for some in _parts(metrics, _MOST_METRICS):
            self._client.log_batch(self._run, metrics=some)
        self._known.add(record.round)

    def end(self, summary: Mapping[str, Any]) -> None:
        """What the run came to as tags, and the exported adapter as an artefact."""
        for key in _KEPT:
            if summary.get(key) is not None:
                self._client.set_tag(self._run, f"headwater.{key}", plain(summary[key]))
        if self.adapter.is_dir():
            self._client.log_artifacts(self._run, str(self.adapter), "adapter")
        stopped = summary.get("stopped") == "stopped"
        self._client.set_terminated(self._run, "KILLED" if stopped else "FINISHED")

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(EXPERIMENT, (self.folder.resolve() / "artifacts").as_uri()))

    def _begin(self, experiment: str, run: RunStart) -> None:
        from mlflow.entities import Param

        tags = {_RUN: allowed(run.run), "headwater.metric": run.metric}
        name = plain(run.settings.federation.name, 120)
        made = self._client.create_run(experiment, tags=tags, run_name=name)
        params = [Param(key, value) for key, value in _flat(run.settings.model_dump(mode="json"))]
        for some in _parts(params, _MOST_PARAMS):
            self._client.log_batch(made.info.run_id, params=some)
        self._run = made.info.run_id


def _parts(items: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    return (items[at : at + most] for at in range(0, len(items), most))


def _flat(content: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, str]]:
    """``a.b`` and the value, for each setting that has one."""
    for key, value in content.items():
        name = f"{start}{allowed(str(key))}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif value is not None:
            yield name[:250], plain(value, 5000)
