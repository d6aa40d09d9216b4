"""Perturbations: the directions that MeZO probes, whole, sparse or of low rank, and their statistics.

Sparse (Sparse-MeZO, arXiv 2402.15751): the largest magnitudes of each tensor stay as they are. Low rank
(LOZO, arXiv 2410.07698): a matrix's direction is U·Vᵀ/√r with U fresh in every step and V kept for
``resample_every`` steps; E[zzᵀ] is the identity in both, on what is perturbed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from headwater.config.training import MezoTraining
from headwater.merging.coverage import covered
from headwater.protocol.messages import ClientPlan
from headwater.seeds.directions import Directions
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Perturbations:
    """Directions 0 … n − 1 of each step.

    Args:
        spec: of what is perturbed.
        training: n, distribution, rank.
        mask: bool [numel], what is perturbed; None for all.
        whole: directions of [numel] values.
        left: U of all matrices one after another; None without ``low_rank``.
        right: V likewise.
    """

    spec: StateSpec
    training: MezoTraining
    mask: Mask | None
    whole: Directions
    left: Directions | None = None
    right: Directions | None = None

    @staticmethod
    def of(state: AdapterState, plan: ClientPlan, training: MezoTraining, key: Key) -> Perturbations:
        """Those of a task that starts at ``state``, at ``key``."""
        spec, kind = state.spec, training.distribution
        mask = _mask(state, plan, training.sparsity)
        whole = Directions.of(key.child("whole"), kind, spec.numel)
        if training.low_rank is None:
            return Perturbations(spec, training, mask, whole)
        matrices = [t.shape for t in spec if len(t.shape) == 2]
        rows, columns = (sum(shape[side] for shape in matrices) for side in (0, 1))
        left = Directions.of(key.child("left"), kind, rows * training.low_rank)
        right = Directions.of(key.child("right"), kind, columns * training.low_rank)
        return Perturbations(spec, training, mask, whole, left, right)

    @property
    def dimensions(self) -> int:
        """d, values that are perturbed."""
        return self.spec.numel if self.mask is None else int(self.mask.sum())

    def values(self, step: int, index: int) -> npt.NDArray[np.float32]:
        """Direction ``index`` of step 0, 1, …: float32 [numel]."""
        n, every = self.training.directions, self.training.resample_every
        seed = step * n + index
        if self.left is None or self.right is None:
            out = self.whole.values(seed)
        else:
            out = self._low_rank(self.left, self.right, seed, step // every * n + index)
        if self.mask is not None:
            out *= self.mask
        return out

    def _low_rank(
        self, left: Directions, right: Directions, fresh: int, kept: int
    ) -> npt.NDArray[np.float32]:
        rank = self.training.low_rank or 1
        out = np.empty(self.spec.numel, np.float32)
        start, row, column = 0, 0, 0
        for tensor in self.spec:
            part = slice(start, start + tensor.numel)
            if len(tensor.shape) == 2:
                ends = row + tensor.shape[0] * rank, column + tensor.shape[1] * rank
                u = left.values(fresh, row, ends[0]).reshape(-1, rank)
                v = right.values(kept, column, ends[1]).reshape(-1, rank)
                out[part] = (u @ v.T).reshape(-1)
                out[part] *= np.float32(rank**-0.5)
                row, column = ends
            else:
                out[part] = self.whole.values(fresh, part.start, part.stop)
            start = part.stop
        return out

    def noise_share(self, together: int) -> float:
        """The fraction of a step's energy E‖ĝ‖² that is noise: how far ĝ lies from its mean, squared.

        With ĝ = (1/n)Σ gᵢzᵢ, gᵢ = zᵢᵀ∇ and d perturbed values, E‖ĝ‖² = ((D + n − 1)/n)·‖∇‖², where
        D = E[g²‖z‖²]/‖∇‖² is d for ±1 directions and d + 2 for Gaussian ones (E z⁴ = 1 or 3). The
        gradient's own share is therefore a = n/(D + n − 1), the rest 1 − a is noise, and noise of
        different steps is uncorrelated, so that energies add.

        Except for V, which T steps share. Given V, the mean of ĝ is (1/n)Σ CᵢV∇, C = VVᵀ/r, and
        E‖(C − I)∇‖² = κ‖∇‖² with κ = (k − 1)/r for ±1 and (k + 1)/r for Gaussian V of k rows. Over T
        steps it adds up coherently, to T²·κ/n·‖∇‖² instead of T·κ/n·‖∇‖²: the share is
        1 − a + a·(κ/n)·(T − 1). κ is the mean over tensors, each weighted by its values: the gradient's
        energy is taken for evenly spread, D for d or d + 2, and the gradient for the same in T steps.

        Args:
            together: T, steps that share this step's V.
        """
        gaussian = self.training.distribution == "gaussian"
        n = self.training.directions
        own = n / (self.dimensions + 2 * gaussian + n - 1)
        return 1 - own + own * (self._shared() / n) * (together - 1)

    def _shared(self) -> float:
        """κ: 0 without ``low_rank``."""
        if self.training.low_rank is None:
            return 0.0
        extra = 1 if self.training.distribution == "gaussian" else -1
        total, start = 0.0, 0
        for tensor in self.spec:
            part = slice(start, start + tensor.numel)
            start = part.stop
            if len(tensor.shape) == 2 and tensor.numel:
                count = tensor.numel if self.mask is None else int(self.mask[part].sum())
                total += count * max(0.0, count / tensor.shape[0] + extra)
        return total / (self.dimensions * self.training.low_rank)


def _mask(state: AdapterState, plan: ClientPlan, sparsity: float) -> Mask | None:
    """What is perturbed: what the plan covers, less the ``sparsity`` largest magnitudes of each tensor.

    Equal magnitudes are alike: a tensor of zeros, as LoRA's B begins, is perturbed whole.
    """
    cover = covered(state.spec, plan.tensors, plan.rank)
    if sparsity == 0:
        return None if cover is None else cover.numpy()
    parts = []
    for value in state.values():
        magnitudes = value.abs().reshape(-1)
        kept = magnitudes.numel() - int(sparsity * magnitudes.numel())
        bound = magnitudes.kthvalue(kept).values if kept else magnitudes.new_zeros(())
        parts.append(magnitudes <= bound)
    mask = torch.cat(parts)
    found: Mask = (mask if cover is None else mask & cover).numpy()
    return found
