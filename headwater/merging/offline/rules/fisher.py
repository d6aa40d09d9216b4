"""Fisher merging: each value of an adapter counts as much as its own rows' answers depend on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from headwater.merging.offline.rule import DataRule, Floats, Space

EPSILON = 1e-8
"""What is added to each Fisher, whose mean is 1: where no adapter's rows say anything, the mean is taken."""


class Fisher(DataRule):
    """Σ p_i·(F_i + ε)·τ_i / Σ p_i·(F_i + ε), value by value, F_i diagonal and scaled to mean 1.

    Of LoRA the values are those of the cores (space ``core``): a Fisher of A and B each by itself would
    depend on which of their many factorisations an adapter came with.
    """

    name: ClassVar[str] = "fisher"
    line: ClassVar[str] = "mean in which a value counts by how much its adapter's own rows depend on it"
    source: ClassVar[str] = "Matena & Raffel 2022, arXiv 2111.09832, equation 5; labels drawn by the model"
    files: ClassVar[Literal["adapters"]] = "adapters"
    labelled: ClassVar[bool] = False
    spaces: ClassVar[tuple[Space, ...]] = ("core",)
    examples: int = Field(default=256, ge=1, description="rows of each file that are looked at, the most")

    def passes_per_row(self, blocks: int) -> tuple[int, int]:  # noqa: D102 - inherited
        return 1, 1

    def kept_values(self, columns: Sequence[int], ranks: Sequence[int], space: Space) -> int:  # noqa: D102 - inherited
        return 2 * sum(min(c, r) ** 2 for c, r in zip(columns, ranks, strict=True))

    @staticmethod
    def masses(fishers: Floats, share: float) -> Floats:
        """p_i·(F_i + ε) of one adapter's values."""
        return share * (fishers + EPSILON)

    @staticmethod
    def scaled(fishers: dict[str, Floats]) -> dict[str, Floats]:
        """One adapter's, with mean 1 over all its values; zeros stay zeros."""
        count = sum(values.size for values in fishers.values())
        total = sum(float(values.sum(dtype=np.float64)) for values in fishers.values())
        return {name: values * (count / total) if total else values for name, values in fishers.items()}
