"""Scatter: how far updates lie apart, what of that is noise, and what the updates of a method should weigh.

A round may mix methods: some step along gradients, some along random directions, and some get much further
in a round than others. An update of method m is taken as::

    δ_i = c_m·(Δ + b_i) + e_i        E‖b_i‖² = h,  E‖e_i‖² = v_m

Δ is what the method that gets furthest finds, c_m the *progress* of method m towards it, b_i the client's
own, and e_i everything that is no progress, such as the noise of random directions. Each δ_i/c_m is an
estimate of Δ with the variance h + ν_m, ν_m = v_m/c_m². Of all weighted means of them the one with weights ∝
1/(h + ν_m) has the smallest error: the random-effects model of meta-analysis (DerSimonian & Laird 1986,
"Meta-analysis in clinical trials"), and Aitken's generalised least squares. Written with sums that add::

    Δ = Σ n_i·δ_i / Σ n_i·c_m        n_i = w_i·min(1, (h + ν_least)/(h + ν_m)/c_m)

So a method that hardly moves neither adds much noise (n is small) nor pulls the mean towards no change (the
divisor has c in it), and no update weighs more than planned. c counts relative to the furthest method that
is in.

**h** is found by the method of moments (theirs), among clients of one method::

    Q = Σ n‖δ_i‖² − Σ_j N_j·δ̄_j²
    E[Q] = Σ n_i (1 − n_i r_i) (p_i c² h + v_i)

N_j is the weight of those who train value j, p_i the fraction of values that client i trains, r_i the mean
of 1/N_j over them: 1 and 1/N where all train all. Clients that step along the same seeds have noise in
common: what Σ n_i e_i holds of it follows from the sum of their coefficients, and takes the place of Σ n_i²
v_i.

**c** is found by projection on the mean of the method r that gets furthest among those with two clients or
more that train all values: c_m = ⟨δ̄_m, δ̄_r⟩/‖δ̄_r‖²/ρ. ρ is the share of ‖δ̄_r‖² that is Δ's: noise and
what is the clients' own must not count as something that others failed to reach (the reliability of errors
in variables, Fuller 1987, §1.1). Then h is that among r's clients, and a method's **v** the median of what
its clients say, and on top of it what of their updates neither c nor h nor noise explains. No c counts as
more than 1: a method that one client makes up cannot make the others' progress small. Where no method can be
r, all c stay as they are (1 at first), h is that among the clients of each method, or among all clients if
no method has two, and clients are believed.

**What is weighed is a method, not a client**, by the rounds before. A client's own noise is a function of
the same slopes as its update: weights by it would prefer clients whose loss is flat. And it is the client's
word: nobody can raise his own weight by it, and a claim counts for no more than what arrived. Weights are
known before the round, which needs one pass.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from headwater.errors import UpdateRejected
from headwater.merging.coverage import covered_by
from headwater.protocol.directions import Integers
from headwater.protocol.messages import MergePlan, NoisePlan

Floats: TypeAlias = npt.NDArray[np.float64]

LEAST_PROGRESS = 1 / 64
"""No c is taken as less: Σ n·c/max c is at least this part of Σ n."""
LEAST_RELIABILITY = 1 / 4
"""ρ below this says nothing of progress: what is Δ's cannot be told from what is not."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One update that is in.

    Args:
        weight: n.
        energy: ‖δ‖²; 0 where nobody needs it.
        noise: v, at most ``energy``.
        seeded: whether the noise is that of its coefficients of seeds.
    """

    weight: int
    energy: float = 0.0
    noise: float = 0.0
    seeded: bool = False


@dataclass(frozen=True, slots=True)
class Together:
    """The updates of some clients, and what they add up to.

    Args:
        seen: by client.
        mean: float64 [numel], δ̄; 0 where none of them trains.
        weights: float64 [numel], N.
        coefficients: int64 [plan.seeds.count], Σ n·c; empty without seeds.
    """

    seen: Mapping[str, Seen]
    mean: Floats
    weights: Floats
    coefficients: Integers


def estimate(plan: MergePlan, methods: Mapping[str, Together], everybody: Together) -> NoisePlan | None:
    """The plan for coming rounds; None from fewer than two updates, and where there is one method only.

    Args:
        plan: of this round.
        methods: the updates that are in, by method.
        everybody: all of them; its mean is of all δ_i as they are, without progress.
    """
    if not plan.weighs or len(everybody.seen) < 2:
        return None
    found = {name: _Moments.of(plan, method) for name, method in sorted(methods.items())}
    noises = {name: m.noise for name, m in found.items() if m.noise is not None}
    signals = {name: m.signal for name, m in found.items() if m.signal > LEAST_RELIABILITY * m.energy}
    if signals:
        furthest = max(signals, key=lambda name: signals[name])
        signal, between = signals[furthest], max(0.0, found[furthest].apart)
        reliability = signal / found[furthest].energy
        progress = {
            name: _reached(method, methods[furthest]) / reliability if name != furthest else 1.0
            for name, method in sorted(methods.items())
        }
        for name in noises.keys() - {furthest}:
            noises[name] += found[name].unexplained(progress[name], between, signal)
        return NoisePlan(between, noises, {name: min(1.0, max(0.0, c)) for name, c in progress.items()})
    squared = {name: _progress_in(plan.noise, name) ** 2 for name in found}
    freedom = math.fsum(squared[name] ** 2 * m.freedom for name, m in found.items())
    excess = math.fsum(squared[name] * m.excess for name, m in found.items())
    if freedom <= 0:
        pooled = _Moments.of(plan, everybody)
        excess, freedom = pooled.excess, pooled.freedom
    return NoisePlan(max(0.0, excess / freedom), noises) if freedom > 0 else None


def _reached(method: Together, furthest: Together) -> float:
    """⟨δ̄_m, δ̄_r⟩/‖δ̄_r‖² over the values that the method's clients train."""
    energy = float(np.sum(np.square(furthest.mean), where=method.weights > 0))
    return float(np.sum(method.mean * furthest.mean)) / energy if energy > 0 else 0.0


