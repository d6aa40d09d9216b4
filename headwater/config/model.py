"""``[model]``: the frozen base, one class a kind."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from headwater.config.settings import by_kind
from headwater.config.traits import ModelTraits, Outputs


class BaseModelSettings(ModelTraits):
    """What every pretrained base model has."""

    path: str = Field(min_length=1, description="a folder (relative to the file) or a hub name")
    revision: str | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantization: Literal["none", "8bit", "4bit"] = "none"
    layers: int | None = Field(default=None, ge=1, description="keep only the first N layers")
    accept_warnings: tuple[str, ...] = Field(
        default=(),
        description="parts of warnings of transformers or PEFT about this model that do no harm; any other "
        "warning is an error",
    )


class EncoderModel(BaseModelSettings):
    """An encoder (``AutoModel``) with a linear head on its mean-pooled tokens, or on each token."""

    gives: ClassVar[tuple[Outputs, ...]] = ("row", "tokens")
    classifies: ClassVar[bool] = True
    pooled: ClassVar[bool] = True
    kind: Literal["encoder"]


class SequenceClassificationModel(BaseModelSettings):
    """Any ``AutoModelForSequenceClassification`` with its own head."""

    gives: ClassVar[tuple[Outputs, ...]] = ("row",)
    classifies: ClassVar[bool] = True
    own_head: ClassVar[bool] = True
    kind: Literal["sequence-classification"]
    head: Literal["match", "in-order", "fresh"] = Field(
        default="match",
        description="a head that the base was trained with: its outputs go to the labels of the same name; "
        "output k is label k; or it starts fresh",
    )


class CausalLMModel(BaseModelSettings):
    """Any ``AutoModelForCausalLM``."""

    gives: ClassVar[tuple[Outputs, ...]] = ("next token",)
    language_model: ClassVar[bool] = True
    writes: ClassVar[bool] = True
    kind: Literal["causal-lm"]


class MaskedLMModel(BaseModelSettings):
    """Any ``AutoModelForMaskedLM``."""

    gives: ClassVar[tuple[Outputs, ...]] = ("masked token",)
    kind: Literal["masked-lm"]


class Seq2SeqModel(BaseModelSettings):
    """Any ``AutoModelForSeq2SeqLM``: an encoder and a decoder."""

    gives: ClassVar[tuple[Outputs, ...]] = ("answer",)
    writes: ClassVar[bool] = True
    kind: Literal["seq2seq"]


class VectorModel(ModelTraits):
    """No base model: a bare vector of values, for transport and load experiments."""

    pretrained: ClassVar[bool] = False
    kind: Literal["vector"]
    size: int = Field(ge=1, le=2**31)


Model = Annotated[
    EncoderModel | SequenceClassificationModel | CausalLMModel | MaskedLMModel | Seq2SeqModel | VectorModel,
    Field(discriminator="kind"),
]


MODELS: dict[str, type[ModelTraits]] = by_kind(Model)
"""The settings class of every ``model.kind``."""
