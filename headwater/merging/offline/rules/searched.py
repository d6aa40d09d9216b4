"""Rules that search coefficients on rows: by forward passes alone, or along gradients of coefficients."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from headwater.merging.offline.rule import DataRule, Space


class LoraHub(DataRule):
    """min over c in [−b, b]^T of the mean loss on a handful of rows + λ/T·Σ|c_i|, by CMA-ES.

    The search begins at c = 0, the base; the mean of the adapters is a candidate too. What is composed are
    the changes; the paper's code composes A and B each by itself, whose product has terms of no adapter.
    """

    name: ClassVar[str] = "lorahub"
    line: ClassVar[str] = "sum with coefficients that a search without gradients finds on a few rows"
    source: ClassVar[str] = "Huang et al. 2023, arXiv 2307.13269, section 3; code sail-sg/lorahub"
    least: ClassVar[int] = 2
    weighted: ClassVar[bool] = False
    files: ClassVar[Literal["heap"]] = "heap"
    evaluations: int = Field(default=40, ge=1, le=100000, description="candidates that are tried")
    bound: float = Field(default=1.5, gt=0, description="b: the largest size of a coefficient")
    penalty: float = Field(default=0.05, ge=0, description="λ: what the mean size of a coefficient costs")

    def passes_per_row(self, blocks: int) -> tuple[int, int]:  # noqa: D102 - inherited
        return self.evaluations + 2, 0


class AdaMerging(DataRule):
    """Layer-wise coefficients λ_il that make the mean entropy of the answers least, by Adam.

    They begin at the weights' shares (the paper's 0.3 is for sums of eight tasks). Rows need no labels. The
    answers become surer and not always righter: measure the result on labelled rows.
    """

    name: ClassVar[str] = "adamerging"
    line: ClassVar[str] = "coefficients of each layer that make a classifier's answers sure; no labels"
    source: ClassVar[str] = "Yang et al. 2024, arXiv 2310.02575, section 3.2, layer-wise"
    least: ClassVar[int] = 2
    files: ClassVar[Literal["heap"]] = "heap"
    labelled: ClassVar[bool] = False
    classifies: ClassVar[bool] = True
    steps: int = Field(default=500, ge=1, le=100000, description="of Adam")
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="of Adam")
    batch_size: int = Field(default=16, ge=1, le=4096, description="rows of a step")

    def passes_per_row(self, blocks: int) -> tuple[int, int]:  # noqa: D102 - inherited
        return self.steps + 2, self.steps


class FrankWolfe(DataRule):
    """c ← (1 − γ)·c + γ·e_k with k = argmin ⟨∇L, τ_k⟩ and γ = 2/(t + 2): a mean of a pool's useful ones.

    ⟨∇L, τ_k⟩ is the loss's slope along c_k, so no adapter is looked at by itself. c starts at the weights'
    shares and is a mean at every step; the best step is taken. An adapter that never helps keeps nothing
    after the first step.
    """

    name: ClassVar[str] = "fw"
    line: ClassVar[str] = "mean of those of many adapters that make the loss on rows smaller"
    source: ClassVar[str] = "Chen et al. 2025, arXiv 2503.12649, task-wise; as FusionBench's fw_merging"
    least: ClassVar[int] = 2
    files: ClassVar[Literal["heap"]] = "heap"
    iterations: int = Field(default=10, ge=1, le=10000, description="steps t = 0, 1, …")

    def passes_per_row(self, blocks: int) -> tuple[int, int]:  # noqa: D102 - inherited
        return self.iterations + 1, self.iterations


class Evolve(DataRule):
    """Coefficients that no others beat on every file of rows at once, by NSGA-II; the knee is taken.

    An objective is the loss on one file. The genome is c in [0, b]^T of Σ c_i·τ_i, or with ``method ties``
    weights, density and factor of TIES. The mean of the adapters is in the first generation. The knee is the
    one closest to the ideal point once each objective's span over the front is 1. ``pareto.svg`` and
    ``pareto.json`` show the front.
    """

    name: ClassVar[str] = "evolve"
    line: ClassVar[str] = "coefficients by evolution, several objectives: a Pareto front, of which the knee"
    source: ClassVar[str] = (
        "NSGA-II (Deb et al. 2002), as MAP (arXiv 2406.07529) and MERGE3 (2502.10436) search"
    )
    least: ClassVar[int] = 2
    weighted: ClassVar[bool] = False
    files: ClassVar[Literal["objectives"]] = "objectives"
    spaces: ClassVar[tuple[Space, ...]] = ("core",)
    method: str = Field(
        default="task_arithmetic", pattern="^(task_arithmetic|ties)$", description="task_arithmetic or ties"
    )
    population: int = Field(default=16, ge=4, le=10000, description="candidates of a generation")
    generations: int = Field(default=10, ge=1, le=10000, description="after the first")
    bound: float = Field(default=1.0, gt=0, description="b: the largest coefficient")

    def passes_per_row(self, blocks: int) -> tuple[int, int]:  # noqa: D102 - inherited
        return self.population * (self.generations + 1), 0
