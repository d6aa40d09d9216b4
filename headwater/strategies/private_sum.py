"""NoisedSum: the merge rule of differential privacy, for one release of a round's sum.

DP-FedAvg (McMahan et al. 2018, arXiv 1710.06963): Δ = (Σ clip(δ_i, C) + noise) / m. Every update counts the
same, m is a number that was fixed before the round, and noise goes to every value, whoever trained it.

Formal guarantees, of what :meth:`NoisedSum.finalize` returns but for ``clients`` and ``weight``:

- No client's part of the sum is longer than C·2^bits + √d/2 units, whatever it sent: each decoded update is
  shortened to C, and rounding to units moves each of its d values by at most half of one.
- The noise is the discrete Gaussian of standard deviation z times that, rounded up to a whole unit, drawn
  independently for each value: its sum with the units is what is released, and the rest is computed from it.
  With correlated noise all rounds together have the guarantee of :mod:`headwater.privacy.correlated.noise`.
- Units and divisor hang on the plan alone, never on who answered. A round without any update is a release
too.
- With adaptive clipping, so is the count of short updates, with noise σ_b; both together cost z
  (:mod:`headwater.privacy.adaptive`).

Not private: who took part, metrics and sizes, which are no part of the release.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from headwater.errors import ConfigError, DecodeError
from headwater.merging.aggregator import Aggregator, Merged
from headwater.merging.coverage import require_covered
from headwater.merging.fixed_point import add_fixed, from_fixed, require_bounded, zeros
from headwater.merging.participants import Participants
from headwater.merging.plan import MergePlan, PrivateSum, Update
from headwater.privacy.adaptive import next_clip, sum_multiplier
from headwater.privacy.clip import clip_l2
from headwater.privacy.noise import Integers, Randomness, discrete_gaussian
from headwater.state import AdapterState

COUNT_BITS = 20
"""Of the count's unit, 2^-20 of an update: its noise is no whole number."""
Draw = Callable[[str, float, float, int], tuple[Integers, int]]
"""Noise of (``"sum"`` or ``"count"``, z, the longest part of one owner in units, how many): int64, and the σ
in units of what was drawn. Correlated noise has a memory behind it, and a z of its own."""


def independent(source: Randomness) -> Draw:
    """Noise of each sum by itself, from this source of bits."""

    def draw(what: str, multiplier: float, longest: float, size: int) -> tuple[Integers, int]:
        sigma = math.ceil(multiplier * longest)
        return discrete_gaussian(sigma, size, source), sigma

    return draw


@dataclass
class NoisedSums:
    """Who is in, and the sums before noise: secret.

    Args:
        participants: who is in.
        total: Σ round(clip(δ)·2^bits), int64 [numel].
        short: how many updates were no longer than C.
    """

    participants: Participants
    total: Tensor
    short: int = 0


class NoisedSum(Aggregator[NoisedSums]):
    """A clipped sum with noise, over a fixed number.

    Args:
        draw: the noise.
    """

    def __init__(self, draw: Draw) -> None:
        self._draw = draw

    def init(self, plan: MergePlan) -> NoisedSums:
        """Nothing yet, 8 bytes a value.

        Raises:
            ConfigError: a plan without a private sum, or with weights that differ or are too many.
        """
        private_of(plan)
        if (
            any(weight != 1 for weight in plan.weights.values())
            or len(plan.weights) > PrivateSum.MOST_CLIENTS
        ):
            raise ConfigError(
                "private sum",
                expected=f"at most {PrivateSum.MOST_CLIENTS} clients of weight 1",
                got=f"{len(plan.weights)}, of weights up to {max(plan.weights.values())}",
            )
        return NoisedSums(Participants(plan), zeros(plan.spec.numel))

    def require_sound(self, acc: NoisedSums) -> None:
        """Refuse every accumulator of another process: nobody here has shortened what is in it.

        Raises:
            DecodeError: always.
        """
        raise DecodeError(
            "accumulator, private sum",
            expected="updates, each of which this server clips",
            got="a sum of them",
            hint="Let clients reach the server without an edge aggregator.",
        )

    def add(self, acc: NoisedSums, update: Update) -> NoisedSums:
        """Add clip(δ, C)."""
        plan, who = acc.participants.plan, f"client {update.client}"
        private = private_of(plan)
        acc.participants.weight_of(update)
        values = acc.participants.values_of(update)
        vector = values.flat()
        require_bounded(vector, plan.spec, bound=plan.value_bound, who=who)
        if update.client in plan.tensors:
            require_covered(vector, plan, update.client)
        clipped, norm = clip_l2(values, private.clip)
        add_fixed(acc.total, clipped.flat(), private.bits, 1)
        acc.short += norm <= private.clip
        acc.participants.enter(update.client)
        return acc

    def combine(self, left: NoisedSums, right: NoisedSums) -> NoisedSums:
        """Add the sums of two groups."""
        left.participants.require_disjoint(right.participants)
        left.total += right.total
        left.short += right.short
        left.participants.join(right.participants)
        return left

    def finalize(self, acc: NoisedSums) -> Merged:
        """Draw the noise and release the sum over m. Call it once: a second call is a second release.

        The report has ``delta_norm`` (L2), ``resolution`` (the unit over m), ``clip`` (C), ``noise_std``
        (of a value of the delta, as drawn in this round), and with adaptive clipping ``short``, the noised
        share of updates within C.
        """
        plan = acc.participants.plan
        private, numel = private_of(plan), plan.spec.numel
        multiplier, count_sigma = private.multiplier, private.count_sigma
        if count_sigma is not None:
            multiplier = sum_multiplier(multiplier, count_sigma)
        noise, sigma = self._draw("sum", multiplier, private.longest(numel), numel)
        merged = released(acc, acc.total + torch.from_numpy(noise), sigma)
        if count_sigma is None:
            return merged
        units = (acc.short << COUNT_BITS) - (len(acc.participants.clients) << (COUNT_BITS - 1))
        units += int(self._draw("count", count_sigma, 2.0**COUNT_BITS, 1)[0][0])
        share = units * 2.0**-COUNT_BITS / private.expected + 0.5
        clip = next_clip(private.clip, share, private.quantile, private.rate)
        return replace(merged, report={**merged.report, "short": share}, clip=clip)


def released(acc: NoisedSums, noised: Tensor, sigma: float) -> Merged:
    """A sum with its noise of standard deviation ``sigma`` units, over m."""
    plan = acc.participants.plan
    private = private_of(plan)
    delta = AdapterState.from_vector(plan.spec, (from_fixed(noised, private.bits) / private.expected).float())
    unit = 2.0**-private.bits / private.expected
    report = {
        "delta_norm": delta.norm(),
        "resolution": unit,
        "clip": private.clip,
        "noise_std": sigma * unit,
    }
    clients = tuple(sorted(acc.participants.clients))
    return Merged(delta, clients, acc.participants.weight, report, asked=tuple(sorted(plan.weights)))


def private_of(plan: MergePlan) -> PrivateSum:
    """How the plan's sum is released.

    Raises:
        ConfigError: it has no noise.
    """
    if plan.private is None:
        raise ConfigError("merge plan", expected="how its sum is released", got="no private sum")
    return plan.private
