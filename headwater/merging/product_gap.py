"""GapSketch: how far the merged factors are from the merge of the products.

A LoRA module changes its weight by s·B·A. Merging A and B apart gives s·B*·A*, where the mean of the
clients' products would be Σ p_i·s·B_i·A_i. For the weighted mean of the factors the difference is a
covariance, G = Σ p_i·s·(B_i − B̄)(A_i − Ā): zero while the clients agree on A or on B (FFA-LoRA,
arXiv 2403.12313), growing as they drift (FedEx-LoRA, arXiv 2410.09432, section 3).

G is d_out × d_in per module and would need every client's factors at once. The sketch projects it:
with m random sign vectors V [d_in, m] that all clients share, E‖G·V‖²/m = ‖G‖² in Frobenius norm
(Hutchinson 1990; relative standard deviation of the square at most √(2/m)), and Σ w_i·s·B_i·(A_i·V)
is a sum of d_out × m numbers. It adds like an :class:`Aggregator`, in int64, in any order, and its
size does not depend on the number of clients.

A diagnosis, never a reason to refuse: values beyond its bound are clamped and counted, the bound shrinks
where the weights leave it too few bits, and every number of the report is finite. Left out: DoRA's
magnitudes, which make the change of weight non-linear; the report is about s·B·A alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwater.errors import ConfigError, DecodeError, EmptyRound
from headwater.merging.fixed_point import from_fixed, most_units, require_range, to_fixed
from headwater.merging.pairs import factors, pairs
from headwater.merging.participants import Participants
from headwater.merging.plan import MergePlan, Update
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec


@dataclass(frozen=True, slots=True)
class ModuleGap:
    """One LoRA module: ``gap`` estimates ‖G‖, ``product`` ‖Σ p·s·B·A‖ (Frobenius norms)."""

    gap: float
    product: float

    @property
    def relative(self) -> float:
        """The gap as a fraction of the product's norm; finite.

        Where the product is zero: 0.0 without a gap, else 1.0, for all that was merged is gap.
        """
        return self.gap / self.product if self.product else float(self.gap > 0)


@dataclass(frozen=True, slots=True)
class GapReport:
    """What the sketch found.

    Args:
        total: all modules together (root of the summed squares).
        modules: by the name of the module's ``lora_b``.
        saturated: values of clients and of the merged state that were clamped; above 0 the estimates
            are too low.
        probes: m; the squared norms have a relative standard deviation of at most √(2/m) each.
        exact: no module's A travels, or there is no LoRA at all, so the gap is 0 by algebra and nothing
            was measured.
    """

    total: ModuleGap
    modules: Mapping[str, ModuleGap]
    saturated: int
    probes: int
    exact: bool


@dataclass
class GapSums:
    """Σ w·s·B·(A·V) in units of 2^-bits, int64 [experts·d_out, m] per module. Owned by the sketch."""

    participants: Participants
    bits: int
    bound: float
    products: dict[str, Tensor] = field(default_factory=dict)
    saturated: int = 0


class GapSketch:
    """Estimates the gap of one round.

    Args:
        base: the decoded state that the round's clients started from.
        key: randomness of the probes, such as ``root.child("gap", round)``.
        probes: m, the number of sign vectors per module.
        bound: values of s·B·A·V beyond it are clamped; in :attr:`GapSums.bound` is what the weights of
            a round leave of it.
    """

    def __init__(self, base: AdapterState, *, key: Key, probes: int = 8, bound: float = 1024.0) -> None:
        self.base, self.key, self.probes, self.bound = base, key, probes, bound

    def init(self, plan: MergePlan) -> GapSums:
        """Zeros, 8·m·d_out bytes a module, so much for each of its experts."""
        self.base.require_spec(plan.spec, "gap sketch, base state")
        zeros = {
            b.name: torch.zeros(b.experts * b.shape[0], self.probes, dtype=torch.int64) for b in self._modules
        }
        bound, bits = self._scale(plan)
        return GapSums(Participants(plan), bits, bound, zeros)

    def identity(self) -> Mapping[str, Any]:
        """What sketches whose sums may be combined have in common."""
        return {
            "base": self.base.sha256(),
            "key": self.key.digest.hex(),
            "probes": self.probes,
            "bound": float(self.bound),
        }

    def kept_bytes(self, spec: StateSpec, clients: int) -> int:
        """Memory of the sums of all modules, whatever the number of clients."""
        return sum(8 * b.experts * b.shape[0] * self.probes for b in self._modules)

    def require_sound(self, acc: GapSums) -> None:
        """Refuse sums beyond the bound, which no updates add up to.

        Raises:
            DecodeError: says what is wrong.
        """
        bound, bits = self._scale(acc.participants.plan)
        if (acc.bound, acc.bits) != (bound, bits) or acc.saturated < 0:
            got = f"{acc.bound:g}, {acc.bits}, {acc.saturated}"
            raise DecodeError("gap sketch, scale", expected=f"{bound:g}, {bits}, 0 or more", got=got)
        most = acc.participants.weight * most_units(bound, bits)
        for name, sums in acc.products.items():
            require_range(sums, f"gap sketch, {name}", low=-most, high=most)

    def add(self, acc: GapSums, update: Update) -> GapSums:
        """Add w·s·B·(A·V) of the client's state, base + delta. Consumes ``acc``.

        Raises:
            UpdateRejected: the client is not in the plan, or already in; never for its values.
            SpecMismatch: the delta has another spec than the plan.
        """
        weight, delta = acc.participants.weight_of(update), acc.participants.values_of(update)
        for b in self._modules:
            inside, outside = _clamp(self._project(b, self.base, delta), acc.bound)
            acc.saturated += outside
            acc.products[b.name].add_(to_fixed(inside, acc.bits), alpha=weight)
        acc.participants.enter(update.client)
        return acc

    def combine(self, left: GapSums, right: GapSums) -> GapSums:
        """Add the sums of two disjoint groups. Consumes both.

        Raises:
            UpdateRejected: the groups share a client.
        """
        left.participants.require_disjoint(right.participants)
        for name, sums in right.products.items():
            left.products[name].add_(sums)
        left.saturated += right.saturated
        left.participants.join(right.participants)
        return left

    def finalize(self, acc: GapSums, merged: AdapterState) -> GapReport:
        """Compare with ``merged``, the base plus the delta of the round's rule.

        Not the server's next state: its optimiser's rate and momentum would count as a gap.

        Raises:
            EmptyRound: no update was added.
            SpecMismatch: ``merged`` has another spec than the plan.
        """
        if not acc.participants.clients:
            raise EmptyRound("gap sketch", expected="at least one accepted update", got="none")
        merged.require_spec(acc.participants.plan.spec, "gap sketch, merged state")
        modules: dict[str, ModuleGap] = {}
        saturated = acc.saturated
        for b in self._modules:
            ideal = from_fixed(acc.products[b.name], acc.bits).div_(acc.participants.weight)
            found, outside = _clamp(self._project(b, merged), acc.bound)
            saturated += outside
            modules[b.name] = ModuleGap(self._norm(ideal - found), self._norm(ideal))
        total = ModuleGap(
            math.hypot(*(m.gap for m in modules.values())),
            math.hypot(*(m.product for m in modules.values())),
        )
        return GapReport(total, modules, saturated, self.probes, exact=not modules)

    def _scale(self, plan: MergePlan) -> tuple[float, int]:
        """Bound and bits: a smaller bound rather than fewer bits, for what it clamps is counted."""
        bound = self.bound
        while True:
            try:
                return bound, plan.scale_bits(bound)
            except ConfigError:
                bound /= 2

    @cached_property
    def _modules(self) -> tuple[TensorSpec, ...]:
        """The ``lora_b`` whose ``lora_a`` travels too. A transposed base has the same norms."""
        return pairs(self.base.spec)

    @cached_property
    def _signs(self) -> Mapping[str, Tensor]:
        """V, ±1 as float64 [d_in, m], by the name of the module's ``lora_b``."""
        signs = {}
        for b in self._modules:
            shape = (self.base.spec.by_name[b.pair].shape[1], self.probes)
            draw = self.key.child("probes", b.name).numpy().integers(0, 2, size=shape, dtype=np.int8)
            signs[b.name] = torch.from_numpy(draw).double().mul_(2).sub_(1)
        return signs

    def _project(self, b: TensorSpec, state: AdapterState, delta: AdapterState | None = None) -> Tensor:
        """s·B·(A·V), float64 [experts·d_out, m], of ``state`` or of ``state`` + ``delta``."""
        up, down = factors(state, b)
        if delta is not None:
            more_up, more_down = factors(delta, b)
            down, up = down + more_down, up + more_up
        return (up @ (down @ self._signs[b.name])).reshape(-1, self.probes).mul_(b.scaling)

    def _norm(self, projected: Tensor) -> float:
        """√(‖projected‖²/m)."""
        return float(projected.square().sum().div_(self.probes).sqrt())


def _clamp(values: Tensor, bound: float) -> tuple[Tensor, int]:
    """``values`` within ±``bound``, NaN as 0, and how many were not."""
    inside = values.clamp(-bound, bound).nan_to_num_(nan=0.0)
    return inside, int((inside != values).sum())
