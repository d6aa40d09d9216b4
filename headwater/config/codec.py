"""``[codec]``: how updates become bytes."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from headwater.config.plugins import open_to
from headwater.config.settings import Settings
from headwater.config.traits import CodecTraits


class NoFeedback(CodecTraits):
    """A codec that error feedback does not go with.

    Attributes:
        because: why not.
    """

    error_feedback: ClassVar[bool] = False
    because: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _no_residual(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the file says
        if isinstance(value, dict) and "error_feedback" in value:
            raise ValueError(f"no error_feedback with codec '{value.get('kind')}': {cls.because}")
        return value


class Contractive(CodecTraits):
    """A biased codec with ‖C(x) − x‖ ≤ √(1 − δ)·‖x‖, δ > 0: error feedback makes up for what it drops."""

    error_feedback: bool = Field(
        default=True, description="a client adds to its next update what this one dropped"
    )


class DenseCodec(NoFeedback):
    """Every value as fp32, bf16 or fp16."""

    because: ClassVar[str] = "it drops nothing, or next to nothing"
    kind: Literal["dense"] = "dense"
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"

    def may_lengthen(self) -> bool:
        """As fp16, which rounds values below 6e-8 up to it."""
        return self.dtype == "fp16"


class LosslessCodec(NoFeedback):
    """Every value exactly, its bytes entropy-coded in planes (ZipNN, arXiv 2411.05239)."""

    because: ClassVar[str] = "it drops nothing"
    kind: Literal["lossless"]


class CompeftCodec(CodecTraits):
    """ComPEFT (arXiv 2311.13171): sparse ternary values with one scale per tensor, entropy-coded."""

    sparse: ClassVar[bool] = True
    kind: Literal["compeft"]
    density: float = Field(default=0.05, gt=0, le=1, description="fraction of values kept per tensor")
    alpha: float | None = Field(
        default=None, gt=0, description="scale = alpha·std as in the paper; the kept mean if absent"
    )
    error_feedback: bool = True

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


Codec = Annotated[
    DenseCodec | LosslessCodec | CompeftCodec | StcCodec | SignCodec | BlockCodec,
    Field(discriminator="kind"),
    open_to("codecs", CodecTraits),
]


class CodecSettings(Settings):
    """``[codec]``: how states travel down (server to client) and updates travel up."""

    up: Codec = CompeftCodec(kind="compeft")
    down: DenseCodec = DenseCodec(kind="dense")
