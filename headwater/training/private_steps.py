"""Steps of DP-SGD on one client's examples: :class:`PrivateSteps` (Abadi et al. 2016, arXiv 1607.00133).

Each step draws every example by itself with probability q = B/n, adds up their gradients, each clipped to
norm C by itself, adds Gaussian noise of standard deviation z·C to every value, and divides by B, the
*expected* number of examples. A step that drew none is noise alone. Sum and noise are integers, and the
noise is the discrete Gaussian: no last digit of a floating-point number tells of the sum.

What follows of the noised gradients is computed from what is private already: AdamW's moments, weight decay,
FedProx, SCAFFOLD's correction, codecs, error feedback, masks and merging need no further noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headwater.config.privacy import ExamplePrivacy
from headwater.config.training import BackpropTraining
from headwater.privacy.events import Everyone, PoissonSample, Sampling
from headwater.privacy.noise import (
    Randomness,
    ReproducibleRandomness,
    SystemRandomness,
    discrete_gaussian,
)
from headwater.seeds.keys import Key
from headwater.tasks.batches import Example, by_row
from headwater.training.example_gradients import UNITS, ExampleGradients, Unit


@dataclass(frozen=True)
class StepPlan:
    """What a training will draw: it hangs on the number of examples alone.

    Args:
        units: what privacy counts as one example each; at least one.
        steps: how many.
        expected: B, of each step.
    """

    units: Sequence[Unit]
    steps: int
    expected: int

    @staticmethod
    def of(examples: Sequence[Example], training: BackpropTraining) -> StepPlan:
        """Of a client's examples, at least one."""
        units = by_row(examples)
        return StepPlan(units, training.steps(len(units)), min(training.batch_size, len(units)))

    @property
    def sampling(self) -> Sampling:
        """How each step's examples are drawn."""
        everyone = self.expected == len(self.units)
        return Everyone() if everyone else PoissonSample(self.expected / len(self.units))

    def draws(self, randomness: Randomness) -> Iterator[dict[int, Unit]]:
        """The examples of each step, by their numbers: as many as come, or none."""
        count = len(self.units)
        below = np.uint64(self.expected * 2**64 // count) if self.expected < count else None
        for _ in range(self.steps):
            if below is None:
                yield dict(enumerate(self.units))
            else:
                drawn = np.flatnonzero(randomness.words(count) < below).tolist()
                yield {number: self.units[number] for number in drawn}


class PrivateSteps:
    """A client's steps, of which each leaves a noised gradient in the parameters.

    Args:
        plan: which examples.
        gradients: of what, with C.
        privacy: z, and where noise comes from.
        key: of the client's random numbers, for what is no secret.
    """

    def __init__(
        self, plan: StepPlan, gradients: ExampleGradients, privacy: ExamplePrivacy, key: Key
    ) -> None:
        self._plan, self._gradients, self._key = plan, gradients, key
        self._sigma = math.ceil(privacy.noise_multiplier * UNITS)
        self._randomness = randomness_of(privacy, key)

    def __iter__(self) -> Iterator[None]:
        """One for each step: the gradients of its trained parameters are set when it is given."""
        for number, units in enumerate(self._plan.draws(self._randomness), 1):
            sums = self._gradients.sums(units, self._key.child("dropout", number))
            for (_, parameter), total in zip(self._gradients.part.trained, sums, strict=True):
                parameter.grad = self._noised(total).to(parameter.device, parameter.dtype)
            yield None

    def _noised(self, total: Tensor) -> Tensor:
        """A sum in units as a step's gradient, with noise."""
        whole = total.to("cpu", torch.int64)
        noise = discrete_gaussian(self._sigma, whole.numel(), self._randomness)
        noised = (whole + torch.from_numpy(noise).view(whole.shape)).double()
        return noised.mul_(self._gradients.unit / self._plan.expected).float()


def randomness_of(privacy: ExamplePrivacy, key: Key) -> Randomness:
    """Where noise and drawn examples come from."""
    if privacy.noise == "system":
        return SystemRandomness()
    return ReproducibleRandomness(key.child("privacy"))
