"""ProductAggregator: the mean of the clients' products s·B·A, given back as factors of the adapter's rank.

The mean of A times the mean of B is not the mean of the products (:mod:`.product_gap`). Here what is merged
of a LoRA pair is W = s·B·A itself: each client changed the global product by s·(B_i·A_i − B·A), and the mean
of these changes is added to it (FlexLoRA, arXiv 2402.11505, does so with dense matrices). The sums are linear
sketches of int64 (:mod:`.product_sketch`), so they add in any order, and memory does not grow with clients.
The new factors are the truncated SVD of W, both with √(σ/s): the most important component is the first, so a
client that trains the first components (``MergePlan.ranks``) has the best of its rank. Whatever is no pair is
merged by :class:`~headwater.merging.mean.MeanAggregator`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwater.errors import EmptyRound, UpdateRejected
from headwater.merging.aggregator import Aggregator, Merged
from headwater.merging.fixed_point import from_fixed, require_norm, require_range, to_fixed
from headwater.merging.mean import MeanAggregator
from headwater.merging.method_sums import MeanSums
from headwater.merging.pairs import factors, joined, pairs
from headwater.merging.plan import MergePlan, Update
from headwater.merging.product_sketch import Floats, Probes
from headwater.merging.sound_mean import require_sound_mean
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec

BOUND = 1024.0
"""No projection of a client's change of a weight on a direction may be larger."""
_BITS = 50
"""Sums are in units of 2^-50 of what weighs 1 in all: |Σ p·x| ≤ 2^10, so they stay below 2^61."""
_ROUNDING = 1e-7
"""Singular values below this part of the largest are rounding of float32."""

Segments = tuple[tuple[int, int], ...]
"""Components lo … hi − 1 of a pair, which the same clients train."""


@dataclass
class PairSums:
    """What is added up of one pair: int64 [segments, …], as :meth:`Probes.project` gives it."""

    right: Tensor
    left: Tensor | None

    def add(self, other: PairSums) -> None:
        """Other clients."""
        self.right.add_(other.right)
        if self.left is not None and other.left is not None:
            self.left.add_(other.left)


@dataclass
class ProductSums(MeanSums):
    """What a round adds up: the mean's sums, and each pair's by the name of its ``lora_b``."""

    products: dict[str, PairSums] = field(default_factory=dict)


