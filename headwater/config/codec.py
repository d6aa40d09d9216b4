"""``[codec]``: how updates become bytes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, field_validator, model_validator

from headwater.config.feedback import UNBIASED, Contractive, NoFeedback
from headwater.config.plugins import open_to
from headwater.config.settings import Settings
from headwater.config.traits import CodecTraits

DENSITY_OVER = "compeft.density_over"
"""What a client that knows this setting of ``compeft.v2`` says among the ids that it knows."""


class DenseCodec(NoFeedback):
    """Every value as fp32, bf16 or fp16."""

    whole: ClassVar[bool] = True
    because: ClassVar[str] = "it drops nothing, or next to nothing"
    kind: Literal["dense"] = "dense"
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"

    def may_lengthen(self) -> bool:
        """As fp16, which rounds values below 6e-8 up to it."""
        return self.dtype == "fp16"


class LosslessCodec(NoFeedback):
    """Every value exactly, its bytes entropy-coded in planes (ZipNN, arXiv 2411.05239)."""

    whole: ClassVar[bool] = True
    because: ClassVar[str] = "it drops nothing"
    kind: Literal["lossless"]


class CompeftCodec(Contractive):
    """ComPEFT (arXiv 2311.13171): sparse ternary values with one scale per tensor, entropy-coded."""

    sparse: ClassVar[bool] = True
    first_format: ClassVar[Mapping[str, object]] = MappingProxyType(
        {"format": 1, "scale_bits": 24, "density_over": "tensor"}
    )
    kind: Literal["compeft"]
    density: float = Field(default=0.05, gt=0, le=1, description="fraction of values kept")
    density_over: Literal["tensor", "all"] = Field(
        default="all",
        description="what `density` is a fraction of: all values together, as in the paper, or each tensor; "
        '`"tensor"` with format 1 or `budget_bytes`',
    )
    alpha: float | None = Field(
        default=None, gt=0, description="scale = alpha·std as in the paper; the kept mean if absent"
    )
    scale_bits: int = Field(
        default=8, ge=8, le=24, description="significant bits of a scale; 24 is exact, as format 1 always is"
    )
    format: Literal[1, 2] = Field(
        default=2, description="`compeft.v2` of clients that know it, or `compeft.v1` of all"
    )
    budget_bytes: int | None = Field(
        default=None,
        ge=64,
        exclude_if=lambda value: value is None,
        description="a density of each tensor's own, by what its values are worth, in so many bytes",
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_form(cls, table: object) -> object:
        """Where nothing is said: exact scales in format 1, densities by tensor there and under a budget."""
        if not isinstance(table, Mapping):
            return table
        said = dict(table)
        if said.get("format") == 1:
            said = {**cls.first_format, **said}
        if said.get("budget_bytes") is not None:
            said.setdefault("density_over", "tensor")
        return said

    @model_validator(mode="after")
    def _scale_bits_are_of_format_2(self) -> Self:
        if self.format == 1 and self.scale_bits != self.first_format["scale_bits"]:
            raise ValueError("scale_bits needs format 2")
        if self.budget_bytes is not None and (self.format == 1 or self.alpha is not None):
            raise ValueError("budget_bytes needs format 2, and no alpha: it weighs errors of the kept mean")
        if self.density_over == "all" and (self.format == 1 or self.budget_bytes is not None):
            raise ValueError('density_over = "all" needs format 2, and no budget_bytes, which has densities')
        return self

    def written_by(self, ids: Collection[str]) -> Self:
        """In format 1, with exact scales, unless the client knows what is asked for."""
        if f"{self.kind}.v{self.format}" not in ids:
            return self.model_copy(update={"budget_bytes": None, **self.first_format})
        if self.density_over == "tensor" or DENSITY_OVER in ids:
            return self
        return self.model_copy(update={"density_over": "tensor"})

    def plan_dump(self) -> dict[str, Any]:
        """Without ``density_over`` where it is what it was before it could be said."""
        content = super().plan_dump()
        if content.get("density_over") == self.first_format["density_over"]:
            del content["density_over"]
        return content

    def may_lengthen(self) -> bool:
        """With ``alpha``, which need not be what the kept values were."""
        return bool(self.alpha)


class StcCodec(Contractive):
    """STC (arXiv 1903.02891): the largest values of the whole update, as signs with one scale for all."""

    sparse: ClassVar[bool] = True
    kind: Literal["stc"]
    density: float = Field(default=0.05, gt=0, le=1, description="fraction of all values kept")


class SignCodec(Contractive):
    """EF-sign (arXiv 1901.09847): the sign of every value, with the mean magnitude of its tensor."""

    kind: Literal["sign"]


class BlockCodec(Contractive):
    """Every value in 8 or 4 bits, in units of the largest of its block (arXiv 2110.02861, 2305.14314)."""

    kind: Literal["int8", "int4", "nf4"]
    block: int | None = Field(
        default=None, ge=16, le=65_536, description="values with one scale: 256 of `int8`, else 64 if absent"
    )

    def may_lengthen(self) -> bool:
        """Values may be rounded up together."""
        return True


class TopkCodec(Contractive):
    """Top-k (arXiv 1704.05021): the largest values of each tensor, in 16, 8 or 2 bits."""

    sparse: ClassVar[bool] = True
    kind: Literal["topk"]
    density: float = Field(default=0.05, gt=0, le=1, description="fraction of values kept per tensor")
    bits: Literal[16, 8, 2] = Field(default=8, description="of a kept value")

    def may_lengthen(self) -> bool:
        """In 8 bits, where values may be rounded up together."""
        return self.bits == 8


class SparseLocoCodec(Contractive):
    """SparseLoCo (arXiv 2508.15706): the largest values of each chunk in 2 bits."""

    sparse: ClassVar[bool] = True
    kind: Literal["sparseloco"]
    density: float = Field(default=1 / 64, gt=0, le=1, description="fraction of values kept per chunk")
    chunk: int = Field(default=4096, ge=64, le=2**20, description="values of a chunk")


class QsgdCodec(NoFeedback):
    """QSGD (arXiv 1610.02132): every value rounded at random to one of few levels, unbiased."""

    because: ClassVar[str] = UNBIASED
    unbiased: ClassVar[bool] = True
    kind: Literal["qsgd"]
    levels: int = Field(default=7, ge=1, le=127, description="of each sign, beside 0")
    bucket: int = Field(default=512, ge=16, le=65_536, description="values with one norm")

    def may_lengthen(self) -> bool:
        """Noise adds to any norm."""
        return True


class DrawnPlaces(CodecTraits):
    """Random places that need not be sent (:data:`ChainCodec.first`)."""

    unbiased: ClassVar[bool] = True
    sparse: ClassVar[bool] = True
    kind: Literal["randk"]
    density: float = Field(default=0.05, gt=0, le=1, description="fraction of values sent per tensor")
    shared: bool = Field(default=False, description="all clients of a round send the same places")
    places: str | None = Field(
        default=None, pattern="^[0-9a-f]{32}$", description="the server's, in its plans only"
    )

    def may_lengthen(self) -> bool:
        """What is sent is multiplied by 1/density."""
        return True

    @property
    def keeps(self) -> float | None:
        """Nobody's own, where all clients send the same places."""
        return None if self.shared else self.density

    def for_round(self, places: str) -> Self:
        """With the places of the round, where all clients share them."""
        return self.model_copy(update={"places": places}) if self.shared else self

    def is_of_a_round(self) -> bool:
        """Whether a plan has given it places."""
        return self.places is not None


