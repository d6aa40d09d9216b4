"""What MLflow's own client finds in a tracker's folder: :class:`Found`."""

from __future__ import annotations

from pathlib import Path


class Found:
    """The one run of the store."""

    def __init__(self, folder: Path) -> None:
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        experiment = self.client.get_experiment_by_name("headwater")
        (self.run,) = self.client.search_runs([experiment.experiment_id])

    def history(self, name: str) -> list[tuple[int, float]]:
        """Steps and values of a metric."""
        rows = self.client.get_metric_history(self.run.info.run_id, name)
        return sorted((metric.step, metric.value) for metric in rows)

    def artefact(self, path: str) -> bytes:
        """A file that was kept with the run."""
        return Path(self.client.download_artifacts(self.run.info.run_id, path)).read_bytes()
