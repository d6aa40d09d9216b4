"""Scatter: how far updates lie apart, how much of that is noise, and what a noisy update should weigh.

An update is δ_i = Δ + b_i + e_i: what all have in common, what is the client's own (E‖b‖² = h), and the
noise of the random directions it was made with (E‖e_i‖² = v_i; 0 for gradients). Of all weighted means of
such updates, the one with weights ∝ 1/(h + v_i) scatters least: the random-effects model of meta-analysis
(DerSimonian & Laird 1986, "Meta-analysis in clinical trials"). Its estimate of h, here over squared L2
norms, is by the method of moments::

    Q = Σ w‖δ_i − Δ‖²,   E[Q] = Σ w_i (1 − w_i/W) (h + v_i)
    h = max(0, (Q − Σ w_i (1 − w_i/W) v_i) / Σ w_i (1 − w_i/W))

Q = Σ w‖δ_i‖² − W‖Δ‖², so five numbers that add are enough. Weights of round t use h of the rounds
before: they are known when the update arrives, and the round needs one pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from headwater.errors import UpdateRejected
from headwater.protocol.messages import NoisePlan

_UNIT = 2.0**-40


@dataclass(frozen=True)
class Scatter:
    """Sums over the updates that are in, as exact integers; ``least`` is infinite without any."""

    count: int = 0
    weight: int = 0
    weight2: int = 0
    energy: int = 0
    noise: int = 0
    noise2: int = 0
    least: float = math.inf

    def with_(self, weight: int, energy: float, noise: float) -> Scatter:
        """One update more: its weight, ‖δ‖² and v."""
        squared = round(energy / _UNIT)
        own = round(noise / _UNIT)
        return Scatter(
            self.count + 1,
            self.weight + weight,
            self.weight2 + weight * weight,
            self.energy + weight * squared,
            self.noise + weight * own,
            self.noise2 + weight * weight * own,
            min(self.least, noise),
        )

    def joined(self, other: Scatter) -> Scatter:
        """Two disjoint groups."""
        return Scatter(
            self.count + other.count,
            self.weight + other.weight,
            self.weight2 + other.weight2,
            self.energy + other.energy,
            self.noise + other.noise,
            self.noise2 + other.noise2,
            min(self.least, other.least),
        )

    def estimate(self, merged: float) -> NoisePlan | None:
        """The plan for coming rounds, from ‖Δ‖² of the merged delta; None from fewer than two updates."""
        if self.count < 2:
            return None
        total = float(self.weight)
        freedom = total - self.weight2 / total
        if freedom <= 0:
            return None
        scatter = self.energy * _UNIT - total * merged
        own = (self.noise - self.noise2 / self.weight) * _UNIT
        return NoisePlan(max(0.0, (scatter - own) / freedom), self.least)


def require_noise(noise: float, client: str) -> None:
    """Refuse a noise that is no squared norm.

    Raises:
        UpdateRejected: names the client.
    """
    if not 0 <= noise < 2.0**60:
        raise UpdateRejected(
            f"client {client}, noise", expected="a squared norm, finite and at least 0", got=repr(noise)
        )


def weighed(weight: int, noise: float, plan: NoisePlan | None) -> int:
    """``weight`` as a noisy update has it: times (h + v_ref)/(h + v), never more, at least 1."""
    if plan is None or noise <= plan.reference:
        return weight
    return max(1, round(weight * (plan.between + plan.reference) / (plan.between + noise)))


def smoothed(before: NoisePlan | None, now: NoisePlan | None) -> NoisePlan | None:
    """The estimate for the next round: the mean of the last one and this round's."""
    if before is None or now is None:
        return now or before
    return replace(
        now, between=(before.between + now.between) / 2, reference=(before.reference + now.reference) / 2
    )
