"""``[privacy]``: what an update may hold, and what the federation may tell of its owners' data."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from headwater.config.settings import Settings


class AdaptiveClipping(Settings):
    """``[privacy.adaptive]``: the bound follows the updates' norms (Andrew et al. 2021, arXiv 1905.03871)."""

    quantile: float = Field(
        default=0.5, ge=0, le=1, description="γ, the share of updates to leave as they are"
    )
    rate: float = Field(default=0.2, gt=0, le=1, description="η, how fast the bound follows")
    count_noise: float | None = Field(
        default=None,
        gt=0,
        description="σ_b, noise of how many updates were short; a twentieth of the expected cohort if absent",
    )


class ExamplePrivacy(Settings):
    """``[training.privacy]``: DP-SGD (Abadi et al. 2016, arXiv 1607.00133), each client over its own rows.

    C is the training's ``max_grad_norm``, which then bounds the gradient of each example by itself.
    """

    noise_multiplier: float = Field(
        gt=0,
        le=2**14,
        description="z: the sum of a step's gradients gets Gaussian noise of standard deviation "
        "z·max_grad_norm in every value",
    )
    delta: float = Field(
        gt=0, lt=1, description="δ of the guarantee; well below one over a client's number of rows"
    )
    epsilon: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="each client's budget: it declines the round that would overspend it",
    )
    noise: Literal["system", "reproducible"] = Field(
        default="system",
        description="where noise and drawn rows come from: the operating system, or the seed, which is for "
        "experiments and gives no privacy",
    )


_LATER = (
    "noise_multiplier",
    "epsilon",
    "delta",
    "noise",
    "noise_by",
    "adaptive",
    "padding",
    "mask_wait_s",
    "mechanism",
    "min_separation",
    "max_participations",
)


class PrivacySettings(Settings):
    """``[privacy]``: bounds on what an update may hold, and noise with a budget."""

    clip_l2: float | None = Field(default=None, gt=0, description="L2 bound of a whole update")
    masks: bool = Field(
        default=False,
        description="clients mask their updates, so that the server learns their sum only (SecAgg+, "
        "ePrint 2020/704)",
    )
    mask_dropouts: float = Field(
        default=0.3, ge=0, le=0.45, description="the fraction of a round's clients that may drop out"
    )
    mask_colluding: float = Field(
        default=0.1,
        ge=0,
        le=0.45,
        description="the fraction of a round's clients that may work with a lying server",
    )
    mask_wait_s: float = Field(
        default=120.0, gt=0, description="how long a step of a masked sum waits for a client that is there"
    )
    padding: Literal["none", "padme", "power-of-two"] = Field(
        default="none", description="of every message to a length that many share"
    )
    noise_multiplier: float | None = Field(
        default=None,
        gt=0,
        le=2**14,
        description="z: each value of a round's sum gets Gaussian noise of standard deviation z·clip_l2",
    )
    epsilon: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="the budget: the run stops before the round that would overspend it. Without "
        "`noise_multiplier` the least noise is used with which all rounds fit",
    )
    delta: float | None = Field(
        default=None, gt=0, lt=1, description="δ of the guarantee; well below one over the number of owners"
    )
    noise: Literal["system", "reproducible"] = Field(
        default="system",
        description="where noise and drawn cohorts come from: the operating system, or the seed, which is "
        "for experiments and gives no privacy",
    )
    noise_by: Literal["server", "clients"] = Field(
        default="server",
        description="who draws noise: the server, which sees each update, or, under masks, clients, each "
        "a share of which those of a sum's fewest honest ones are enough (arXiv 2102.06387)",
    )
    mechanism: Literal["independent", "tree", "banded", "blt"] = Field(
        default="independent",
        description="noise of each round by itself, or correlated over the rounds (DP-FTRL, arXiv "
        "2103.00039): of a binary tree, a banded matrix (2306.08153) or a BLT (2404.16706). "
        "`noise_multiplier` is then of all rounds together",
    )
    min_separation: int = Field(
        default=1,
        ge=1,
        description="with correlated noise: whom a round asked, none of the next `min_separation` − 1 asks",
    )
    max_participations: int | None = Field(
        default=None,
        ge=1,
        description="with correlated noise: in how many rounds one owner is asked at most; as many as fit if "
        "absent",
    )
    adaptive: AdaptiveClipping | None = Field(
        default=None, description="the bound follows the updates' norms, from `clip_l2` on"
    )

    @property
    def noised(self) -> bool:
        """Whether a round's sum is released under differential privacy."""
        return self.noise_multiplier is not None or self.epsilon is not None

    @property
    def shares(self) -> bool:
        """Whether clients draw the noise."""
        return self.noise_by == "clients"

    @property
    def correlated(self) -> bool:
        """Whether the noise of a round takes back some of earlier rounds'."""
        return self.mechanism != "independent"

    @model_validator(mode="after")
    def _whole(self) -> PrivacySettings:
        if self.noised and (self.clip_l2 is None or self.delta is None):
            missing = "clip_l2" if self.clip_l2 is None else "delta"
            raise ValueError(f"noise needs privacy.{missing} as well: a bound of each update, and the δ of ε")
        if not self.noised and (
            self.delta is not None or self.adaptive is not None or self.noise != "system"
        ):
            raise ValueError("privacy.delta, noise and adaptive go with noise_multiplier or epsilon")
        if not self.noised and self.correlated:
            raise ValueError("privacy.mechanism goes with noise_multiplier or epsilon")
        if self.shares and not (self.noised and self.masks):
            raise ValueError(
                'privacy.noise_by = "clients" goes with noise_multiplier and masks: the noise of one '
                "client does not hide its update"
            )
        if not self.correlated and (self.min_separation > 1 or self.max_participations is not None):
            raise ValueError(
                "privacy.min_separation and max_participations go with correlated noise: set mechanism"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """No key for what came later and nobody asked for: runs were named without."""
        content: dict[str, Any] = handler(self)
        for name in _LATER:
            if content.get(name) == type(self).model_fields[name].default:
                content.pop(name, None)
        return content if self.masks else {k: v for k, v in content.items() if not k.startswith("mask")}
