"""MaTS: models matched in their task subspaces, by conjugate gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from headwater.merging.offline.rule import Floats, Space
from headwater.merging.offline.rules.regmean import RegMean

CLOSE = 1e-10
"""The residual, as a part of the right side, at which the steps end."""


class Mats(RegMean):
    """Σ p_i·D̃_i·τ·G̃_i = Σ p_i·D̃_i·τ_i·G̃_i, weight by weight, by conjugate gradients from the mean.

    G_i = E x·xᵀ over a layer's inputs and D_i = E g·gᵀ over the gradients of the loss by its outputs, both
    per token on adapter i's own rows: G_i ⊗ D_i is the K-FAC block of its Fisher, with the rows' own labels,
    as in the authors' code. Both have all but their diagonals times a. With every D_i the same this is
    RegMean. τ keeps to the directions U and V that the adapters have (space ``core``), and UᵀDU, VᵀGV have
    the size of their ranks.
    """

    name: ClassVar[str] = "mats"
    line: ClassVar[str] = (
        "the weights that fit each adapter's K-FAC Fisher on its own rows, by gradient steps"
    )
    source: ClassVar[str] = "Tam et al. 2023, arXiv 2312.04339; code r-three/mats, use_backward"
    labelled: ClassVar[bool] = True
    spaces: ClassVar[tuple[Space, ...]] = ("core",)
    files: ClassVar[Literal["adapters"]] = "adapters"
    memory: ClassVar[str] = "the base model, two matrices of the ranks together for each weight and adapter"
    off_diagonal: float = Field(default=1.0, ge=0, le=1, description="a: what Grams keep off their diagonal")
    iterations: int = Field(default=100, ge=1, le=100000, description="of conjugate gradients, the most")

    def passes_per_row(self, blocks: int) -> tuple[int, int]:  # noqa: D102 - inherited
        return 2, 1

    def kept_values(self, columns: Sequence[int], ranks: Sequence[int], space: Space) -> int:  # noqa: D102 - inherited
        return 3 * sum(min(c, r) ** 2 for c, r in zip(columns, ranks, strict=True))

    def matched(
        self, cores: Sequence[Floats], outer: Sequence[Floats], inner: Sequence[Floats], shares: Floats
    ) -> tuple[Floats, float]:
        """The solution [a, b], and what is left of the right side, as a part of it.

        Args:
            cores: τ_i [a, b].
            outer: D̃_i [a, a].
            inner: G̃_i [b, b].
            shares: p_i, of sum one.
        """

        def applied(core: Floats) -> Floats:
            total = np.zeros_like(core)
            for p, d, g in zip(shares, outer, inner, strict=True):
                total += p * (d @ core @ g)
            return total

        goal = np.zeros_like(cores[0])
        for p, d, core, g in zip(shares, outer, cores, inner, strict=True):
            goal += p * (d @ core @ g)
        found = np.tensordot(shares, np.stack(cores), 1)
        rest = goal - applied(found)
        along, before = rest.copy(), float(np.square(rest).sum())
        enough = (CLOSE**2) * float(np.square(goal).sum())
        for _ in range(self.iterations):
            if before <= enough:
                break
            turned = applied(along)
            step = before / float((along * turned).sum())
            found += step * along
            rest -= step * turned
            after = float(np.square(rest).sum())
            along, before = rest + (after / before) * along, after
        size = float(np.square(goal).sum())
        return found, float(np.sqrt(before / size)) if size else 0.0
