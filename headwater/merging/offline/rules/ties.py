"""Rules that keep the largest values: TIES, magnitude pruning, and KnOTS, which is TIES in other axes."""

from __future__ import annotations

from typing import ClassVar, Literal

from headwater.config.rule_settings import Trimming
from headwater.merging.offline.rule import ValueRule
from headwater.merging.offline.rules.sums import ElectedSigns, WeightedSum


class Trimmed(ValueRule, Trimming):
    """A fraction of each adapter's values is kept: the largest."""

    @property
    def kept(self) -> float:  # noqa: D102 - inherited
        return self.density


class Ties(ElectedSigns, Trimmed):
    """Trim, elect, mean of those that agree."""

    name: ClassVar[str] = "ties"
    line: ClassVar[str] = "keep each adapter's largest values, elect signs, mean of the values that agree"
    source: ClassVar[str] = "Yadav et al. 2023, arXiv 2306.01708, section 4"


class Knots(Ties):
    """TIES of the Σ·V_i in [τ_1 … τ_T] = U·Σ·[V_1 … V_T]; the result is U times it."""

    name: ClassVar[str] = "knots"
    line: ClassVar[str] = "TIES in the common left singular vectors of all adapters, by input dimension"
    source: ClassVar[str] = "Stoica et al. 2024, arXiv 2410.19735; as FusionBench's subspace_alignment"
    axes: ClassVar[Literal["core", "concatenation"]] = "concatenation"


class MagnitudePrune(WeightedSum, Trimmed):
    """The weighted mean of what is left after trimming."""

    name: ClassVar[str] = "magnitude_prune"
    line: ClassVar[str] = "keep each adapter's largest values, weighted mean"
    source: ClassVar[str] = "PEFT, add_weighted_adapter, combination_type magnitude_prune"
