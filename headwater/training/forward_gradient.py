"""ForwardGradientTrainer: descent along gradients that exact directional derivatives estimate.

For a random v with E[vvᵀ] = 1 the vector (∇L·v)v is an unbiased estimate of ∇L (Baydin et al. 2022,
arXiv 2202.08587, eq. 4), and forward-mode AD gives ∇L·v in one pass that keeps no activations. A step takes
the mean over K directions for the gradient. So do FwdLLM (arXiv 2308.13894) on a whole adapter and SPRY
(arXiv 2405.15551) on the layers that a client was given; what is estimated is only what the client trains.

How noisy: with d values and K directions, E‖ĝ‖² is ‖∇L‖² times 1 + (d − 1)/K for ±1 and 1 + (d + 1)/K for
Gaussian v. So (d ∓ 1)/(d ∓ 1 + K) of the energy of an estimate is noise.

What the papers' released code does otherwise: FwdLLM's (36ecdbc) takes a central difference with h = 0.01
under autocast, not a derivative; measures the variance between two halves of *one* hard-coded layer's
estimates; and compares candidates with the last 1,000 only, since its cosine helper overwrites the chunks
before. SPRY's (f85533c) leaves dropout on while it differentiates: here it is off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from headwater.config.training import ForwardGradientTraining, SpryTraining
from headwater.config.traits import Distribution
from headwater.errors import TrainingError
from headwater.merging.coverage import covered
from headwater.seeds.directions import Directions
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec
from headwater.tasks.batches import Batch
from headwater.training.cohort import CohortTrainer, TrainResult, TrainTask
from headwater.training.minibatches import contained, diverged, minibatches, summary

_HINT = "Lower training.learning_rate, or take more directions."


class Sloped(Protocol):
    """What the trainer needs of :class:`headwater.adapters.model.AdaptedModel`."""

    @property
    def spec(self) -> StateSpec:
        """Of the trained tensors."""

    def write(self, vector: Tensor) -> None:
        """Set the trained tensors: float32 [numel]."""

    def caching_prefix(
        self, tensors: tuple[str, ...] | None = None, budget_bytes: int = 0
    ) -> AbstractContextManager[None]:
        """Inside, what no trained tensor changes is computed once for each batch."""

    def slope(self, batch: Batch, direction: Tensor) -> tuple[float, float]:
        """The loss, and its derivative along ``direction``, float32 [numel]."""


class ForwardGradientTrainer(CohortTrainer):
    """SGD or AdamW (without decay) on forward gradients, for the kinds ``forward_gradient`` and ``spry``.

    Direction i of step t is a vector of ``key.child("client", name, "directions")``, over the values that
    the plan covers: seed t·K + i, or with C candidates one of the seeds (t·K + i)·C … + C − 1. (With
    ``variance_target``, K here is ``max_directions``.)

    **Candidates** (FwdLLM's discriminative sampling): of C directions the one is taken whose cosine with
    the mean of the task's earlier estimates is largest in magnitude. That is biased on purpose: v is drawn
    long along that mean u, so that E[vvᵀ] = 1 + (κ − 1)ûûᵀ with κ the mean of the largest of C squared
    normals (2.5 for C = 4, 3.8 for 10). Across u the estimate is unbiased, along it κ times too long.

    **Pacing**: with ``variance_target`` τ, directions are drawn (from the second, or ``directions``, on)
    until V ≤ τ‖ĝ‖², V = Σ‖xᵢ − ĝ‖²/(K(K − 1)) being the estimated variance of the mean ĝ of the xᵢ over all
    values. V/‖ĝ‖² is about d/(d + K): a τ below 1 takes some d(1/τ − 1) directions.

    A result's ``noise`` is, to first order in the rate η, the expected squared distance of the delta from
    its mean over the directions. The estimates' errors e_t are uncorrelated, and e_t enters the delta
    η(1 − μ^(T−t))/(1 − μ) times over the T − t steps in which momentum μ repeats it (once without), so that
    v = Σ_t η²((1 − μ^(T−t))/(1 − μ))²·φ_t‖ĝ_t‖², φ the share above. AdamW scales an error by what came
    before, and candidates follow it (errors of later steps are then correlated with it): for both v = ‖δ‖²,
    since E‖δ − Eδ‖² ≤ E‖δ‖².

    Metrics: ``loss`` is that of the step's batch; ``directions`` the mean number of a step.

    Args:
        model: the adapted model; the trainer owns its values while it trains.
        pad: token id that fills a batch.
    """

    def __init__(self, model: Sloped, pad: int) -> None:
        self._model, self._pad = model, pad

    def train(self, tasks: Sequence[TrainTask], *, key: Key) -> Iterator[TrainResult]:
        """Train each task by itself, in order.

        Raises:
            TrainingError: a plan of another kind of training.
            SpecMismatch: a state of another spec.
            ModelError: a model without forward mode.
        """
        for task in tasks:
            yield self._train(task, key.child("client", task.client))

    def _train(self, task: TrainTask, key: Key) -> TrainResult:
        training = task.plan.training
        if not isinstance(training, ForwardGradientTraining | SpryTraining):
            raise TrainingError(
                f"client {task.client}",
                expected="training.kind 'forward_gradient' or 'spry'",
                got=training.kind,
            )
        task.state.require_spec(self._model.spec, f"client {task.client}, state to train from")
        with self._model.caching_prefix(task.plan.tensors, training.trunk_cache_mb * 2**20):
            return contained(task, lambda: self._descend(task, training, key))

    def _descend(
        self, task: TrainTask, training: ForwardGradientTraining | SpryTraining, key: Key
    ) -> TrainResult:
        start, mask = task.state.vector(), covered(task.state.spec, task.plan.tensors, task.plan.rank)
        trained = torch.arange(len(start)) if mask is None else mask.nonzero()[:, 0]
        if not len(trained):
            raise TrainingError(
                f"client {task.client}", expected="values to train", got="a plan that covers none"
            )
        values = start.clone()
        trainable = torch.nn.Parameter(start[trained])
        optimiser = _optimiser(trainable, training, task.plan.learning_rate_factor)
        sampler = Sampler.of(training, key.child("directions"), len(trained))
        steps = training.steps(len(task.examples))
        losses, counts, noise = list[float](), list[int](), 0.0
        for step, batch in enumerate(minibatches(task.examples, training, key, pad=self._pad)):
            values[trained] = trainable.detach()
            self._model.write(values)
            estimate = self._estimate(task, step, batch, sampler, trained)
            trainable.grad = estimate.gradient
            optimiser.step()
            repeated = _repeats(training.momentum, steps - step)
            noise += repeated**2 * sampler.noise_share(estimate.directions) * _squared(estimate.gradient)
            losses.append(estimate.loss)
            counts.append(estimate.directions)
        values[trained] = trainable.detach()
        if not bool(values.isfinite().all()):
            raise diverged(task, steps, "adapter", "non-finite values", _HINT)
        change = values - start
        rate = training.learning_rate * task.plan.learning_rate_factor
        linear = training.optimizer == "sgd" and sampler.candidates == 1
        noise = rate**2 * noise if linear else _squared(change)
        return TrainResult(
            task.client,
            AdapterState.from_vector(task.state.spec, change),
            len(task.examples),
            steps,
            metrics=summary(losses) | {"directions": sum(counts) / steps},
            noise=noise,
        )

    def _estimate(
        self, task: TrainTask, step: int, batch: Batch, sampler: Sampler, trained: Tensor
    ) -> Estimate:
        """The mean of (∇L·v)v over the directions of one step."""
        total = torch.zeros(len(trained), dtype=torch.float64)
        energy, loss, count = 0.0, 0.0, 0
        while count < sampler.least or (count < sampler.most and sampler.too_noisy(total, energy, count)):
            part = sampler.draw(step, count)
            direction = torch.zeros(self._model.spec.numel)
            direction[trained] = part
            loss, slope = self._model.slope(batch, direction)
            if not math.isfinite(loss):
                raise diverged(task, step + 1, "loss", str(loss), _HINT)
            if not math.isfinite(slope):
                raise diverged(task, step + 1, "slope", str(slope), _HINT)
            total.add_(part, alpha=slope)
            energy += slope**2 * _squared(part)
            count += 1
        sampler.learn(total / count)
        return Estimate((total / count).float(), loss, count)


@dataclass(frozen=True)
class Estimate:
    """ĝ, float32 [d]; the loss; how many directions it took."""

    gradient: Tensor
    loss: float
    directions: int


@dataclass
class Sampler:
    """Draws the directions of one task, and says when a step has enough.

    Args:
        family: of vectors of the trained values.
        least: directions of a step.
        most: of a step with pacing.
        candidates: C.
        target: τ of pacing; None without.
    """

    family: Directions
    least: int
    most: int
    candidates: int
    target: float | None
    _sum: Tensor | None = None

    @staticmethod
    def of(training: ForwardGradientTraining | SpryTraining, key: Key, size: int) -> Sampler:
        """As the settings say."""
        family = Directions.of(key, training.distribution, size)
        least = training.directions
        if isinstance(training, SpryTraining):
            return Sampler(family, least, least, 1, None)
        if training.variance_target is None:
            return Sampler(family, least, least, training.candidates, None)
        return Sampler(
            family, max(2, least), training.max_directions, training.candidates, training.variance_target
        )

    def draw(self, step: int, index: int) -> Tensor:
        """v, float32 [d]."""
        first = (step * self.most + index) * self.candidates
        vectors = (torch.from_numpy(self.family.values(first + c)) for c in range(self.candidates))
        if self._sum is None or self.candidates == 1:
            return next(vectors)
        aligned = self._sum.float()
        return max(vectors, key=lambda v: abs(float(v @ aligned)) / float(v.norm()))  # the first, if equal

    def learn(self, estimate: Tensor) -> None:
        """Candidates of the next steps are compared with this estimate too: float64 [d]."""
        if self.candidates > 1:
            self._sum = estimate if self._sum is None else self._sum + estimate

    def too_noisy(self, total: Tensor, energy: float, count: int) -> bool:
        """Whether the mean of ``count`` ≥ 2 estimates varies more than the target allows.

        Args:
            total: their sum.
            energy: the sum of their squared norms.
            count: how many.
        """
        if self.target is None:
            return False
        mean = _squared(total) / count**2
        return (energy - count * mean) / (count * (count - 1)) > self.target * mean

    def noise_share(self, directions: int) -> float:
        """The share of E‖ĝ‖² that is noise, for a mean over so many directions."""
        return noise_share(self.family.distribution, self.family.size, directions)


def noise_share(distribution: Distribution, size: int, directions: int) -> float:
    """(d − 1)/(d − 1 + K) for ±1 directions, (d + 1)/(d + 1 + K) for Gaussian ones."""
    extra = size + (1 if distribution == "gaussian" else -1)
    return extra / (extra + directions)


def _repeats(momentum: float, steps: int) -> float:
    """How many times over a gradient enters the values that is followed by ``steps`` steps, its own first."""
    return (1 - momentum**steps) / (1 - momentum)


def _squared(vector: Tensor) -> float:
    return float(vector.double().square().sum())


def _optimiser(
    trainable: torch.nn.Parameter, training: ForwardGradientTraining | SpryTraining, factor: float
) -> torch.optim.Optimizer:
    rate = training.learning_rate * factor
    if training.optimizer == "sgd":
        return torch.optim.SGD([trainable], lr=rate, momentum=training.momentum)
    return torch.optim.AdamW([trainable], lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
