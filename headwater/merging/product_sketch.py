"""Linear sketches of a weight's change: sums of projections, from which the sum itself is rebuilt.

Of W [d_out, d_in] the sums hold W·Ω and Ψ·W, with k columns Ω and l rows Ψ that the round fixes. With Q an
orthonormal basis of W·Ω, W ≈ Q·(Ψ·Q)⁺·(Ψ·W): exact where W has a rank of at most k (Tropp, Yurtsever, Udell,
Cevher 2017, arXiv 1609.00048, algorithm 4). Both projections are linear in W and cost O((k+l)(d_out+d_in)r)
of a product of rank r, which is never multiplied out. The first columns and rows are the directions of the
global factors, the others random signs: most of what a round's mean has lies in the former, so a truncated
W is about 1 % worse than the best of its rank where signs alone are 40 % (decision 0015). Some columns take
no part and tell how far off the result is. Where the sums would be larger than W, W itself is summed.
A client that knows the probes and hides a change from Ψ makes the result wrong by no more than that change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headwater.seeds.keys import Key

Floats = npt.NDArray[np.float64]

CHECKS = 8
"""Columns that measure the error: its square has a relative standard deviation of at most √(2/8)."""
_SINGULAR = 1e-12
"""Singular values of Ψ·Q below this part of the largest are 0."""
_NONE = 1e-9
"""Singular values of the global factors below this part of the largest are no directions."""


@dataclass(frozen=True)
class Probes:
    """What one pair's weight is projected on, for all of its experts.

    Args:
        right: Ω and then the checks: float64 [experts, d_in, k + CHECKS], columns of length 1; None for I.
        left: Ψ: float64 [experts, l, d_out], rows of length 1; None where ``right`` is.
    """

    right: Tensor | None
    left: Tensor | None

    @staticmethod
    def of(up: Tensor, down: Tensor, *, width: int, key: Key) -> Probes:
        """Probes for changes around the product of these factors.

        Args:
            up: B of the global adapter, float64 [experts, d_out, r].
            down: A, float64 [experts, r, d_in].
            width: k as a multiple of r; l is 2·k + 1.
            key: randomness of the signs.
        """
        experts, d_out, rank = up.shape
        d_in = down.shape[2]
        k = width * rank
        rows = 2 * k + 1
        if (k + CHECKS) * d_out + rows * d_in >= d_out * d_in:
            return Probes(None, None)
        right = _signs(key.child("right"), (experts, d_in, k + CHECKS)) / math.sqrt(d_in)
        left = _signs(key.child("left"), (experts, rows, d_out)) / math.sqrt(d_out)
        for expert in range(experts):
            axes = _axes(down[expert].T.numpy())
            right[expert, :, : axes.shape[1]] = torch.from_numpy(axes)
            axes = _axes(up[expert].numpy())
            left[expert, : axes.shape[1]] = torch.from_numpy(axes.T)
        return Probes(right, left)

    def project(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor | None]:
        """W·Ω [experts, d_out, k + CHECKS] and Ψ·W [experts, l, d_in] of W = up·down; else W and None."""
        if self.right is None or self.left is None:
            return up @ down, None
        return up @ (down @ self.right), (self.left @ up) @ down

    @cached_property
    def stretch(self) -> tuple[float, float]:
        """How much longer, in Frobenius norm, W·Ω and Ψ·W can be than W."""
        if self.right is None or self.left is None:
            return 1.0, 1.0
        right, left = (float(torch.linalg.matrix_norm(p, ord=2).max()) for p in (self.right, self.left))
        return right, left

    def rebuild(self, right: Floats, left: Floats | None, expert: int) -> tuple[Floats, Floats]:
        """Orthonormal Q [d_out, k] and X [k, d_in] with W ≈ Q·X, from an expert's sums."""
        if self.left is None or left is None:
            return np.eye(right.shape[0]), right
        q, _ = np.linalg.qr(right[:, :-CHECKS])
        u, s, vt = np.linalg.svd(self.left[expert].numpy() @ q, full_matrices=False)
        inverse = np.where(s > _SINGULAR * s[0], 1 / np.maximum(s, _SINGULAR * s[0]), 0.0)
        return q, vt.T @ (inverse[:, None] * (u.T @ left))

    def lengths(self, right: Floats, up: Floats, down: Floats, expert: int) -> tuple[float, float]:
        """‖W − up·down‖² and ‖W‖² in Frobenius norm; by the checks where W itself was not summed."""
        if self.right is None:
            return float(np.square(right - up @ down).sum()), float(np.square(right).sum())
        probes = self.right[expert, :, -CHECKS:].numpy()
        checks, scale = right[:, -CHECKS:], probes.shape[0] / CHECKS
        missed = checks - up @ (down @ probes)
        return float(np.square(missed).sum()) * scale, float(np.square(checks).sum()) * scale


def _signs(key: Key, shape: tuple[int, ...]) -> Tensor:
    """±1 as float64."""
    draw = key.numpy().integers(0, 2, size=shape, dtype=np.int8)
    return torch.from_numpy(draw).double().mul_(2).sub_(1)


def _axes(columns: Floats) -> Floats:
    """An orthonormal basis of these columns, which are fewer than rows."""
    u, s, _ = np.linalg.svd(columns, full_matrices=False)
    return u[:, : int(np.count_nonzero(s > _NONE * s[0]))] if s.size and s[0] > 0 else u[:, :0]