@dataclass(frozen=True, slots=True)
class _Moments:
    """Of the updates of one method.

    Args:
        excess: Q less what noise makes of it.
        freedom: what h is multiplied by in E[Q]; 0 of one client.
        energy: ‖δ̄‖².
        own: E‖noise of δ̄‖².
        clients: how many clients of equal weight would have a mean as noisy.
        whole: whether all train all values: else ``own`` and ``clients`` mean nothing.
        noise: the median of v, and more where clients have noise in common; None if nobody moved.
    """

    excess: float
    freedom: float
    energy: float
    own: float
    clients: float
    whole: bool
    noise: float | None

    @staticmethod
    def of(plan: MergePlan, method: Together) -> _Moments:
        rows, size = sorted(method.seen.items()), plan.spec.numel
        inverse = np.divide(1.0, method.weights, out=np.zeros(size), where=method.weights > 0)
        part, mean = dict[str, float](), dict[str, float]()
        for client, _ in rows:
            mask = covered_by(plan, client)
            chosen = inverse if mask is None else inverse[mask.numpy()]
            part[client] = len(chosen) / size
            mean[client] = float(np.mean(chosen)) if len(chosen) else 0.0
        shared = _shared(plan, method.coefficients) if any(row.seeded for _, row in rows) else 0.0
        scatter = math.fsum(row.weight * row.energy for _, row in rows)
        scatter -= float(np.sum(method.weights * np.square(method.mean)))
        noise = math.fsum(
            row.weight * row.noise * (1 - (0 if row.seeded else row.weight * mean[client]))
            for client, row in rows
        )
        noise -= shared * float(np.mean(inverse))
        freedom = math.fsum(row.weight * part[c] * (1 - row.weight * mean[c]) for c, row in rows)
        apart = math.fsum(row.weight**2 * row.noise for _, row in rows if row.seeded)
        common = max(1.0, shared / apart) if apart else 1.0
        noises = [
            row.noise * (common if row.seeded else 1.0) / part[client]
            for client, row in rows
            if row.energy and part[client]  # a client that did not move says nothing of its method
        ]
        total = sum(row.weight for _, row in rows)
        alone = math.fsum(row.weight**2 * row.noise for _, row in rows if not row.seeded)
        return _Moments(
            excess=scatter - noise,
            freedom=max(0.0, freedom) if len(rows) > 1 else 0.0,
            energy=float(np.sum(np.square(method.mean))),
            own=(shared + alone) / total**2,
            clients=total**2 / math.fsum(row.weight**2 for _, row in rows),
            whole=all(c not in plan.tensors and c not in plan.ranks for c, _ in rows),
            noise=statistics.median(noises) if noises else None,
        )

    @property
    def apart(self) -> float:
        """How far the clients differ beyond noise: an estimate of c²·h, below 0 by chance; needs freedom."""
        return self.excess / self.freedom

    @property
    def signal(self) -> float:
        """c²·‖Δ‖², if it can be told; else 0."""
        if self.freedom <= 0 or not self.whole:
            return 0.0
        return self.energy - self.own - self.apart / self.clients

    def unexplained(self, progress: float, between: float, signal: float) -> float:
        """What of a client's update is neither progress nor its own nor its noise.

        What clients of the method have in common beside Δ does not go away in their mean: it counts as many
        times as there are clients.

        Args:
            progress: c, of any size.
            between: h.
            signal: ‖Δ‖².
        """
        squared = max(0.0, progress) ** 2
        within = max(0.0, self.apart - squared * between) if self.freedom > 0 else 0.0
        if not self.whole:
            return within
        own = self.own + (squared * between + within) / self.clients
        return within + self.clients * max(0.0, self.energy - own - squared * signal)


