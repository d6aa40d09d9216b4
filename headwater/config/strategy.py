"""``[strategy]``: how updates are merged.

Most kinds are rules of ``headwater merge``: what they have in common stands in
:mod:`headwater.config.rule_settings`, formulas and sources in :mod:`headwater.merging.offline.rules`. Not
here: ``task_arithmetic``, which in a round is ``mean`` with a server learning rate, ``slerp`` of exactly
two, and ``karcher``, which hostile updates could leave without a result.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from headwater.config import rule_settings as rules
from headwater.config.plugins import open_to
from headwater.config.screen import ScreenSettings
from headwater.config.traits import StrategyTraits

_FINEST = 1e-6
"""The smallest part of a length at which sums of pulls keep their digits."""
OwnPart = Literal["nothing", "head", "all but A"]
"""What of the adapter each client keeps to itself."""
Space = Literal["factors", "ffa", "rolora", "product", "fair", "fedsa"]


class BaseStrategy(StrategyTraits):
    """What every strategy has."""

    space: Space
    weighting: Literal["examples", "targets", "equal"] = "examples"
    server_learning_rate: float = Field(default=1.0, gt=0)
    server_optimizer: Literal["momentum", "adam", "yogi", "adagrad"] = "momentum"
    server_momentum: float = Field(default=0.0, ge=0, lt=1)
    server_beta1: float = Field(default=0.9, ge=0, lt=1)
    server_beta2: float = Field(default=0.99, ge=0, lt=1)
    server_tau: float = Field(default=1e-5, ge=1e-12, le=1)
    norm_bound: float | None = Field(
        default=None,
        gt=0,
        description="the server shortens every update to this L2 norm before it adds it",
    )
    screen: ScreenSettings | None = Field(
        default=None, description="say which updates stand out, and on wish leave them out"
    )
    control_variates: bool = Field(
        default=False,
        description="SCAFFOLD (arXiv 1910.06378, option II): clients correct each gradient for how theirs "
        "differ from everybody's",
    )
    value_bound: float = Field(default=16.0, gt=0, le=2**16, description="an update beyond it is refused")

    @property
    def adaptive(self) -> bool:
        """Whether the server's step is each value's own, by the second moment of its changes."""
        return self.server_optimizer != "momentum"

    @model_validator(mode="after")
    def _steps(self) -> BaseStrategy:
        if self.adaptive and self.server_momentum:
            raise ValueError(
                f"server_momentum is of server_optimizer 'momentum': '{self.server_optimizer}' has "
                "server_beta1"
            )
        if self.adaptive and self.server_learning_rate >= 1:
            raise ValueError(
                f"server_optimizer '{self.server_optimizer}' moves each value by about "
                f"server_learning_rate a round, which must be below 1, not {self.server_learning_rate:g}: "
                "try 0.001 to 0.01"
            )
        return self

    @property
    def merges_products(self) -> bool:
        """Whether what is merged of a LoRA pair is its product."""
        return self.space in ("product", "fair")

    @property
    def alternates(self) -> bool:
        """Whether A stands still in odd rounds, and B in even ones."""
        return self.space == "rolora"

    @property
    def keeps_own(self) -> bool:
        """Whether each client keeps B and the head to itself, and only A is everybody's."""
        return self.space == "fedsa"


class MeanStrategy(BaseStrategy):
    """Weighted mean of the deltas (FedAvg, arXiv 1602.05629)."""

    linear: ClassVar[bool] = True
    takes_parts: ClassVar[bool] = True
    adds_values: ClassVar[bool] = True
    kind: Literal["mean"]
    space: Space = "factors"
    rank_weights: Literal["holders", "all"] = Field(
        default="holders",
        description="whose change a component's mean counts: of those who train it, or of all",
    )
    noise: Literal["weigh", "ignore"] = Field(
        default="weigh",
        description="in a mixed round, what updates weigh depends on their method: on how far it gets, how "
        "noisy it is and how far clients differ (generalised least squares); with one method, and with "
        "backprop alone, nothing changes",
    )

    def adds_up(self) -> bool:  # noqa: D102 - inherited
        return not self.merges_products

    def weighs_methods(self) -> bool:  # noqa: D102 - inherited
        return self.noise == "weigh" and not self.merges_products


