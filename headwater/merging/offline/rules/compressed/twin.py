"""Twin-Merging: what all adapters share, and what each has beside it, in few directions."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from headwater.config.rule_settings import Exclusive
from headwater.merging.offline.rule import Floats, MatrixRule
from headwater.merging.offline.rules.spectra import Spectral


class Twin(MatrixRule, Exclusive):
    """s + Σ p_i·v_i, with s = Σ p_i·τ_i and v_i the first singular triplets of τ_i − s.

    The paper weighs the v_i anew for each input, by a router that is trained on rows of all tasks. Without
    rows there are two forms: every v_i by its adapter's weight, and ``--task`` with s + v_i of one adapter,
    which is τ_i where all directions are kept. At ``exclusive`` 1 the first is the plain mean. Of LoRA a
    fraction is of the directions that τ_i − s has, not of the weight's side.
    """

    name: ClassVar[str] = "twin"
    line: ClassVar[str] = "what the adapters share, plus the first directions of what each has beside it"
    source: ClassVar[str] = "Lu et al. 2024, arXiv 2406.15479; code LZY-the-boys/Twin-Merging, twin_merge.py"
    gives_back: ClassVar[bool] = True

    def merge(self, stack: Floats, weights: Floats, side: int) -> Floats:  # noqa: D102 - inherited
        shared = np.tensordot(weights, stack, 1)
        own = np.stack([self.own(matrix - shared, stack) for matrix in stack])
        merged: Floats = shared + np.tensordot(weights, own, 1)
        return merged

    def give_back(self, stack: Floats, weights: Floats, side: int, which: int) -> Floats:  # noqa: D102 - inherited
        shared = np.tensordot(weights, stack, 1)
        found: Floats = shared + self.own(stack[which] - shared, stack)
        return found

    def own(self, beside: Floats, stack: Floats) -> Floats:
        """V of τ − s; of a difference that is rounding, nothing."""
        floor = 1e-6 * max(float(np.linalg.norm(matrix)) for matrix in stack)
        found = Spectral.of(beside, floor)
        found = found.first(max(1, int(self.exclusive * found.values.size)))
        return (found.left * found.values) @ found.right
