"""Several objectives at once: fronts, the knee, and the genetic search NSGA-II (Deb et al. 2002)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from headwater.merging.offline.rule import Floats

Integers = npt.NDArray[np.int64]
_CROSSED, _SPREAD = 0.9, 15.0
"""Simulated binary crossover: how often, and its distribution index."""
_MUTATION = 20.0
"""The distribution index of polynomial mutation; one coordinate of a child in the mean."""


def dominates(first: Floats, other: Floats) -> bool:
    """Whether ``first`` [objectives] is nowhere larger and somewhere smaller."""
    return bool((first <= other).all() and (first < other).any())


def front(losses: Floats) -> list[int]:
    """The rows of ``losses`` [n, objectives] that no other dominates; of equal ones the first."""
    found = []
    for i, mine in enumerate(losses):
        twin = (losses[:i] == mine).all(axis=1).any()
        if not twin and not any(dominates(other, mine) for other in losses):
            found.append(i)
    return found


def knee(losses: Floats) -> int:
    """The row of a front [n, objectives] closest to the ideal point, each objective's span taken as 1."""
    low, span = losses.min(axis=0), np.ptp(losses, axis=0)
    return int(np.linalg.norm((losses - low) / np.where(span > 0, span, 1.0), axis=1).argmin())


def fronts(losses: Floats) -> list[Integers]:
    """All rows by front, the best first."""
    dominated = np.array([[dominates(a, b) for a in losses] for b in losses])
    left, found = np.ones(len(losses), bool), []
    while left.any():
        now = np.flatnonzero(left & ~(dominated & left).any(axis=1))
        found.append(now)
        left[now] = False
    return found


def crowding(losses: Floats) -> Floats:
    """How far each row's neighbours in a front lie apart, summed over objectives; infinite at its ends."""
    found = np.zeros(len(losses))
    for column in losses.T:
        order = np.argsort(column, kind="stable")
        span = float(np.ptp(column)) or 1.0
        found[order[[0, -1]]] = np.inf
        found[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return found


def nsga2(
    evaluate: Callable[[Floats], Sequence[float]],
    first: Sequence[Floats],
    *,
    population: int,
    generations: int,
    generator: np.random.Generator,
) -> tuple[Floats, Floats]:
    """Search the unit cube.

    Args:
        evaluate: the losses of a point [d].
        first: points that are tried first; random ones fill the generation.
        population: points of a generation.
        generations: after the first.
        generator: of all that is drawn.

    Returns:
        All points that were tried [n, d], and their losses [n, objectives].
    """
    points = [*first, *generator.random((max(0, population - len(first)), len(first[0])))]
    losses = [evaluate(point) for point in points]
    alive = np.arange(len(points))
    for _ in range(generations):
        ranks, room = _standing(np.array(losses)[alive])
        for _ in range(population):
            pair = [alive[_better(generator, ranks, room)] for _ in range(2)]
            child = _mutated(_crossed(points[pair[0]], points[pair[1]], generator), generator)
            points.append(child)
            losses.append(evaluate(child))
        pool = np.concatenate([alive, np.arange(len(points) - population, len(points))])
        ranks, room = _standing(np.array(losses)[pool])
        alive = pool[np.lexsort((-room, ranks))[:population]]
    return np.array(points), np.array(losses, np.float64)


def _standing(losses: Floats) -> tuple[Integers, Floats]:
    """The number of each row's front, and its crowding there."""
    ranks, room = np.zeros(len(losses), np.int64), np.zeros(len(losses))
    for number, members in enumerate(fronts(losses)):
        ranks[members], room[members] = number, crowding(losses[members])
    return ranks, room


def _better(generator: np.random.Generator, ranks: Integers, room: Floats) -> int:
    """The winner of two that are drawn."""
    one, two = generator.integers(len(ranks), size=2)
    return int(one if (ranks[one], -room[one]) <= (ranks[two], -room[two]) else two)


def _crossed(one: Floats, two: Floats, generator: np.random.Generator) -> Floats:
    """One child by simulated binary crossover."""
    if generator.random() > _CROSSED:
        return one.copy()
    u = generator.random(one.shape)
    near, far = (2 * u) ** (1 / (_SPREAD + 1)), (1 / (2 * (1 - u))) ** (1 / (_SPREAD + 1))
    spread = np.where(u <= 0.5, near, far)
    sign = np.where(generator.random(one.shape) < 0.5, 1.0, -1.0)
    child: Floats = np.clip(0.5 * ((one + two) + sign * spread * (one - two)), 0, 1)
    return child


def _mutated(child: Floats, generator: np.random.Generator) -> Floats:
    """Polynomial mutation of one coordinate in the mean."""
    u = generator.random(child.shape)
    down, up = (2 * u) ** (1 / (_MUTATION + 1)) - 1, 1 - (2 * (1 - u)) ** (1 / (_MUTATION + 1))
    hit = generator.random(child.shape) < 1 / len(child)
    found: Floats = np.clip(child + np.where(hit, np.where(u < 0.5, down, up), 0.0), 0, 1)
    return found
