"""DecomflTrainer: all clients step along the round's seeds; sends one coefficient for each (DeComFL)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from headwater.config.training import DecomflTraining
from headwater.errors import TrainingError
from headwater.seeds.coefficients import SeedCoefficients, SeedPlan
from headwater.seeds.directions import Directions
from headwater.seeds.keys import Key
from headwater.training.cohort import CohortTrainer, TrainResult, TrainTask
from headwater.training.minibatches import contained, minibatches, summary
from headwater.training.parameter_walk import ParameterWalk, ZerothOrderModel
from headwater.training.seeded import clipped, quantised, require_finite, seeds_of


class DecomflTrainer(CohortTrainer):
    """DeComFL (arXiv 2405.15861, algorithm 3): step k goes along the plan's seeds k·P … k·P + P − 1.

    g_p is the forward difference (ℓ(w + εz_p) − ℓ(w))/ε: one loss more than directions, all on one batch,
    each no further than ``gradient_bound``. The step is the mean over the P directions, −(η/P)·Σ g_p·z_p,
    of quantised coefficients. Exactly ``max_steps`` steps, whatever ``epochs`` says: every client's
    update has one coefficient for each seed of the round. The paper's clients revert their steps; here the
    weights are written anew for every task.

    A result's ``loss`` is the mean of ℓ(w) over the steps; ``clipped`` the fraction of slopes beyond the
    bound.

    Args:
        model: the adapted model; the trainer owns its values while it trains.
        pad: token id that fills a batch.
    """

    def __init__(self, model: ZerothOrderModel, pad: int) -> None:
        self._model, self._pad = model, pad

    def train(self, tasks: Sequence[TrainTask], *, key: Key) -> Iterator[TrainResult]:
        """Train each task by itself, in order; the results' deltas are Scalars.

        Raises:
            TrainingError: a plan of another kind of training, or seeds that do not fit it.
            SpecMismatch: a state of another spec.
        """
        for task in tasks:
            yield self._train(task, key.child("client", task.client))

    def _train(self, task: TrainTask, key: Key) -> TrainResult:
        training = task.plan.training
        if not isinstance(training, DecomflTraining):
            raise TrainingError(
                f"client {task.client}", expected="training.kind 'decomfl'", got=training.kind
            )
        plan, directions = seeds_of(task, self._model.spec)
        wanted = (training.max_steps or 0) * training.directions
        if plan.count != wanted:
            raise TrainingError(f"client {task.client}", expected=f"{wanted} seeds", got=f"{plan.count}")
        with self._model.caching_prefix(task.plan.tensors, training.trunk_cache_mb * 2**20):
            return contained(task, lambda: self._descend(task, training, plan, directions, key))

    def _descend(
        self, task: TrainTask, training: DecomflTraining, plan: SeedPlan, directions: Directions, key: Key
    ) -> TrainResult:
        walk = ParameterWalk(self._model, task.state, unit_bits=plan.unit_bits + directions.unit_bits)
        rate = training.learning_rate * task.plan.learning_rate_factor / training.directions
        epsilon = training.epsilon * 2.0**-directions.unit_bits
        seeds = np.arange(plan.first, plan.first + plan.count)
        coefficients = np.zeros(plan.count, np.int64)
        losses: list[float] = []
        beyond = 0
        for batch in minibatches(
            task.examples,
            training,
            key,
            pad=self._pad,
            steps=training.max_steps,
        ):
            first = len(losses) * training.directions
            losses.append(require_finite(task, len(losses) + 1, walk.loss(batch)))
            for i in range(first, first + training.directions):
                ahead = walk.loss(batch, directions.integers(int(seeds[i])), epsilon)
                slope = (require_finite(task, len(losses), ahead) - losses[-1]) / training.epsilon
                beyond += abs(slope) > training.gradient_bound
                slope = clipped(slope, training.gradient_bound)
                coefficients[i] = quantised(-rate * slope, plan.unit_bits)
            step = slice(first, first + training.directions)
            walk.offset += directions.combine(seeds[step], coefficients[step])
        walk.weights()
        metrics = summary(losses) | {"clipped": beyond / plan.count}
        return TrainResult(
            task.client,
            SeedCoefficients(plan, seeds, coefficients),
            len(task.examples),
            len(losses),
            metrics=metrics,
        )
