"""Update moments: what the updates of some clients add up to, and how far they lie apart.

:class:`UpdateSums` are sums of updates; :class:`UpdateMoments` what :mod:`.method_weights` needs to know of
them. Its formulas stand there.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from headwater.errors import UpdateRejected
from headwater.merging.coverage import covered_by
from headwater.merging.plan import MergePlan
from headwater.seeds.directions import Integers

Floats: TypeAlias = npt.NDArray[np.float64]

_ROUNDING = 1e-6
"""What is left of a weight after subtracting itself."""


@dataclass(frozen=True, slots=True)
class UpdateNorm:
    """One update that is in.

    Args:
        weight: w.
        energy: ‖δ‖²; 0 where nobody needs it.
        noise: v, at most ``energy``.
        seeded: whether the noise is that of its coefficients of seeds.
    """

    weight: float
    energy: float = 0.0
    noise: float = 0.0
    seeded: bool = False


@dataclass(frozen=True, slots=True)
class UpdateSums:
    """The updates of some clients, and what they add up to.

    Args:
        norms: by client.
        total: float64 [numel], Σ w·δ.
        weights: float64 [numel], N: Σ w of those who train a value.
        coefficients: [plan.seeds.count], Σ w·a; empty without seeds.
    """

    norms: Mapping[str, UpdateNorm]
    total: Floats
    weights: Floats
    coefficients: Integers | Floats

    @property
    def mean(self) -> Floats:
        """δ̄; 0 where nobody trains."""
        return np.divide(self.total, self.weights, out=np.zeros_like(self.total), where=self.weights > 0)

    def scaled(self, factor: float) -> UpdateSums:
        """The same updates, with other weights."""
        return UpdateSums(
            {client: replace(row, weight=row.weight * factor) for client, row in self.norms.items()},
            self.total * factor,
            self.weights * factor,
            self.coefficients.astype(np.float64) * factor,
        )

    def joined(self, other: UpdateSums) -> UpdateSums:
        """With other clients."""
        return UpdateSums(
            {**self.norms, **other.norms},
            self.total + other.total,
            self.weights + other.weights,
            self.coefficients + other.coefficients,
        )


class Parts:
    """The fraction of values that each client trains; each shape is looked at once.

    Args:
        plan: of the round.
        weights: float64 [numel], N, for :meth:`crowd`.

    Attributes:
        inverse: 1/N; 0 where nobody trains.
    """

    def __init__(self, plan: MergePlan, weights: Floats | None = None) -> None:
        weights = np.zeros(plan.spec.numel) if weights is None else weights
        self.inverse = np.divide(1.0, weights, out=np.zeros_like(weights), where=weights > 0)
        self._plan, self._known = plan, dict[object, tuple[float, float]]()

    def __getitem__(self, client: str) -> float:
        return self._of(client)[0]

    def crowd(self, client: str) -> float:
        """r: the mean of 1/N over the values that the client trains; 0 without any."""
        return self._of(client)[1]

    def _of(self, client: str) -> tuple[float, float]:
        shape = self._plan.tensors.get(client), self._plan.ranks.get(client)
        if shape not in self._known:
            mask = covered_by(self._plan, client)
            chosen = self.inverse if mask is None else self.inverse[mask.numpy()]
            mean = float(np.mean(chosen)) if len(chosen) else 0.0
            part = 1.0 if mask is None else len(chosen) / len(mask)
            self._known[shape] = part, mean
        return self._known[shape]


@dataclass(frozen=True, slots=True)
class UpdateMoments:
    """Of the updates of one method.

    Args:
        weight: N, Σ w.
        excess: Q less what noise makes of it.
        freedom: what h is multiplied by in E[Q]; 0 of one client, and where every value has one trainer.
        energy: ‖δ̄‖².
        own: E‖noise of δ̄‖².
        clients: how many clients of equal weight would have a mean as noisy.
        whole: whether all train all values: else ``own``, ``clients`` and ``signal`` mean nothing.
        signal: c²·‖Δ‖², without anybody's word; at most ``energy``, 0 if it can't be told.
        noise: the median of v, and more where clients have noise in common; None if nobody moved.
        typical: the median of ‖δ‖²/p.
        quiet: the mean of (‖δ‖² − v)/p.
    """

    weight: float
    excess: float
    freedom: float
    energy: float
    own: float
    clients: float
    whole: bool
    signal: float
    noise: float | None
    typical: float
    quiet: float

    @staticmethod
    def of(plan: MergePlan, method: UpdateSums) -> UpdateMoments:
        """The moments of a method's updates in a round with this plan."""
        rows, parts = sorted(method.norms.items()), Parts(plan, method.weights)
        part = {client: parts[client] for client, _ in rows}
        others = {client: 1 - row.weight * parts.crowd(client) for client, row in rows}
        left = {client: alone if alone > _ROUNDING else 0.0 for client, alone in others.items()}
        mean, total = method.mean, math.fsum(row.weight for _, row in rows)
        squares = math.fsum(row.weight**2 for _, row in rows)
        energies = math.fsum(row.weight * row.energy for _, row in rows)
        energy = float(np.sum(np.square(mean)))
        around_mean = energies - float(np.sum(method.weights * np.square(mean)))
        apart = math.fsum(row.weight**2 * row.noise for _, row in rows if row.seeded)
        shared = seeds_in_common(plan, method.coefficients, method.coefficients) if apart else 0.0
        noise = math.fsum(
            row.weight * row.noise * (1 if row.seeded else left[client]) for client, row in rows
        )
        noise -= shared * float(np.mean(parts.inverse))
        freedom = math.fsum(row.weight * part[client] * left[client] for client, row in rows)
        single = math.fsum(row.weight**2 * row.noise for _, row in rows if not row.seeded)
        factor = max(1.0, shared / apart) if apart else 1.0
        moved = [(row, part[c]) for c, row in rows if row.energy and part[c]]  # the others say nothing
        whole = not any(client in plan.tensors or client in plan.ranks for client, _ in rows)
        signal = 0.0
        if whole and total**2 - squares > _ROUNDING * total**2:
            common = shared - apart
            products = total**2 * energy - math.fsum(row.weight**2 * row.energy for _, row in rows) - common
            spread = (around_mean + common / total) / (total - squares / total)
            rest = energy - (common + spread * squares) / total**2
            signal = max(0.0, min(products / (total**2 - squares), rest, energy))
        typical = statistics.median(r.energy / p for r, p in moved) if moved else 0.0
        clients = total**2 / squares
        noises = [r.noise * (factor if r.seeded else 1.0) / p for r, p in moved]
        return UpdateMoments(
            weight=total,
            excess=around_mean - noise,
            freedom=freedom if freedom > _ROUNDING * total else 0.0,
            energy=energy,
            own=(shared + single) / total**2,
            clients=clients,
            whole=whole,
            signal=signal,
            noise=min(statistics.median(noises), clients * typical) if noises else None,
            typical=typical,
            quiet=statistics.fmean((r.energy - r.noise) / p for r, p in moved) if moved else 0.0,
        )

    @property
    def apart(self) -> float:
        """How far the clients differ beyond noise: an estimate of c²·h, below 0 by chance; needs freedom."""
        return self.excess / self.freedom