class TiesStrategy(rules.Trimming, BaseStrategy):
    """TIES (arXiv 2306.01708): trim, elect signs, mean of those that agree."""

    kind: Literal["ties"]
    space: Literal["factors", "ffa"] = "ffa"
    allow_factors: bool = False

    def adds_up(self) -> bool:
        """Four sums."""
        return True


class FisherStrategy(BaseStrategy):
    """Fisher merging (arXiv 2111.09832) with diagonal Fishers from the clients."""

    needs_fisher: ClassVar[bool] = True
    kind: Literal["fisher"]
    space: Literal["factors", "ffa"] = "ffa"
    allow_factors: bool = False
    examples: int = Field(default=128, ge=1, description="examples of a client's Fisher estimate")
    cap: float = Field(default=256.0, gt=1, le=2**20, description="bound after scaling to mean 1")

    def adds_up(self) -> bool:
        """Two sums, and what is needed to round them well."""
        return True


class RuleStrategy(BaseStrategy):
    """A rule of ``headwater merge``, of the same name."""

    kind: str
    space: Literal["factors", "ffa"] = "ffa"
    allow_factors: bool = False


class UnweightedStrategy(RuleStrategy):
    """A rule that looks at no weights."""

    weighting: Literal["equal"] = "equal"


class KeptStrategy(BaseStrategy):
    """A rule that must see all updates at once."""

    max_kept_mb: int = Field(
        default=4096, ge=1, description="MiB of updates that a round may keep in memory until it is merged"
    )


class MedianStrategy(KeptStrategy):
    """Coordinate-wise median (arXiv 1803.01498): a minority of clients cannot move it far."""

    takes_parts: ClassVar[bool] = True
    kind: Literal["median"]
    space: Literal["factors", "ffa", "rolora"] = "ffa"
    weighting: Literal["examples", "equal"] = "equal"
    allow_factors: bool = False


class DistanceStrategy(KeptStrategy):
    """A rule that goes by inner products of whole updates; in space ``product`` by those of the weights.

    Attributes:
        of_offline: whether it is the rule of ``headwater merge`` of the same name.
    """

    of_offline: ClassVar[bool] = True
    kind: str
    space: Literal["factors", "ffa", "product"] = "ffa"
    weighting: Literal["examples", "equal"] = "equal"
    allow_factors: bool = False

    def merges_parts(self) -> bool:
        """Of products, what a client does not train is no difference."""
        return self.merges_products


class MagnitudePruneStrategy(rules.Trimming, RuleStrategy):
    """Mean of each update's largest values."""

    kind: Literal["magnitude_prune"]


class DareStrategy(rules.Dropping, RuleStrategy):
    """Values dropped at random, then the mean or TIES (arXiv 2311.03099)."""

    kind: Literal["dare_linear", "dare_ties"]


class DellaStrategy(rules.RankedDropping, RuleStrategy):
    """Small values dropped more often, then TIES or the mean (arXiv 2406.11617)."""

    kind: Literal["della", "della_linear"]


class BreadcrumbsStrategy(rules.Sifting, RuleStrategy):
    """Without the smallest values and the outliers: mean or TIES (arXiv 2312.06795)."""

    kind: Literal["breadcrumbs", "breadcrumbs_ties"]


class MagMaxStrategy(UnweightedStrategy):
    """Of each value the one furthest from 0 (arXiv 2407.06322)."""

    kind: Literal["magmax"]


class ModelStockStrategy(RuleStrategy):
    """The mean, shorter where directions differ (arXiv 2403.19522)."""

    kind: Literal["model_stock"]


class IsoCStrategy(RuleStrategy):
    """The mean with all singular values made equal (arXiv 2502.04959)."""

    kind: Literal["iso_c"]


class OneBitStrategy(RuleStrategy):
    """Mean of the updates' signs, each tensor with its mean magnitude (arXiv 2502.10743)."""

    kind: Literal["one_bit"]


class SceStrategy(rules.Selecting, UnweightedStrategy):
    """What varies most, by energy and elected sign (arXiv 2408.07990); two passes."""

    kind: Literal["sce"]