class ProductAggregator(Aggregator[ProductSums]):
    """The mean of the products, truncated to the adapter's rank.

    Args:
        base: the state that the round's clients started from.
        key: randomness of the probes, such as ``root.child("product", round)``.
        width: columns of a sketch as a multiple of the rank.
        by_holders: a component's mean is over the clients that train it (raFLoRA, arXiv 2602.13486); else
            over all of the round, whose other clients left it as it was.
        ridge: λ; if given, A is the mean of the A's, and B such that ‖s·B·A − W‖² + λ·s²·‖B − B̄‖² is least
            (LoRA-FAIR, arXiv 2411.14961, in closed form); None for the truncated SVD.
    """

    def __init__(
        self,
        base: AdapterState,
        *,
        key: Key,
        width: int = 3,
        by_holders: bool = True,
        ridge: float | None = None,
    ) -> None:
        self.base, self.key = base, key
        self.width, self.by_holders, self.ridge = width, by_holders, ridge
        self._mean = MeanAggregator()

    def identity(self) -> Mapping[str, Any]:  # noqa: D102 - inherited
        about = {"width": self.width, "by_holders": self.by_holders, "ridge": self.ridge}
        return {"base": self.base.sha256(), "key": self.key.digest.hex(), **about}

    def kept_bytes(self, spec: StateSpec, clients: int) -> int:
        """Memory of the sums of all pairs, which clients of as many ranks keep apart."""
        return sum(
            8
            * min(b.shape[1], clients + 1)
            * sum(part.numel() for part in self._project(b) if part is not None)
            for b in self._pairs
        )

    def require_sound(self, acc: ProductSums) -> None:
        """Refuse sums that no updates of its clients can add up to.

        Raises:
            DecodeError: says what is wrong.
        """
        require_sound_mean(acc)
        here, whole = acc.participants, acc.participants.plan.total_weight
        most = BOUND * 2.0**_BITS * (here.weight / whole) * (1 + 1e-12) + len(here.clients)
        for name, sums in acc.products.items():
            for part in (sums.right, sums.left):
                if part is not None:
                    require_range(part, f"product, {name}", low=-most, high=most)
        if acc.participants.plan.norm_bound is not None:
            self._require_norms(acc, acc.participants.plan.norm_bound)

    def _require_norms(self, acc: ProductSums, bound: float) -> None:
        """Refuse projections that updates of this norm cannot have.

        ‖s·(B_i·A_i − B·A)‖ ≤ s·(‖δB‖·‖A‖₂ + ‖B‖₂·‖δA‖ + ‖δB‖·‖δA‖) ≤ s·(c·n + n²/2), with n² = ‖δA‖² + ‖δB‖²
        and c² = ‖A‖₂² + ‖B‖₂². All n² of an update, of its pairs, experts and segments, sum to no more than
        the square of ``bound``: so the lengths in units of s do not, together, exceed that of the largest c.
        """
        here, plan = acc.participants, acc.participants.plan
        longest = bound * (1 + 1e-6)  # float32 may have rounded the norm that was cut
        most = max((self._reach(plan, b) for b in self._pairs), default=0.0) * longest + longest**2 / 2
        for side in (0, 1):
            parts, units = list[Tensor](), 0.0
            for b in self._pairs:
                sums, unit = acc.products[b.name], 1 / (b.scaling * self._probes[b.name].stretch[side])
                part = sums.left if side else sums.right
                if part is not None:
                    parts.append(from_fixed(part, _BITS).reshape(-1) * unit)
                    units = max(units, unit * math.sqrt(part.numel()))
            if parts:
                slack = len(here.clients) * len(parts) * units * 2.0**-_BITS
                share = here.weight / plan.total_weight
                require_norm(torch.cat(parts), "projections of products", most=share * most, slack=slack)

    def _reach(self, plan: MergePlan, b: TensorSpec) -> float:
        """The largest c of a pair's segments and experts."""
        up, down = self._factors[b.name]
        found = 0.0
        for low, high in _segments(plan, b):
            of_b = torch.linalg.matrix_norm(up[:, :, low:high], ord=2)
            of_a = torch.linalg.matrix_norm(down[:, low:high], ord=2)
            found = max(found, float((of_a.square() + of_b.square()).max().sqrt()))
        return found

    def init(self, plan: MergePlan) -> ProductSums:
        """Zeros: of each pair 8·(k·d_out + l·d_in) bytes, or 8·d_out·d_in if that is less.

        Raises:
            ConfigError: as of the mean.
            SpecMismatch: the plan is of another adapter than the base.
        """
        self.base.require_spec(plan.spec, "product, base state")
        acc = ProductSums(**vars(self._mean.init(plan)))
        for b in self._pairs:
            count, (right, left) = len(_segments(plan, b)), self._project(b)
            sums = None if left is None else _zeros(count, left)
            acc.products[b.name] = PairSums(_zeros(count, right), sums)
        return acc

    def add(self, acc: ProductSums, update: Update) -> ProductSums:
        """Add p·s·(B_i·A_i − B·A), projected.

        Raises:
            UpdateRejected: also coefficients of seeds, and a change of a weight that is out of bounds.
        """
        weight, delta = acc.participants.weight_of(update), acc.participants.values_of(update)
        plan = acc.participants.plan
        changes = {b.name: self._change(plan, b, delta, update.client) for b in self._pairs}
        self._mean.add(acc, update)
        for name, change in changes.items():
            share, sums = weight / plan.total_weight, acc.products[name]
            sums.right.add_(to_fixed(change[0].mul_(share), _BITS))
            if sums.left is not None and change[1] is not None:
                sums.left.add_(to_fixed(change[1].mul_(share), _BITS))
        return acc

    def combine(self, left: ProductSums, right: ProductSums) -> ProductSums:
        """Add the sums of two groups."""
        self._mean.combine(left, right)
        for name, sums in right.products.items():
            left.products[name].add(sums)
        return left

    def finalize(self, acc: ProductSums) -> Merged:
        """The new factors minus the base's, and the mean of everything else.

        The report has what the mean's has, ``truncation``, the estimated distance (Frobenius) of the new
        products from the mean of the clients' as a part of its length, and ``product_rank``, the mean rank.
        """
        if not acc.participants.clients:
            raise EmptyRound("product", expected="at least one accepted update", got="none")
        merged = self._mean.finalize(acc)
        found = [self._merged_pair(acc, b, merged.delta) for b in self._pairs]
        changed = {name: value for pair in found for name, value in pair.delta.items()}
        delta = AdapterState(self.base.spec, dict(merged.delta) | changed)
        missed, whole = (math.fsum(getattr(pair, name) for pair in found) for name in ("missed", "whole"))
        report = {
            **merged.report,
            "delta_norm": delta.norm(),
            "truncation": math.sqrt(missed / whole) if whole else 0.0,
            "product_rank": float(np.mean([pair.rank for pair in found])) if found else 0.0,
        }
        return replace(merged, delta=delta, report=report)

    def _change(
        self, plan: MergePlan, b: TensorSpec, delta: AdapterState, client: str
    ) -> tuple[Tensor, Tensor | None]:
        """s·(B_i·A_i − B·A) as the sums have it, segment by segment, float64."""
        (up, down), (more_up, more_down) = self._factors[b.name], factors(delta, b)
        after = down + more_down
        rights, lefts = list[Tensor](), list[Tensor]()
        for low, high in _segments(plan, b):
            part = slice(low, high)
            # B_i·A_i − B·A = (B_i − B)·A_i + B·(A_i − A), without the difference of two large numbers
            turned = torch.cat([more_up[:, :, part], up[:, :, part]], dim=2) * b.scaling
            right, left = self._probes[b.name].project(
                turned, torch.cat([after[:, part], more_down[:, part]], dim=1)
            )
            rights.append(right)
            lefts += [] if left is None else [left]
        parts = torch.stack(rights), torch.stack(lefts) if lefts else None
        largest = max(float(p.abs().max()) for p in parts if p is not None and p.numel())
        if not largest <= BOUND:
            raise UpdateRejected(
                f"client {client}, tensor {b.name}",
                expected=f"a change of its weight of at most {BOUND:g} along any direction",
                got=f"{largest:g}",
                hint="The client is left out of this round. Look for a diverged training.",
            )
        return parts

    def _merged_pair(self, acc: ProductSums, b: TensorSpec, mean: AdapterState) -> MergedPair:
        (up, down), (more_up, more_down) = self._factors[b.name], factors(mean, b)
        right, left = self._sums(acc, b)
        missed = whole = 0.0
        ranks, new_up, new_down = 0, torch.empty_like(up), torch.empty_like(down)
        for expert in range(b.experts):
            probes, sketch = self._probes[b.name], right[expert].numpy()
            q, x = probes.rebuild(sketch, None if left is None else left[expert].numpy(), expert)
            if self.ridge is None:
                found = truncated(q, x / b.scaling, down[expert].numpy())
            else:
                means = (up + more_up)[expert].numpy(), (down + more_down)[expert].numpy()
                found = _refitted(q, x / b.scaling, *means, ridge=self.ridge)
            off, size = probes.lengths(sketch, found[0] * b.scaling, found[1], expert)
            missed, whole, ranks = missed + off, whole + size, ranks + found[2]
            new_up[expert], new_down[expert] = torch.from_numpy(found[0]), torch.from_numpy(found[1])
        values = dict(zip((b.name, b.pair), joined(new_up, new_down), strict=True))
        delta = {name: value - self.base[name] for name, value in values.items()}
        return MergedPair(delta, missed, whole, ranks / b.experts)

    def _sums(self, acc: ProductSums, b: TensorSpec) -> tuple[Tensor, Tensor | None]:
        """The projections of the mean of the clients' products, float64."""
        sums, whole = acc.products[b.name], acc.participants.plan.total_weight
        right, left = self._project(b)
        for index, weight in enumerate(self._weights(acc, b)):
            if weight:
                right = right + from_fixed(sums.right[index], _BITS) * (whole / weight)
                if left is not None and sums.left is not None:
                    left = left + from_fixed(sums.left[index], _BITS) * (whole / weight)
        return right, left

    def _project(self, b: TensorSpec) -> tuple[Tensor, Tensor | None]:
        """The global product s·B·A, as the sums have it."""
        up, down = self._factors[b.name]
        return self._probes[b.name].project(up * b.scaling, down)

    def _weights(self, acc: ProductSums, b: TensorSpec) -> list[int]:
        """Of each segment, the summed weight of those over whom its mean is; 0 where nobody trained it."""
        plan, found = acc.participants.plan, list[int]()
        here = [c for c in sorted(acc.participants.clients) if _trains(plan, b, c)]
        for _, high in _segments(plan, b):
            holders = [c for c in here if plan.ranks.get(c, high) >= high]
            counted = holders if self.by_holders or not holders else here
            found.append(sum(plan.weights[c] for c in counted))
        return found

    @cached_property
    def _pairs(self) -> tuple[TensorSpec, ...]:
        return pairs(self.base.spec)

    @cached_property
    def _factors(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        return {b.name: factors(self.base, b) for b in self._pairs}

    @cached_property
    def _probes(self) -> Mapping[str, Probes]:
        return {
            b.name: Probes.of(*self._factors[b.name], width=self.width, key=self.key.child(b.name))
            for b in self._pairs
        }


@dataclass(frozen=True)
class MergedPair:
    """One pair's new factors.

    Args:
        delta: what is added to the base's, by name.
        missed: squared distance of the new product from the mean of the clients'.
        whole: squared length of that mean.
        rank: of the new product.
    """

    delta: Mapping[str, Tensor]
    missed: float
    whole: float
    rank: float


def _segments(plan: MergePlan, b: TensorSpec) -> Segments:
    """The components of a pair, cut where the clients' ranks end."""
    rank = b.shape[1] // b.experts
    edges = sorted({0, rank, *(r for r in plan.all_ranks if 0 < r < rank)})
    return tuple(itertools.pairwise(edges))


def _trains(plan: MergePlan, b: TensorSpec, client: str) -> bool:
    tensors = plan.tensors.get(client)
    return tensors is None or b.name in tensors or b.pair in tensors


def _zeros(segments: int, like: Tensor) -> Tensor:
    return torch.zeros(segments, *like.shape, dtype=torch.int64)


def truncated(q: Floats, x: Floats, old_down: Floats) -> tuple[Floats, Floats, int]:
    """B [d_out, r], A [r, d_in] and the rank of the best product of rank r near Q·X.

    Singular values fall, both factors have their root, and each column of B has its largest entry positive.
    Components that the product does not have are B = 0 beside the A of before, and can be trained from there.
    """
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    down = old_down.copy()
    up = np.zeros((q.shape[0], down.shape[0]))
    rank = min(int(np.count_nonzero(s > _ROUNDING * s[0])), down.shape[0]) if s.size and s[0] > 0 else 0
    left, root = q @ u[:, :rank], np.sqrt(s[:rank])
    largest = np.abs(left).argmax(axis=0)
    signs = np.where(left[largest, np.arange(rank)] < 0, -1.0, 1.0)
    up[:, :rank], down[:rank] = left * (signs * root), vt[:rank] * (signs * root)[:, None]
    return up, down, rank


def _refitted(q: Floats, x: Floats, up: Floats, down: Floats, *, ridge: float) -> tuple[Floats, Floats, int]:
    """B̄ + ΔB, Ā and the rank: ΔB = (Q·X·Āᵀ − B̄·Ā·Āᵀ)(Ā·Āᵀ + λ·I)⁻¹."""
    gram = down @ down.T
    missing = q @ (x @ down.T) - up @ gram
    change = np.linalg.solve(gram + ridge * np.eye(len(gram)), missing.T).T
    return up + change, down, down.shape[0]