def unexplained(moments: UpdateMoments, progress: float, between: float, signal: float) -> float:
    """What of a client's update is neither progress nor its own nor its noise.

    What clients of the method have in common beside Δ does not go away in their mean: it counts as many
    times as there are clients. No more than their typical ‖δ‖² each.

    Args:
        moments: of the method.
        progress: c, of any size.
        between: h.
        signal: ‖Δ‖².
    """
    squared = max(0.0, progress) ** 2
    if moments.freedom > 0:
        beyond = max(0.0, moments.apart - squared * between)
        if moments.whole:
            beyond += moments.clients * max(0.0, moments.signal - squared * signal)
    else:
        beyond = (
            max(0.0, moments.energy - moments.own - squared * (signal + between)) if moments.whole else 0.0
        )
    return min(beyond, moments.clients * moments.typical)


def seeds_in_common(plan: MergePlan, left: Integers | Floats, right: Integers | Floats) -> float:
    """E⟨Σ w e, Σ w e⟩ of two sums of steps along seeds: they have in common what they step along one seed."""
    bits = 0 if plan.seeds is None else plan.seeds.unit_bits
    steps = (left.astype(np.float64) * 2.0**-bits) * (right.astype(np.float64) * 2.0**-bits)
    return float(np.sum(steps)) * (plan.spec.numel - 1)


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
