"""``[codec]``: how updates become bytes."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from headwater.config.plugins import open_to
from headwater.config.settings import Settings
from headwater.config.traits import CodecTraits


class DenseCodec(CodecTraits):
    """Every value as fp32 or bf16."""

    error_feedback: ClassVar[bool] = False
    kind: Literal["dense"] = "dense"
    dtype: Literal["fp32", "bf16"] = "fp32"


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


Codec = Annotated[DenseCodec | CompeftCodec, Field(discriminator="kind"), open_to("codecs", CodecTraits)]


class CodecSettings(Settings):
    """``[codec]``: how states travel down (server to client) and updates travel up."""

    up: Codec = CompeftCodec(kind="compeft")
    down: DenseCodec = DenseCodec(kind="dense")
