"""``[adapter]``: what is trained beside the frozen base, one class a kind."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from headwater.config.adapter_base import BaseAdapter as BaseAdapter
from headwater.config.layer_adapters import LayerAdapters
from headwater.config.plugins import open_to

ModuleName = Annotated[str, Field(pattern=r"^[\w.]+$")]
TokenIds = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1, max_length=65_536)
]


class LoraAdapter(BaseAdapter):
    """LoRA (arXiv 2106.09685), with rsLoRA (2312.03732) and DoRA (2402.09353) as flags."""

    layered: ClassVar[bool] = True
    has_factors: ClassVar[bool] = True
    later: ClassVar[tuple[str, ...]] = ("head", "trainable_token_indices")
    kind: Literal["lora"]
    rank: int = Field(default=8, ge=1, le=1024)
    alpha: float = Field(default=16.0, gt=0)
    target_modules: tuple[str, ...] = ("query", "value")
    layers: tuple[int, ...] | None = Field(default=None, description="only these layers; all if absent")
    rslora: bool = False
    dora: bool = False
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_parameters: tuple[str, ...] | None = None
    rank_pattern: dict[ModuleName, Annotated[int, Field(ge=1, le=1024)]] | None = None
    alpha_pattern: dict[ModuleName, Annotated[float, Field(gt=0)]] | None = None
    trainable_token_indices: TokenIds | Annotated[dict[ModuleName, TokenIds], Field(min_length=1)] | None = (
        Field(
            default=None,
            description="train these rows of the embedding too, as of tokens added to the base; or by module",
        )
    )

    @field_validator("trainable_token_indices")
    @classmethod
    def _each_once(
        cls, value: tuple[int, ...] | dict[str, tuple[int, ...]] | None
    ) -> tuple[int, ...] | dict[str, tuple[int, ...]] | None:
        for ids in value.values() if isinstance(value, dict) else [value or ()]:
            if len(set(ids)) < len(ids):
                raise ValueError("a token's id stands in it twice")
        return value

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _alike_in_any_order(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        """PEFT takes the first name that fits a module, and sorts them when it saves the adapter."""
        names = list(value or ())
        for number, first in enumerate(names):
            for later in names[number + 1 :]:
                both = first.endswith(f".{later}") or later.endswith(f".{first}")
                if both and later < first and value and value[first] != value[later]:
                    raise ValueError(
                        f"{first!r} and {later!r} fit the same modules, and once saved PEFT would take "
                        f"{later!r}: name each module so that one fits"
                    )
        return value

    @property
    def factor_rank(self) -> int:
        """The largest."""
        return max([self.rank, *(self.rank_pattern or {}).values()])


class LoraSbAdapter(BaseAdapter):
    """LoRA-SB (arXiv 2411.19557): only a core of r × r values is trained between two fixed factors."""

    layered: ClassVar[bool] = True
    kind: Literal["lora-sb"]
    rank: int = Field(default=64, ge=1, le=1024)
    target_modules: tuple[str, ...] = ("query", "value")
    layers: tuple[int, ...] | None = Field(default=None, description="only these layers; all if absent")
    dropout: float = Field(default=0.0, ge=0, lt=1)


class PromptAdapter(BaseAdapter):
    """Prompt tuning (arXiv 2104.08691): trained virtual tokens before the input."""

    is_prompt: ClassVar[bool] = True
    prepends: ClassVar[bool] = True
    kind: Literal["prompt"]
    tokens: int = Field(default=16, ge=1, le=4096)

    @property
    def virtual_tokens(self) -> int:  # noqa: D102 - inherited
        return self.tokens


class PrefixAdapter(BaseAdapter):
    """Prefix tuning (arXiv 2101.00190): trained keys and values in every layer."""

    no_checkpoints: ClassVar[str] = "whose cache and checkpointing exclude each other"
    kind: Literal["prefix"]
    tokens: int = Field(default=16, ge=1, le=4096)

    @property
    def virtual_tokens(self) -> int:  # noqa: D102 - inherited
        return self.tokens


class Ia3Adapter(BaseAdapter):
    """IA3 (arXiv 2205.05638): trained rescaling of activations."""

    layered: ClassVar[bool] = True
    kind: Literal["ia3"]
    target_modules: tuple[str, ...]
    feedforward_modules: tuple[str, ...] = ()


class VeraAdapter(BaseAdapter):
    """VeRA (arXiv 2310.11454): trained vectors around random matrices that all layers share."""

    layered: ClassVar[bool] = True
    kind: Literal["vera"]
    rank: int = Field(default=256, ge=1, le=4096)
    target_modules: tuple[str, ...] = ("query", "value")
    layers: tuple[int, ...] | None = Field(default=None, description="only these layers; all if absent")
    d_initial: float = Field(default=0.1, gt=0, le=16)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class PTuningAdapter(BaseAdapter):
    """P-tuning (arXiv 2103.10385): virtual tokens before the input, computed by a trained network."""

    prepends: ClassVar[bool] = True
    kind: Literal["p-tuning"]
    tokens: int = Field(default=16, ge=1, le=4096)
    encoder: Literal["mlp", "lstm"] = "mlp"
    hidden_size: int = Field(default=128, ge=1, le=65_536)
    lstm_layers: int = Field(default=2, ge=1, le=16)

    @property
    def virtual_tokens(self) -> int:  # noqa: D102 - inherited
        return self.tokens


Adapter = Annotated[
    LoraAdapter
    | LoraSbAdapter
    | PromptAdapter
    | PrefixAdapter
    | Ia3Adapter
    | VeraAdapter
    | PTuningAdapter
    | LayerAdapters,
    Field(discriminator="kind"),
    open_to("adapter_kinds", BaseAdapter),
]
