"""How rule ``evolve`` finds its merge: NSGA-II over coefficients, a loss for each file of rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from headwater.errors import TrainingError
from headwater.merging.largest import Cut
from headwater.merging.offline.fold import fold
from headwater.merging.offline.low_rank import Basis
from headwater.merging.offline.measured import Measured
from headwater.merging.offline.rule import Floats
from headwater.merging.offline.rules.searched import Evolve
from headwater.merging.offline.rules.ties import Ties
from headwater.seeds.keys import Key
from headwater.tasks.batches import Example
from headwater.training.merging.front_picture import front_svg
from headwater.training.merging.network import RowsNetwork
from headwater.training.merging.pareto import front, knee, nsga2

_WORST = 1e300
"""What a candidate counts whose loss is not finite."""
_LEAST = 0.01
"""The smallest weight and density of TIES."""


def search_evolve(
    network: RowsNetwork,
    rule: Evolve,
    rows: Sequence[Sequence[Example]],
    names: Sequence[str],
    *,
    seed: int,
    progress: Callable[[str], None],
) -> Measured:
    """The merge at the knee of the front.

    Args:
        network: of the base.
        rule: with its settings.
        rows: of each objective.
        names: of the objectives.
        seed: of the search.
        progress: is told how far it is.
    """
    candidates = _Candidates(network, rule)
    most = rule.population * (rule.generations + 1)
    tried: list[Floats] = []

    def evaluate(point: Floats) -> list[float]:
        tried.append(point)
        progress(f"candidate {len(tried)} of {most}")
        return candidates.losses(candidates.cores(point), rows)

    count = len(network.adapters)
    mean = np.array(candidates.losses(candidates.summed(np.full(count, 1 / count)), rows))
    points, losses = nsga2(
        evaluate,
        [candidates.first],
        population=rule.population,
        generations=rule.generations,
        generator=Key.root(seed).child("merge", "evolve").numpy(),
    )
    best = front(losses)
    chosen = best[knee(losses[best])]
    told = [{**candidates.told(points[i]), "losses": losses[i].tolist()} for i in best]
    record = {"objectives": list(names), "mean": mean.tolist(), "front": told, "taken": best.index(chosen)}
    worse = bool((mean < losses[chosen]).all())
    return Measured(
        shares=candidates.shares(points[chosen]),
        changes={m: (candidates.bases[m], core) for m, core in candidates.cores(points[chosen]).items()},
        facts={
            "rows": [len(part) for part in rows],
            "candidates": len(points),
            "taken": told[best.index(chosen)],
            "losses_of_mean": mean.tolist(),
        },
        files={
            "pareto.svg": front_svg(losses, best, chosen, mean, names),
            "pareto.json": json.dumps(record, indent=2) + "\n",
        },
        notes=("the mean has a smaller loss on every file: take rule mean",) if worse else (),
    )


class _Candidates:
    """Merges by a point of the unit cube.

    Args:
        network: of the base.
        rule: with its settings.
    """

    def __init__(self, network: RowsNetwork, rule: Evolve) -> None:
        adapters = network.adapters
        self._network, self._rule, self._count = network, rule, len(adapters)
        self.bases = {module: Basis.of_changes(adapters, module) for module in adapters.modules}
        self._stacks: Mapping[str, Floats] = {
            m: np.stack([self.bases[m].core(*f.factors(m)) for f in adapters.folders])
            for m in adapters.modules
        }
        self._rest = network.averaged()

    @property
    def first(self) -> Floats:
        """The mean, or TIES of all values with equal weights."""
        if self._rule.method == "ties":
            return np.array([1.0] * (self._count + 1) + [min(1.0, 1 / self._rule.bound)])
        return np.full(self._count, min(1.0, 1 / (self._count * self._rule.bound)))

    def told(self, point: Floats) -> dict[str, object]:
        """The settings of a point, in words."""
        names = [str(folder.path) for folder in self._network.adapters.folders]
        if self._rule.method == "ties":
            weights, density, factor = self._ties(point)
            shares = dict(zip(names, weights.tolist(), strict=True))
            return {"weights": shares, "density": density, "scale": factor}
        return {"coefficients": dict(zip(names, (self._rule.bound * point).tolist(), strict=True))}

    def shares(self, point: Floats) -> Floats:
        """What each adapter counts [T]."""
        return self._ties(point)[0] if self._rule.method == "ties" else self._rule.bound * point

    def cores(self, point: Floats) -> dict[str, Floats]:
        """C by module."""
        if self._rule.method != "ties":
            return self.summed(self._rule.bound * point)
        weights, density, factor = self._ties(point)
        rule, found = Ties(density=density), {}
        for module, stack in self._stacks.items():

            def read(i: int, stack: Floats = stack) -> Floats:
                flat: Floats = stack[i].reshape(-1).copy()
                Cut.of(flat, density).apply(flat)
                return flat

            found[module] = factor * fold(rule, read, weights).reshape(stack.shape[1:])
        return found

    def summed(self, coefficients: Floats) -> dict[str, Floats]:
        """Σ c_i·C_i by module."""
        return {module: np.tensordot(coefficients, stack, 1) for module, stack in self._stacks.items()}

    def losses(self, cores: Mapping[str, Floats], rows: Sequence[Sequence[Example]]) -> list[float]:
        """The mean loss on each objective's rows."""
        values = dict(self._rest)
        for module, core in cores.items():
            values |= self._network.change(module, self.bases[module], self._network.tensor(core))
        found = []
        for part in rows:
            try:
                found.append(self._network.loss(values, part))
            except TrainingError:  # a loss that is not finite: a bad candidate, and no end
                found.append(_WORST)
        return found

    def _ties(self, point: Floats) -> tuple[Floats, float, float]:
        weights = np.maximum(point[: self._count], _LEAST)
        density = max(_LEAST, float(point[self._count]))
        return weights / weights.sum(), density, self._rule.bound * max(_LEAST, float(point[self._count + 1]))
