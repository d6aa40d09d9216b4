"""NoopTrainer: no training, a reproducible random change, for transport and load experiments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from headwater.config.training import NoopTraining
from headwater.errors import TrainingError
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.training.cohort import CohortTrainer, TrainResult, TrainTask


class NoopTrainer(CohortTrainer):
    """delta = scale · N(0, 1), drawn at ``key.child("client", name)``; the loss is 0.

    A plan that asks for a Fisher gets squared normals, cut at its cap: as much to send as a real one.
    """

    def train(self, tasks: Sequence[TrainTask], *, key: Key) -> Iterator[TrainResult]:
        """Draw one delta for each task.

        Raises:
            TrainingError: a plan of another kind of training.
        """
        for task in tasks:
            yield _draw(task, key.child("client", task.client))


def _draw(task: TrainTask, key: Key) -> TrainResult:
    training, spec = task.plan.training, task.state.spec
    if not isinstance(training, NoopTraining):
        raise TrainingError(f"client {task.client}", expected="training.kind 'noop'", got=training.kind)
    values = key.numpy().standard_normal(spec.numel, dtype=np.float32)
    with np.errstate(over="ignore"):  # an infinite scale is reported below
        values *= np.float32(training.scale)
    if not np.isfinite(values).all():
        error = TrainingError(
            f"client {task.client}", expected="a finite change", got=f"scale {training.scale}"
        )
        return TrainResult(task.client, None, len(task.examples), error=error)
    statistics = {}
    if task.plan.fisher is not None:
        drawn = key.child("fisher").numpy().standard_normal(spec.numel, dtype=np.float32)
        fisher = np.minimum(drawn * drawn, np.float32(task.plan.fisher.cap))
        statistics["fisher"] = AdapterState.from_vector(spec, torch.from_numpy(fisher))
    delta = AdapterState.from_vector(spec, torch.from_numpy(values))
    return TrainResult(task.client, delta, len(task.examples), statistics=statistics, metrics={"loss": 0.0})
