"""Rules that add: the weighted mean and task arithmetic."""

from __future__ import annotations

from typing import ClassVar

from headwater.merging.offline.rule import Floats, LinearRule


class Mean(LinearRule):
    """c = p: a weighted mean (FedAvg, model soup)."""

    name: ClassVar[str] = "mean"
    line: ClassVar[str] = "weighted mean of what the adapters change"
    source: ClassVar[str] = "McMahan et al. 2017, arXiv 1602.05629; Wortsman et al. 2022, arXiv 2203.05482"

    def coefficients(self, weights: Floats, products: Floats | None) -> Floats:  # noqa: D102 - inherited
        return weights


class TaskArithmetic(LinearRule):
    """c = λ·w: the changes are added up, or taken out where a weight is negative."""

    name: ClassVar[str] = "task_arithmetic"
    line: ClassVar[str] = "sum of what the adapters change, each times its weight; a negative one takes out"
    source: ClassVar[str] = "Ilharco et al. 2023, arXiv 2212.04089, section 2"
    weighs: ClassVar[bool] = False
    negative: ClassVar[bool] = True

    def coefficients(self, weights: Floats, products: Floats | None) -> Floats:  # noqa: D102 - inherited
        return weights