def _shared(plan: MergePlan, coefficients: Integers) -> float:
    """E‖Σ n_i e_i‖² over clients that stepped along seeds: each seed's sum is a step along one direction."""
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


def progress_of(client: str, plan: MergePlan) -> float:
    """The c of the client's method, above 0; 1 if it is not known."""
    return _progress_in(plan.noise, plan.groups.get(client, ""))


def weighed(weight: int, client: str, plan: MergePlan) -> int:
    """n: ``weight`` times min(1, (h + ν_least)/(h + ν)/c), at least 1.

    ν_least is the least of all methods. A method that is not known yet weighs as planned.
    """
    if plan.noise is None or plan.groups.get(client, "") not in plan.noise.noises:
        return weight
    relative = {name: v / _progress_in(plan.noise, name) ** 2 for name, v in plan.noise.noises.items()}
    method, between = plan.groups[client], plan.noise.between
    noise, least = relative[method], min(relative.values())
    if noise <= least:
        return weight
    factor = (between + least) / (between + noise) / _progress_in(plan.noise, method)
    return max(1, round(weight * min(1.0, factor)))


def _progress_in(noise: NoisePlan | None, method: str) -> float:
    return 1.0 if noise is None else max(noise.progress.get(method, 1.0), LEAST_PROGRESS)


def smoothed(before: NoisePlan | None, now: NoisePlan | None) -> NoisePlan | None:
    """The estimate for the next round: the mean of the last one and this round's, of what both know."""
    if before is None or now is None:
        return now or before
    between = (before.between + now.between) / 2
    return NoisePlan(between, _means(before.noises, now.noises), _means(before.progress, now.progress))


def _means(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    both = {name: (before[name] + now[name]) / 2 for name in before.keys() & now.keys()}
    return dict(sorted({**before, **now, **both}.items()))