class RandkCodec(DrawnPlaces, NoFeedback):
    """Rand-k (arXiv 1610.05492): values at random places that need not be sent, unbiased."""

    because: ClassVar[str] = UNBIASED


class NnadqCodec(Contractive):
    """FedOBD's NNADQ (arXiv 2208.05174): as many levels for each tensor as its range is worth."""

    kind: Literal["nnadq"]
    sigma: float = Field(default=0.01, gt=0, description="size against error: smaller for more levels")
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="leave out so much of the update, the least changed tensors first",
    )

    def leaves_out(self) -> bool:
        """Whole tensors."""
        return self.dropout > 0

    def may_lengthen(self) -> bool:
        """Values may be rounded up together."""
        return True


class PowersgdCodec(Contractive):
    """PowerSGD (arXiv 1905.13727): each matrix as two factors of low rank; smaller tensors as fp32."""

    kind: Literal["powersgd"]
    rank: int = Field(default=2, ge=1, le=1024, description="of the factors")
    iterations: int = Field(default=2, ge=1, le=10, description="of the power method")


class LargestPlaces(CodecTraits):
    """The largest values (:data:`ChainCodec.first`)."""

    sparse: ClassVar[bool] = True
    kind: Literal["topk"]
    density: float = Field(default=0.05, gt=0, le=1, description="fraction of values kept per tensor")


Places = Annotated[LargestPlaces | DrawnPlaces, Field(discriminator="kind")]
Values = Annotated[
    DenseCodec | LosslessCodec | SignCodec | BlockCodec | QsgdCodec | NnadqCodec, Field(discriminator="kind")
]


class ChainCodec(Contractive):
    """One codec chooses which values travel, another writes them; only its own `error_feedback` counts."""

    sparse: ClassVar[bool] = True
    kind: Literal["chain"]
    first: Places = Field(
        default=LargestPlaces(kind="topk"), description="`topk` with `density`, or `randk` as above"
    )
    then: Values = Field(default=BlockCodec(kind="int8"), description="a codec of all values")

    def may_lengthen(self) -> bool:
        """As its parts."""
        return self.first.may_lengthen() or self.then.may_lengthen()

    @property
    def keeps(self) -> float | None:
        """As its first part."""
        return self.first.keeps

    def keeping(self, density: float) -> Self:
        """As its first part."""
        return self.model_copy(update={"first": self.first.keeping(density)})

    def for_round(self, places: str) -> Self:
        """As its first part."""
        return self.model_copy(update={"first": self.first.for_round(places)})

    def is_of_a_round(self) -> bool:
        """As its first part."""
        return self.first.is_of_a_round()

    @model_validator(mode="after")
    def _contractive(self) -> Self:
        _no_feedback_of(self.error_feedback, self.kind, [self.first, self.then])
        return self


