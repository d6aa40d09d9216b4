"""MezoTrainer: SGD along random directions that two losses probe, with the memory of inference (MeZO)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from headwater.config.training import MezoTraining
from headwater.errors import TrainingError
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.training.cohort import CohortTrainer, TrainResult, TrainTask
from headwater.training.minibatches import contained, diverged, minibatches, summary
from headwater.training.parameter_walk import ParameterWalk, ZerothOrderModel
from headwater.training.perturbations import Perturbations
from headwater.training.seeded import clipped, require_finite


class MezoTrainer(CohortTrainer):
    """MeZO (arXiv 2305.17333, algorithm 2: n-SPSA) on the adapter of one client after another.

    A step is −(η/n)·Σ gᵢzᵢ with the central difference gᵢ = (ℓ(w + εzᵢ) − ℓ(w − εzᵢ))/2ε on one batch, no
    further than ``gradient_bound``. Directions are drawn at ``key.child("client", name)``, sparse or of
    low rank if the settings say so. There is no weight decay and no momentum.

    A result's ``noise`` is the sum over steps of ‖step‖² times the share of it that is noise
    (:meth:`Perturbations.noise_share`): to first order in η, the squared distance of the delta from its
    mean over the directions. ``loss`` is the mean of a step's losses; ``clipped`` the fraction of slopes
    beyond the bound.

    Args:
        model: the adapted model; the trainer owns its values while it trains.
        pad: token id that fills a batch.
    """

    def __init__(self, model: ZerothOrderModel, pad: int) -> None:
        self._model, self._pad = model, pad

    def train(self, tasks: Sequence[TrainTask], *, key: Key) -> Iterator[TrainResult]:
        """Train each task by itself, in order.

        Raises:
            TrainingError: a plan of another kind of training.
            SpecMismatch: a state of another spec.
        """
        for task in tasks:
            yield self._train(task, key.child("client", task.client))

    def _train(self, task: TrainTask, key: Key) -> TrainResult:
        training = task.plan.training
        if not isinstance(training, MezoTraining):
            raise TrainingError(f"client {task.client}", expected="training.kind 'mezo'", got=training.kind)
        task.state.require_spec(self._model.spec, f"client {task.client}, state to train from")
        with self._model.caching_prefix(task.plan.tensors, training.trunk_cache_mb * 2**20):
            return contained(task, lambda: self._descend(task, training, key))

    def _descend(self, task: TrainTask, training: MezoTraining, key: Key) -> TrainResult:
        walk = ParameterWalk(self._model, task.state)
        drawn = Perturbations.of(task.state, task.plan, training, key.child("directions"))
        if not drawn.dimensions:
            raise TrainingError(
                f"client {task.client}", expected="values to train", got="a plan that covers none"
            )
        n, every = training.directions, training.resample_every
        rate = training.learning_rate * task.plan.learning_rate_factor / n
        steps = training.steps(len(task.examples))
        losses: list[float] = []
        beyond, noise = 0, 0.0
        for step, batch in enumerate(minibatches(task.examples, training, key, pad=self._pad)):
            change = np.zeros(len(walk.offset))
            probed = 0.0
            for i in range(n):
                z = drawn.values(step, i)
                ahead, behind = walk.central(batch, z, training.epsilon)
                probed += require_finite(task, step + 1, (ahead + behind) / 2)
                slope = (ahead - behind) / (2 * training.epsilon)
                beyond += abs(slope) > training.gradient_bound
                change -= np.multiply(z, rate * clipped(slope, training.gradient_bound), dtype=np.float64)
            walk.offset += change
            losses.append(probed / n)
            together = min(every, steps - step // every * every)
            noise += float(change @ change) * drawn.noise_share(together)
        if not bool(walk.weights().isfinite().all()):
            raise diverged(task, steps, "adapter", "non-finite values", "Lower training.learning_rate.")
        delta = AdapterState.from_vector(task.state.spec, torch.from_numpy(walk.offset.astype(np.float32)))
        metrics = summary(losses) | {"clipped": beyond / (n * steps)}
        return TrainResult(task.client, delta, len(task.examples), steps, metrics=metrics, noise=noise)
