"""KseedTrainer: steps along K seeds that all clients share, sent as coefficients (FedKSeed)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from headwater.config.training import KseedTraining
from headwater.errors import TrainingError
from headwater.protocol.directions import Directions
from headwater.protocol.keys import Key
from headwater.protocol.messages import SeedPlan
from headwater.protocol.scalars import Scalars
from headwater.training.cohort import CohortTrainer, TrainResult, TrainTask
from headwater.training.passes import batches_of, contained, steps_of, summary
from headwater.training.seeded import clipped, quantised, require_finite, seeds_of
from headwater.training.walk import Walk, Walkable

Floats: TypeAlias = npt.NDArray[np.float64]


class KseedTrainer(CohortTrainer):
    """FedKSeed (arXiv 2312.06353, algorithm 1): w ← w − ηg·z_s, s drawn from the plan's K seeds.

    g is the central difference (ℓ(w + εz) − ℓ(w − εz))/2ε on one batch, no further than
    ``gradient_bound``. The client steps by the quantised coefficient that it sends, so that whoever has
    the coefficients has its weights. With ``pro`` a seed is drawn the more often the steeper the loss was
    along it in this round; steps are not reweighted for that, in the paper neither: the mean step is then
    not along the gradient.

    A result's ``loss`` is the mean of a step's two; ``clipped`` the fraction of slopes beyond the bound.

    Args:
        model: the adapted model; the trainer owns its values while it trains.
        pad: token id that fills a batch.
        language_model: whether targets are tokens.
        probabilities: float64 [K] of drawing each seed, from earlier rounds; all alike if absent.
    """

    def __init__(
        self, model: Walkable, pad: int, *, language_model: bool, probabilities: Floats | None = None
    ) -> None:
        self._model, self._pad, self._language_model = model, pad, language_model
        self._prior = probabilities

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
        with self._model.sharing_trunk(task.plan.tensors, training.trunk_cache_mb * 2**20):
            return contained(task, lambda: self._descend(task, training, plan, directions, key))

    def _descend(
        self, task: TrainTask, training: KseedTraining, plan: SeedPlan, directions: Directions, key: Key
    ) -> TrainResult:
        walk = Walk(self._model, task.state, unit_bits=plan.unit_bits + directions.unit_bits)
        rate = training.learning_rate * task.plan.learning_rate_factor
        draw = _Draw(plan.count, key.child("seeds"), self._prior, pro=training.pro)
        losses: list[float] = []
        taken: list[tuple[int, int]] = []
        beyond = 0
        for batch in batches_of(
            task.examples,
            training,
            key,
            pad=self._pad,
            language_model=self._language_model,
            steps=min(plan.entries, steps_of(training, len(task.examples))),
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
            draw.found(index, slope)
            taken.append((plan.first + index, coefficient))
        walk.weights()
        metrics = summary(losses) | {"clipped": beyond / len(losses)}
        return TrainResult(
            task.client, Scalars.of(plan, taken), len(task.examples), len(losses), metrics=metrics
        )


def probabilities(mean_slopes: Floats) -> Floats:
    """FedKSeed-Pro: how often each seed is drawn, from how steep the loss was along it.

    softmax of the min-max-normalised mean |slope| (arXiv 2312.06353, section 3.3): the steepest is drawn
    e times as often as the flattest. A seed that was never used counts as the mean of those that were.
    (The authors' code starts each history with a 0 that stays in the mean for ever, so that unused and
    rarely used seeds look flat and are avoided.)

    Args:
        mean_slopes: float64 [K], ≥ 0; NaN where a seed was never used.

    Returns:
        float64 [K], sum 1.
    """
    used = ~np.isnan(mean_slopes)
    if not used.any():
        return np.full(len(mean_slopes), 1 / len(mean_slopes))
    filled = np.where(used, mean_slopes, mean_slopes[used].mean())
    spread = filled.max() - filled.min()
    weights = np.exp((filled - filled.min()) / (spread if spread > 0 else 1.0))
    normalised: Floats = weights / weights.sum()
    return normalised


class _Draw:
    """Which seed comes next."""

    def __init__(self, count: int, key: Key, prior: Floats | None, *, pro: bool) -> None:
        self._generator, self._prior, self._pro = key.numpy(), prior, pro
        self._sums, self._counts = np.zeros(count), np.zeros(count)

    def next(self) -> int:
        if not self._pro and self._prior is None:
            return int(self._generator.integers(len(self._sums)))
        weights = np.ones(len(self._sums)) if self._prior is None else self._prior
        if self._pro:
            never = self._counts == 0
            means = np.where(never, np.nan, self._sums / np.maximum(self._counts, 1))
            weights = weights * probabilities(means)
        return int(self._generator.choice(len(weights), p=weights / weights.sum()))

    def found(self, index: int, slope: float) -> None:
        self._sums[index] += abs(slope)
        self._counts[index] += 1
