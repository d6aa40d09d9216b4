"""RegMean and RegMean++: the weights whose outputs lie closest to each adapter's own, on its own rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from headwater.merging.offline.rule import DataRule, Floats, Space

RIDGE = 1e-6
"""Of a Gram matrix's mean eigenvalue, added to each: directions that no input has get the mean."""


class RegMean(DataRule):
    """τ = (Σ p_i·τ_i·G̃_i)·(Σ p_i·G̃_i)⁻¹, weight by weight, with G_i = E x·xᵀ over a layer's inputs.

    It minimises Σ p_i·E‖τ·x − τ_i·x‖² (for a = 1), x the inputs that the layer has in adapter i's own model
    on its own rows. G̃ is G with all but its diagonal times a. In space ``product`` G is [in, in]. In space
    ``core`` τ keeps to the inputs' directions that the adapters see, V, and VᵀGV has the size of their ranks;
    for adapters that share A it is B = (Σ p_i·B_i·H_i)·(Σ p_i·H_i)⁻¹, H_i = A·G_i·Aᵀ.
    """

    name: ClassVar[str] = "regmean"
    line: ClassVar[str] = "the weights whose outputs are closest to each adapter's own on its own rows"
    source: ClassVar[str] = "Jin et al. 2023, arXiv 2212.09849, equation 2"
    files: ClassVar[Literal["adapters"]] = "adapters"
    spaces: ClassVar[tuple[Space, ...]] = ("product", "core")
    labelled: ClassVar[bool] = False
    memory: ClassVar[str] = "the base model, two matrices [in, in] of each weight (space core: of the ranks)"
    examples: int = Field(default=1000, ge=1, description="rows of each file that are looked at, the most")
    off_diagonal: float = Field(default=0.9, ge=0, le=1, description="a: what Grams keep off their diagonal")

    def passes_per_row(self, blocks: int) -> tuple[int, int]:  # noqa: D102 - inherited
        return 1, 0

    def kept_values(self, columns: Sequence[int], ranks: Sequence[int], space: Space) -> int:  # noqa: D102 - inherited
        sides = columns if space == "product" else [min(c, r) for c, r in zip(columns, ranks, strict=True)]
        return 2 * sum(side * side for side in sides)

    def shrunk(self, gram: Floats) -> Floats:
        """G̃ [d, d], with the ridge."""
        diagonal = np.diag(gram)
        ridge = RIDGE * float(diagonal.mean()) + float(np.finfo(np.float64).tiny)
        found: Floats = self.off_diagonal * gram + np.diag((1 - self.off_diagonal) * diagonal + ridge)
        return found

    @staticmethod
    def solve(products: Floats, grams: Floats) -> Floats:
        """Σ p_i·τ_i·G̃_i [rows, d] times the inverse of Σ p_i·G̃_i [d, d]."""
        return np.asarray(np.linalg.solve(grams, products.T).T, np.float64)  # a Gram is its own transpose


class RegMeanPlusPlus(RegMean):
    """:class:`RegMean`, layer by layer: a layer's inputs come out of the layers below, already merged.

    Within a layer each adapter's own weights make the inputs of what follows. Each numbered layer takes a
    pass over all rows.
    """

    name: ClassVar[str] = "regmean_pp"
    line: ClassVar[str] = "regmean, in which what a layer is given comes out of the merged layers below it"
    source: ClassVar[str] = "Nguyen et al. 2025, arXiv 2508.03121; as FusionBench's regmean_plusplus"

    def passes_per_row(self, blocks: int) -> tuple[int, int]:  # noqa: D102 - inherited
        return blocks, 0


def blocks_of(names: Iterable[str]) -> list[list[str]]:
    """Names of modules or tensors by their first number, which counts layers; those without come last."""
    found: dict[float, list[str]] = {}
    for name in names:
        number = re.search(r"\.(\d+)\.", name)
        found.setdefault(float(number[1]) if number else float("inf"), []).append(name)
    return [found[number] for number in sorted(found)]
