"""Scatter: how far updates lie apart, how much of that is noise, and what a noisy method should weigh.

An update is δ_i = Δ + b_i + e_i: what all have in common, what is the client's own (E‖b‖² = h), and the
noise of the random directions it was made with (E‖e_i‖² = v_i; 0 for gradients). Of all weighted means of
such updates, the one with weights ∝ 1/(h + v_i) scatters least: the random-effects model of meta-analysis
(DerSimonian & Laird 1986, "Meta-analysis in clinical trials"). Its estimate of h, here over squared L2
norms, is by the method of moments::

    Q = Σ w‖δ_i − Δ‖² = Σ w‖δ_i‖² − Σ_j W_j Δ_j²
    E[Q] = Σ w_i (1 − w_i r_i) (c_i h + v_i)
    h = max(0, (Q − Σ w_i (1 − w_i r_i) v_i) / Σ w_i c_i (1 − w_i r_i))

W_j is the weight of those who train value j, c_i the fraction of values that client i trains, r_i the mean of
1/W_j over them: 1 and 1/W where all train all. Clients that step along the same seeds have noise in common.
What Σ w_i e_i holds of it follows from the sum of their coefficients, and takes the place of Σ w_i² v_i.

**What is weighed is a method, not a client**, by the median noise of its clients in the rounds before. A
client's own noise is a function of the same slopes as its update: weights by it would prefer clients whose
loss is flat. And it is the client's word: nobody can raise his own weight by it, and a claim counts for no
more than what arrived. Weights are known before the round, which needs one pass.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headwater.errors import UpdateRejected
from headwater.merging.coverage import covered_by, divisors
from headwater.protocol.directions import Integers
from headwater.protocol.messages import MergePlan, NoisePlan


@dataclass(frozen=True, slots=True)
class Seen:
    """One update that is in.

    Args:
        weight: w.
        energy: ‖δ‖²; 0 where nobody needs it.
        noise: v, at most ``energy``.
        seeded: whether the noise is that of its coefficients of seeds.
    """

    weight: int
    energy: float = 0.0
    noise: float = 0.0
    seeded: bool = False


def estimate(
    plan: MergePlan, seen: Mapping[str, Seen], delta: Tensor, coefficients: Integers
) -> NoisePlan | None:
    """The plan for coming rounds; None from fewer than two updates, and where there is one method only.

    Args:
        plan: of this round.
        seen: the updates that are in, by client.
        delta: float32 [numel], the merged one.
        coefficients: int64 [plan.seeds.count], Σ w·c; empty without seeds.
    """
    if not plan.weighs or len(seen) < 2:
        return None
    size, rows = plan.spec.numel, sorted(seen.items())
    divisor = divisors(plan, {client: row.weight for client, row in rows})
    weight = float(sum(row.weight for row in seen.values()))
    shares = torch.full((size,), weight, dtype=torch.float64) if divisor is None else divisor.double()
    inverse = torch.where(shares > 0, 1 / shares.clamp(min=1), 0.0).numpy()
    part, mean = dict[str, float](), dict[str, float]()
    for client, _ in rows:
        mask = covered_by(plan, client)
        chosen = inverse if mask is None else inverse[mask.numpy()]
        part[client] = len(chosen) / size
        mean[client] = float(np.mean(chosen)) if len(chosen) else 0.0
    shared = _shared(plan, coefficients) if any(row.seeded for _, row in rows) else 0.0
    scatter = math.fsum(row.weight * row.energy for _, row in rows)
    scatter -= float(np.sum(shares.numpy() * np.square(delta.double().numpy())))
    own = math.fsum(
        row.weight * row.noise * (1 - (0 if row.seeded else row.weight * mean[client]))
        for client, row in rows
    )
    own -= shared * float(np.mean(inverse))
    freedom = math.fsum(row.weight * part[c] * (1 - row.weight * mean[c]) for c, row in rows)
    if freedom <= 0:
        return None
    apart = math.fsum(row.weight**2 * row.noise for _, row in rows if row.seeded)
    common = max(1.0, shared / apart) if apart else 1.0
    noises: dict[str, list[float]] = {}
    for client, row in rows:
        if row.energy and part[client]:  # a client that did not move says nothing of its method
            noise = row.noise * (common if row.seeded else 1.0) / part[client]
            noises.setdefault(plan.groups[client], []).append(noise)
    found = {group: statistics.median(values) for group, values in noises.items()}
    return NoisePlan(max(0.0, (scatter - own) / freedom), found)


def _shared(plan: MergePlan, coefficients: Integers) -> float:
    """E‖Σ w_i e_i‖² over clients that stepped along seeds: each seed's sum is a step along one direction."""
    bits = 0 if plan.seeds is None else plan.seeds.unit_bits
    steps = coefficients.astype(np.float64) * 2.0**-bits
    return float(np.sum(np.square(steps))) * (plan.spec.numel - 1)


def energy_of(vector: Tensor) -> float:
    """‖vector‖² in float64, in an order that no number of threads changes."""
    return float(np.sum(np.square(vector.double().numpy())))


def require_noise(noise: float, client: str) -> None:
    """Refuse a noise that is no squared norm.

    Raises:
        UpdateRejected: names the client.
    """
    if not 0 <= noise < 2.0**60:
        raise UpdateRejected(
            f"client {client}, noise", expected="a squared norm, finite and at least 0", got=repr(noise)
        )


def weighed(weight: int, client: str, plan: MergePlan) -> int:
    """``weight`` as a client of a noisy method has it: times (h + v_ref)/(h + v), at least 1.

    v is the method's noise, v_ref the least of all methods. A method that is not known yet weighs as planned.
    """
    noise = None if plan.noise is None else plan.noise.noises.get(plan.groups.get(client, ""))
    if noise is None or plan.noise is None:
        return weight
    least, between = min(plan.noise.noises.values()), plan.noise.between
    if noise <= least:
        return weight
    return max(1, round(weight * (between + least) / (between + noise)))


def smoothed(before: NoisePlan | None, now: NoisePlan | None) -> NoisePlan | None:
    """The estimate for the next round: the mean of the last one and this round's, of what both know."""
    if before is None or now is None:
        return now or before
    both = before.noises.keys() & now.noises.keys()
    noises = {**before.noises, **now.noises}
    noises |= {group: (before.noises[group] + now.noises[group]) / 2 for group in both}
    return NoisePlan((before.between + now.between) / 2, dict(sorted(noises.items())))
