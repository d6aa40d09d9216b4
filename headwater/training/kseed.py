"""KseedTrainer: steps along K seeds that all clients share, sent as coefficients (FedKSeed)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from headwater.config.training import KseedTraining
from headwater.errors import TrainingError
from headwater.seeds.coefficients import SeedCoefficients, SeedPlan
from headwater.seeds.directions import Directions
from headwater.seeds.draw_weights import weights_of
from headwater.seeds.keys import Key
from headwater.training.cohort import CohortTrainer, TrainResult, TrainTask
from headwater.training.minibatches import contained, minibatches, summary
from headwater.training.parameter_walk import ParameterWalk, ZerothOrderModel
from headwater.training.seeded import clipped, quantised, require_finite, seeds_of


class KseedTrainer(CohortTrainer):
    """FedKSeed (arXiv 2312.06353, algorithm 1): w ← w − ηg·z_s, s drawn from the plan's K seeds.

    g is the central difference (ℓ(w + εz) − ℓ(w − εz))/2ε on one batch, no further than
    ``gradient_bound``. The client steps by the quantised coefficient that it sends, so that whoever has
    the coefficients has its weights. With ``pro`` the server's plan says how often each seed is drawn, by how
    steep all clients' losses were along it in the rounds before; steps are not reweighted for that, in the
    paper neither: the mean step is then not along the gradient.

    A result's ``loss`` is the mean of a step's two; ``clipped`` the fraction of slopes beyond the bound.

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
        if not isinstance(training, KseedTraining):
            raise TrainingError(f"client {task.client}", expected="training.kind 'kseed'", got=training.kind)
        plan, directions = seeds_of(task, self._model.spec)
        with self._model.caching_prefix(task.plan.tensors, training.trunk_cache_mb * 2**20):
            return contained(task, lambda: self._descend(task, training, plan, directions, key))

    def _descend(
        self, task: TrainTask, training: KseedTraining, plan: SeedPlan, directions: Directions, key: Key
    ) -> TrainResult:
        walk = ParameterWalk(self._model, task.state, unit_bits=plan.unit_bits + directions.unit_bits)
        rate = training.learning_rate * task.plan.learning_rate_factor
        draw = _Draw(plan, key.child("seeds"))
        losses: list[float] = []
        taken: list[tuple[int, int]] = []
        beyond = 0
        for batch in minibatches(
            task.examples,
            training,
            key,
            pad=self._pad,
            steps=min(plan.entries, training.steps(len(task.examples))),
        ):
            index = draw.next()
            z = directions.integers(plan.first + index)
            ahead, behind = walk.central(batch, z, training.epsilon * 2.0**-directions.unit_bits)
            losses.append(require_finite(task, len(losses) + 1, (ahead + behind) / 2))
            slope = (ahead - behind) / (2 * training.epsilon)
            beyond += abs(slope) > training.gradient_bound
            slope = clipped(slope, training.gradient_bound)
            coefficient = quantised(-rate * slope, plan.unit_bits)
            walk.step(z, coefficient)
            taken.append((plan.first + index, coefficient))
        walk.weights()
        metrics = summary(losses) | {"clipped": beyond / len(losses)}
        return TrainResult(
            task.client, SeedCoefficients.of(plan, taken), len(task.examples), len(losses), metrics=metrics
        )


class _Draw:
    """Which seed comes next: a function of the key and the plan's odds."""

    def __init__(self, plan: SeedPlan, key: Key) -> None:
        self._generator = key.numpy()
        self._bounds = np.cumsum(weights_of(plan.odds, plan.count))

    def next(self) -> int:
        point = self._generator.integers(self._bounds[-1])
        return int(np.searchsorted(self._bounds, point, side="right"))
