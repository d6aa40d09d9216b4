"""``[strategy]``: how updates are merged."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from headwater.config.plugins import open_to
from headwater.config.traits import StrategyTraits

Space = Literal["factors", "ffa", "rolora", "product", "fair"]


class BaseStrategy(StrategyTraits):
    """What every strategy has."""

    space: Space
    weighting: Literal["examples", "equal"] = "examples"
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


class MeanStrategy(BaseStrategy):
    """Weighted mean of the deltas (FedAvg, arXiv 1602.05629)."""

    linear: ClassVar[bool] = True
    takes_parts: ClassVar[bool] = True
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

    def weighs_methods(self) -> bool:  # noqa: D102 - inherited
        return self.noise == "weigh" and not self.merges_products


class TiesStrategy(BaseStrategy):
    """TIES (arXiv 2306.01708): trim, elect signs, mean of those that agree."""

    kind: Literal["ties"]
    space: Literal["factors", "ffa"] = "ffa"
    allow_factors: bool = False
    density: float = Field(default=0.2, gt=0, le=1)


class FisherStrategy(BaseStrategy):
    """Fisher merging (arXiv 2111.09832) with diagonal Fishers from the clients."""

    needs_fisher: ClassVar[bool] = True
    kind: Literal["fisher"]
    space: Literal["factors", "ffa"] = "ffa"
    allow_factors: bool = False
    examples: int = Field(default=128, ge=1, description="examples of a client's Fisher estimate")
    cap: float = Field(default=256.0, gt=1, le=2**20, description="bound after scaling to mean 1")


class MedianStrategy(BaseStrategy):
    """Coordinate-wise median (arXiv 1803.01498): a minority of clients cannot move it far."""

    takes_parts: ClassVar[bool] = True
    kind: Literal["median"]
    space: Literal["factors", "ffa", "rolora"] = "ffa"
    weighting: Literal["examples", "equal"] = "equal"
    allow_factors: bool = False
    max_kept_mb: int = Field(
        default=4096, ge=1, description="MiB of updates that a round may keep in memory until it is merged"
    )


Strategy = Annotated[
    MeanStrategy | TiesStrategy | FisherStrategy | MedianStrategy,
    Field(discriminator="kind"),
    open_to("rules", BaseStrategy),
]