Alone: TypeAlias = (
    DenseCodec
    | LosslessCodec
    | CompeftCodec
    | StcCodec
    | SignCodec
    | BlockCodec
    | TopkCodec
    | SparseLocoCodec
    | QsgdCodec
    | RandkCodec
    | NnadqCodec
    | PowersgdCodec
)
Part = Annotated[Alone | ChainCodec, Field(discriminator="kind")]


class Module(Settings):
    """The codec of some tensors."""

    pattern: str = Field(min_length=1, max_length=200, description="of tensors' names, such as `*.lora_b*`")
    codec: Part


class ByModuleCodec(Contractive):
    """A codec for each part of an adapter (GraftLLM, arXiv 2505.18502); only its `error_feedback` counts."""

    kind: Literal["by-module"]
    modules: tuple[Module, ...] = Field(
        default=(),
        strict=False,  # of codec.down, whose validator sees lists, not the file's arrays
        max_length=64,
        description="each with `pattern`, of tensors' names, and `codec`; first fit",
    )
    otherwise: Part = Field(default=CompeftCodec(kind="compeft"), description="the codec of all others")

    @property
    def parts(self) -> list[CodecTraits]:
        """Every codec that it may use."""
        return [*(module.codec for module in self.modules), self.otherwise]

    @property
    def keeps(self) -> float | None:
        """The largest of its parts'."""
        return max((part.keeps for part in self.parts if part.keeps is not None), default=None)

    def keeping(self, density: float) -> Self:
        """All parts that have a density in proportion, so that this is the largest."""

        def lowered(part: Part) -> Part:
            return part if part.keeps is None else part.keeping(part.keeps * density / (self.keeps or 1.0))

        modules = tuple(m.model_copy(update={"codec": lowered(m.codec)}) for m in self.modules)
        return self.model_copy(update={"modules": modules, "otherwise": lowered(self.otherwise)})

    def notices(self, names: Sequence[str]) -> tuple[str, ...]:
        """Patterns that are no tensor's first fit."""
        patterns = [module.pattern for module in self.modules]
        used = {next((i for i, p in enumerate(patterns) if fnmatchcase(name, p)), None) for name in names}
        return tuple(
            f"no tensor goes by modules.{i}, pattern {pattern!r}: none that is named as {names[0]!r} … "
            f"{names[-1]!r} fits, or earlier patterns have them"
            for i, pattern in enumerate(patterns)
            if i not in used
        )

    def leaves_out(self) -> bool:
        """As any of its parts."""
        return any(part.leaves_out() for part in self.parts)

    def may_lengthen(self) -> bool:
        """As any of its parts."""
        return any(part.may_lengthen() for part in self.parts)

    def for_round(self, places: str) -> Self:
        """As its parts."""
        modules = tuple(m.model_copy(update={"codec": m.codec.for_round(places)}) for m in self.modules)
        return self.model_copy(update={"modules": modules, "otherwise": self.otherwise.for_round(places)})

    def is_of_a_round(self) -> bool:
        """As any of its parts."""
        return any(part.is_of_a_round() for part in self.parts)

    @model_validator(mode="after")
    def _contractive(self) -> Self:
        _no_feedback_of(self.error_feedback, self.kind, self.parts)
        return self


def _no_feedback_of(error_feedback: object, kind: str, parts: Iterable[CodecTraits]) -> None:
    """A residual needs parts that are contractive, all of them."""
    for part in parts:
        inner = [part.first, part.then] if isinstance(part, ChainCodec) else [part]
        if error_feedback and any(p.unbiased for p in inner):
            raise ValueError(
                f"codec '{kind}' has an unbiased part: set its error_feedback = false; {UNBIASED}"
            )


Codec = Annotated[
    Alone | ChainCodec | ByModuleCodec, Field(discriminator="kind"), open_to("codecs", CodecTraits)
]


class CodecSettings(Settings):
    """``[codec]``: how states travel down (server to client) and updates travel up."""

    up: Codec = CompeftCodec(kind="compeft")
    down: Codec = DenseCodec(kind="dense")

    @field_validator("down", mode="before")
    @classmethod
    def _dense_without_kind(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the file says
        """Files of earlier versions name no kind: there was one."""
        return {"kind": "dense", **value} if isinstance(value, dict) else value

    @property
    def for_devices(self) -> Self:
        """What a device needs to be told: states name their codec, which need not be known to older devices.

        One of an installed package must be, for nothing else says which package reads it.
        """
        told = self.down if self.down.implementation else DenseCodec(kind="dense")
        return self.model_copy(update={"down": told})