class PcbStrategy(rules.Competing, RuleStrategy):
    """Values compete by size and by the sum of all (arXiv 2410.02396); two passes."""

    kind: Literal["pcb"]


class ConsensusStrategy(rules.Masking, RuleStrategy):
    """Mean of what matters to several clients (arXiv 2405.07813); two passes."""

    kind: Literal["consensus"]


class KnotsStrategy(rules.Trimming, RuleStrategy, KeptStrategy):
    """TIES in common singular vectors (arXiv 2410.19735)."""

    kind: Literal["knots"]


class TrimmedMeanStrategy(rules.Dropped, UnweightedStrategy, KeptStrategy):
    """Mean of each value without its ends (arXiv 1803.01498)."""

    takes_parts: ClassVar[bool] = True
    kind: Literal["trimmed_mean"]


class KrumStrategy(rules.Faulty, DistanceStrategy):
    """The one update that lies closest to most others (arXiv 1703.02757)."""

    weighting: Literal["equal"] = "equal"
    kind: Literal["krum"]


class MultiKrumStrategy(rules.FaultySelected, DistanceStrategy):
    """Mean of those that lie closest to most others (arXiv 1703.02757)."""

    weighting: Literal["equal"] = "equal"
    kind: Literal["multi_krum"]


class GeometricMedianStrategy(rules.Weiszfeld, DistanceStrategy):
    """The point with the smallest sum of distances (arXiv 1912.13445)."""

    kind: Literal["geometric_median"]
    passes: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="so many steps, each a pass over what was sent, so that no update is kept in memory; "
        "`iterations` is left alone",
    )

    @model_validator(mode="after")
    def _streams(self) -> GeometricMedianStrategy:
        if self.passes is not None and self.merges_products:
            raise ValueError("passes are sums value by value: leave them out in space 'product'")
        if self.passes is not None and self.smoothing < _FINEST:
            raise ValueError(f"passes need a smoothing of at least {_FINEST:g}, not {self.smoothing:g}")
        return self


class FLTrustStrategy(DistanceStrategy):
    """Updates count as far as they agree with those of trusted clients (arXiv 2012.13995)."""

    of_offline: ClassVar[bool] = False
    weighting: Literal["equal"] = "equal"
    kind: Literal["fltrust"]
    trusted: tuple[str, ...] = Field(
        min_length=1,
        strict=False,
        description="clients whose mean update is the measure, and is not merged itself; they are in every "
        "round, and a round without any of them moves nothing",
    )

    @property
    def always(self) -> frozenset[str]:
        """Clients that are asked in every round."""
        return frozenset(self.trusted)

    @property
    def fewest(self) -> int:
        """One trusted and another one."""
        return 2


class TsvStrategy(RuleStrategy, KeptStrategy):
    """Sum of singular triplets made orthogonal (arXiv 2412.00081)."""

    kind: Literal["tsv_m"]


class IsoCtsStrategy(rules.Common, RuleStrategy, KeptStrategy):
    """`iso_c` with some directions of each client (arXiv 2502.04959)."""

    kind: Literal["iso_cts"]


class TwinStrategy(rules.Exclusive, RuleStrategy, KeptStrategy):
    """The mean, plus the first directions of what each client has beside it (arXiv 2406.15479)."""

    kind: Literal["twin"]


class LoreStrategy(rules.Shared, RuleStrategy, KeptStrategy):
    """What clients share, plus each one's few directions (arXiv 2502.10749)."""

    kind: Literal["lore"]


Strategy = Annotated[
    MeanStrategy
    | TiesStrategy
    | FisherStrategy
    | MedianStrategy
    | MagnitudePruneStrategy
    | DareStrategy
    | DellaStrategy
    | BreadcrumbsStrategy
    | MagMaxStrategy
    | ModelStockStrategy
    | IsoCStrategy
    | OneBitStrategy
    | SceStrategy
    | PcbStrategy
    | ConsensusStrategy
    | KnotsStrategy
    | TrimmedMeanStrategy
    | KrumStrategy
    | MultiKrumStrategy
    | GeometricMedianStrategy
    | FLTrustStrategy
    | TsvStrategy
    | IsoCtsStrategy
    | LoreStrategy
    | TwinStrategy,
    Field(discriminator="kind"),
    open_to("rules", BaseStrategy),
]
