"""Method weights: how far updates lie apart, what of that is noise, and what a method's updates should weigh.

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
divisor has c in it). No n is above the planned weight: that is less than the best where a slow method is
exact, and keeps what one client can do small. c counts relative to the furthest method that is in, and the
mean is never longer than the median update of the methods that get as far.

**h** is found by the method of moments (theirs), among clients of one method::

    Q = Σ w‖δ_i‖² − Σ_j N_j·δ̄_j²
    E[Q] = Σ w_i (1 − w_i r_i) (p_i c² h + v_i)

N_j is the weight of those who train value j, p_i the fraction of values that client i trains, r_i the mean
of 1/N_j over them: 1 and 1/N where all train all. Clients that step along the same seeds have noise in
common: what Σ w_i e_i holds of it follows from the sum of their coefficients, and takes the place of Σ w_i²
v_i.

**c** is found by projection on the mean of a method r that can measure the others: two clients or more that
train all values, an eighth of the round's weight, and of all such methods the one that gets furthest: c_m =
c_r·⟨δ̄_m, δ̄_r⟩/‖δ̄_r‖²/ρ. ρ is the share of ‖δ̄_r‖² that is Δ's, found without anybody's word from the
products of different clients' updates: noise and what is the clients' own must not count as something that
others failed to reach (the reliability of errors in variables, Fuller 1987, §1.1). c_r is what was known of
r before, so that rounds with another r say the same. Then h is that among r's clients, and a method's **v**
the median of what its clients say, and on top of it what of their updates neither c nor h nor noise
explains. Where no method can be r, all c stay as they are (1 at first), h is that among the clients of each
method, or among all clients if no method has two, and a v that is the clients' word no less than the typical
‖δ_i‖² beyond what the least energetic method's is without its noise.

**What is weighed is a method, not a client**: a client's own noise is a function of the same slopes as its
update, and weights by it would prefer clients whose loss is flat. So the sums of each method are kept apart,
and f = n/w is applied to them when the round ends: by what the rounds before told, whose errors have nothing
to do with this one's, and by the round itself where nothing is known of a method yet. A client's word about
its noise counts for no more than what arrived, and cannot lift its weight above the planned one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np

from headwater.merging.plan import MergePlan, NoisePlan
from headwater.merging.update_moments import Parts, UpdateMoments, UpdateSums, seeds_in_common, unexplained

LEAST_PROGRESS = 1 / 64
"""No c is taken as less: Σ n·c/max c is never below this part of Σ n."""
LEAST_WEIGHT = 2.0**-20
"""No method weighs less: the mean stays one where nothing else arrives."""
LEAST_RELIABILITY = 1 / 4
"""ρ below this says nothing of progress: what is Δ's cannot be told from what is not."""
LEAST_SHARE = 1 / 8
"""Of a round's weight: a method with less is no measure of the others, whatever it sends."""
_AS_FAR = 0.8
"""Of the furthest method's progress: as far as that, for what is found by chance a little short of it."""


@dataclass(frozen=True, slots=True)
class MethodWeight:
    """What the updates of a method count for.

    Args:
        weight: f, of the planned weight, above 0 and at most 1.
        progress: c, at least :data:`LEAST_PROGRESS` and at most 1.
    """

    weight: float = 1.0
    progress: float = 1.0


def shares_of(known: NoisePlan | None, methods: Iterable[str]) -> dict[str, MethodWeight]:
    """The f = min(1, (h + ν_least)/(h + ν)/c) and c of each method that is in; 1 if nothing is known."""
    if known is None:
        return {name: MethodWeight() for name in methods}
    progress = {name: max(known.progress.get(name, 1.0), LEAST_PROGRESS) for name in methods}
    relative = {name: known.noises[name] / c**2 for name, c in progress.items() if name in known.noises}
    least, shares = min(relative.values(), default=0.0), dict[str, MethodWeight]()
    for name, c in progress.items():
        factor, noise = 1.0, relative.get(name, least)
        if noise > least:
            factor = (known.between + least) / (known.between + noise) / c
        shares[name] = MethodWeight(min(1.0, max(LEAST_WEIGHT, factor)), c)
    return shares


def longest(plan: MergePlan, methods: Mapping[str, UpdateSums], shares: Mapping[str, MethodWeight]) -> float:
    """How long the merged update may be: as the median one, by weight, of the methods that get furthest.

    Infinite if all get as far and weigh as planned: then the mean is a plain one.
    """
    far = max(shares[name].progress for name in methods) * _AS_FAR
    if all(shares[name].progress >= far and shares[name].weight == 1 for name in methods):
        return math.inf
    lengths, parts = [], Parts(plan)
    for name, method in methods.items():
        share = shares[name]
        for client, row in method.norms.items():
            if share.progress >= far and row.energy and parts[client]:
                length = math.sqrt(row.energy / parts[client]) / share.progress
                lengths.append((length, row.weight * share.weight))
    half, passed = math.fsum(weight for _, weight in lengths) / 2, 0.0
    for length, weight in sorted(lengths):
        passed += weight
        if passed >= half:
            return length
    return math.inf


def estimate(plan: MergePlan, methods: Mapping[str, UpdateSums]) -> NoisePlan | None:
    """What this round tells; None where there is one method only.

    Args:
        plan: of this round.
        methods: the updates that are in, by method.
    """
    if not plan.weighs or len(methods) < 2 or not plan.spec.numel:
        return None
    found = {name: UpdateMoments.of(plan, method) for name, method in sorted(methods.items())}
    known = shares_of(plan.noise, found)
    least = LEAST_SHARE * math.fsum(m.weight for m in found.values())
    measures = {
        name: m.signal
        for name, m in found.items()
        if m.freedom > 0 and m.weight >= least and m.signal > LEAST_RELIABILITY * m.energy
    }
    if not measures:
        return _believed(plan, methods, found)
    name = max(measures, key=lambda name: measures[name])
    measure, scale = found[name], known[name].progress
    between, noises, progress = min(max(0.0, measure.apart), measure.typical), {}, {name: scale}
    for other, moments in found.items():
        reached = 1.0 if other == name else _reached(plan, methods[other], methods[name], measure)
        if reached is not None:
            progress[other] = min(1.0, max(0.0, reached * scale))
        if moments.noise is not None:
            noises[other] = moments.noise
            if other != name and reached is not None:
                noises[other] += unexplained(moments, reached, between, measure.signal)
    return NoisePlan(between / scale**2, noises, progress)


def _believed(
    plan: MergePlan, methods: Mapping[str, UpdateSums], found: Mapping[str, UpdateMoments]
) -> NoisePlan | None:
    """What a round tells in which no method can measure the others: c stays."""
    shares = shares_of(plan.noise, found)  # the noisy ones tell less of h
    squared = {name: share.progress**2 for name, share in shares.items()}
    pooled = reduce(UpdateSums.joined, (methods[name].scaled(shares[name].weight) for name in found))
    everybody = UpdateMoments.of(plan, pooled)
    moved = {name: m for name, m in found.items() if m.noise is not None}
    freedom = math.fsum((squared[name] * shares[name].weight) ** 2 * m.freedom for name, m in moved.items())
    excess = math.fsum(squared[name] * shares[name].weight ** 2 * m.excess for name, m in moved.items())
    if freedom <= 0:
        mean = math.fsum(squared[name] * shares[name].weight * m.weight for name, m in found.items())
        excess, freedom = everybody.excess, everybody.freedom * mean / everybody.weight
    if freedom <= 0:
        return None
    quiet = [m.quiet / squared[name] for name, m in moved.items() if m.freedom > 0 and m.quiet > 0]
    noises = {name: m.noise or 0.0 for name, m in moved.items()}
    for name in noises.keys() & plan.claimed if quiet else ():
        noises[name] = max(noises[name], moved[name].typical - squared[name] * min(quiet))
    # of every method ‖δ‖²/c² is at least h
    least = LEAST_SHARE * math.fsum(m.weight for m in found.values())
    bounds = {name: m.typical / squared[name] for name, m in moved.items()}
    heavy = [bounds[name] for name, m in moved.items() if m.freedom > 0 and m.weight >= least]
    bound = min(heavy) if heavy else max(bounds.values(), default=0.0)
    return NoisePlan(min(max(0.0, excess / freedom), bound), noises)


def _reached(
    plan: MergePlan, method: UpdateSums, measure: UpdateSums, moments: UpdateMoments
) -> float | None:
    """⟨δ̄_m, δ̄_r⟩/‖δ̄_r‖²/ρ over the values that the method's clients train; None if ρ is too small there."""
    trained = method.weights > 0
    energy = float(np.sum(np.square(measure.mean), where=trained))
    own = (moments.energy - moments.signal) * float(np.mean(trained))
    if energy - own <= LEAST_RELIABILITY * energy:
        return None
    together = float(np.sum(method.mean * measure.mean))
    if len(method.coefficients) and len(measure.coefficients):
        both = seeds_in_common(plan, method.coefficients, measure.coefficients)
        together -= both / (float(np.max(method.weights)) * float(np.max(measure.weights)))
    return together / (energy - own)


def completed(before: NoisePlan | None, now: NoisePlan | None) -> NoisePlan | None:
    """What a round is weighed by: what the rounds before told, and of methods they did not know its own."""
    if before is None or now is None:
        return now or before
    noises, progress = {**now.noises, **before.noises}, {**now.progress, **before.progress}
    return NoisePlan(before.between, noises, progress)


def smoothed(before: NoisePlan | None, now: NoisePlan | None) -> NoisePlan | None:
    """What is known after a round: the mean of what was before and of what it told, of what both know.

    The furthest method has c = 1.
    """
    if before is None or now is None:
        return now or before
    progress = _means(before.progress, now.progress)
    most = max([max(c, LEAST_PROGRESS) for c in progress.values()], default=1.0)
    between = (before.between + now.between) / 2 * most**2
    return NoisePlan(
        between, _means(before.noises, now.noises), {name: c / most for name, c in progress.items()}
    )


def _means(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    both = {name: (before[name] + now[name]) / 2 for name in before.keys() & now.keys()}
    return dict(sorted({**before, **now, **both}.items()))
