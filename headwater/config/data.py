"""``[data]``: where rows lie and what is learnt from them, one class a kind."""

from __future__ import annotations

import contextlib
import datetime
import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from headwater.config.metrics import ANSWER_METRICS, LOSS, MAX_VALUE, Metric
from headwater.config.partitions import Partition
from headwater.config.plugins import find, installed, open_to, settings_class
from headwater.config.settings import by_kind
from headwater.config.traits import DataTraits, Outputs
from headwater.errors import HeadwaterError

Inputs = tuple[Literal["text", "pair", "words"], tuple[str, ...]]
"""A text, two texts or a list of words, and the columns that hold them."""


class BaseData(DataTraits):
    """What every kind of data has."""

    path: str = Field(
        description="a JSONL, JSON, CSV, TSV or Parquet file, a folder of them, or a `datasets` folder"
    )
    split: str | None = Field(
        default=None, min_length=1, description="of a path with splits; `train` if absent"
    )
    test: str | None = Field(default=None, description="the server's held-out file or folder")
    test_split: str | None = Field(
        default=None, min_length=1, description="of a test path with splits; `test` if absent"
    )
    partition: Partition
    max_tokens: int = Field(default=128, ge=2, le=1_048_576)
    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    fraction: float = Field(default=1.0, gt=0, le=1, description="of each client's rows, drawn once")
    max_examples_per_client: int | None = Field(default=None, ge=1, description="rows, drawn once")
    max_test_examples: int | None = Field(
        default=None, ge=1, description="of the tokenised test file (a causal model's windows), drawn once"
    )
    kind: str

    @property
    def most_targets(self) -> int:
        """Targets that an example can have."""
        return self.max_tokens if self.by_token else 1

    @property
    def inputs(self) -> Inputs | None:
        """How rows hold what is read, and the columns; None where the data room finds out itself."""
        return None


class TextData(BaseData):
    """Rows with a text, or a pair of texts, and one target each: what a new task of that kind extends."""

    text: str = "text"
    text_pair: str | None = Field(
        default=None, description="the column of a second text, encoded as the tokenizer's pair"
    )


class Labelled(BaseData):
    """Rows with labels of a closed list."""

    has_labels: ClassVar[bool] = True
    labels: tuple[str, ...] = Field(min_length=2)

    @field_validator("labels", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return names_of(value)


class Weighted(Labelled):
    """Rows whose labels may count unequally."""

    class_weights: tuple[float, ...] | None = Field(
        default=None,
        description="of each label's loss, in their order; let their mean over rows be 1",
    )

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        given, count = self.class_weights, len(self.labels)
        if given is not None and not (len(given) == count and min(given) >= 0 and 0 < max(given) <= 1000):
            raise ValueError(f"class_weights: {count} numbers of 0 to 1,000, not all of them 0")
        return self


class ClassificationData(TextData, Weighted):
    """Text and label per row."""

    metrics: ClassVar[Mapping[str, Metric]] = {"accuracy": Metric(), "macro_f1": Metric(), "loss": LOSS}
    constant_metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    has_probe: ClassVar[bool] = True
    has_likelihood: ClassVar[bool] = True
    kind: Literal["classification"]
    label: str = "label"

    @property
    def target_columns(self) -> tuple[str, ...]:
        """The label's."""
        return (self.label,)

    @property
    def group_column(self) -> str | None:
        """The label's."""
        return self.label


def names_of(value: object) -> object:
    """Whole numbers and truth values as their names: ``[0, 1]`` is ``["0", "1"]``."""
    if not isinstance(value, list | tuple):
        return value
    return tuple(
        str(v).lower() if isinstance(v, bool) else str(v) if isinstance(v, int) else v for v in value
    )


class RegressionData(TextData):
    """Text and number per row; the loss is the squared error."""

    metrics: ClassVar[Mapping[str, Metric]] = {
        "mse": Metric(lower=True, most=1e30),
        "mae": Metric(lower=True, most=1e15),
        "spearman": Metric(least=-1.0),
        "r2": Metric(least=-MAX_VALUE),
        "loss": Metric(lower=True, most=1e30),
    }
    constant_metrics: ClassVar[tuple[str, ...]] = ("mse", "mae", "r2", "loss")
    has_likelihood: ClassVar[bool] = True
    kind: Literal["regression"]
    target: str = "target"
    target_mean: float = Field(default=0.0, ge=-1e12, le=1e12)
    target_scale: float = Field(default=1.0, ge=1e-6, le=1e12)

    @property
    def target_columns(self) -> tuple[str, ...]:
        """The number's."""
        return (self.target,)


class MultiLabelData(TextData, Labelled):
    """Text and any number of labels per row."""

    metrics: ClassVar[Mapping[str, Metric]] = {
        "micro_f1": Metric(),
        "macro_f1": Metric(),
        "exact_match": Metric(),
        "loss": LOSS,
    }
    constant_metrics: ClassVar[tuple[str, ...]] = ("micro_f1", "macro_f1", "exact_match")
    has_likelihood: ClassVar[bool] = True
    kind: Literal["multi-label"]
    label: str = "labels"
    separator: str | None = Field(
        default=None, min_length=1, description="what stands between labels where the column is text"
    )

    @property
    def target_columns(self) -> tuple[str, ...]:
        """The labels'."""
        return (self.label,)


class TokenClassificationData(Weighted):
    """Words and a label for each per row; what counts are entities, as seqeval finds them."""

    needs: ClassVar[Outputs] = "tokens"
    by_token: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, Metric]] = {
        "entity_f1": Metric(),
        "entity_precision": Metric(),
        "entity_recall": Metric(),
        "accuracy": Metric(),
        "loss": LOSS,
    }
    constant_metrics: ClassVar[tuple[str, ...]] = ("entity_f1", "accuracy")
    has_likelihood: ClassVar[bool] = True
    kind: Literal["token-classification"]
    words: str = Field(default="tokens", description="the column of the words: a list, or text with spaces")
    label: str = Field(
        default="tags",
        description="the column of their labels: a list, or text with spaces; numbers count `labels` from 0",
    )

    @property
    def inputs(self) -> Inputs:
        """The words."""
        return "words", (self.words,)

    @property
    def target_columns(self) -> tuple[str, ...]:
        """The labels'."""
        return (self.label,)


class ExtractiveQAData(BaseData):
    """Question, context and an answer's place in it per row: where it begins and where it ends."""

    needs: ClassVar[Outputs] = "tokens"
    by_token: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, Metric]] = {"f1": Metric(), "exact_match": Metric(), "loss": LOSS}
    has_likelihood: ClassVar[bool] = True
    kind: Literal["extractive-qa"]
    question: str = "question"
    context: str = "context"
    answers: str = Field(
        default="answers",
        description="the column of the answers: lists `text` and `answer_start`, or objects with both",
    )
    stride: int = Field(default=32, ge=0, description="tokens that two windows of a long context share")
    max_answer_tokens: int = Field(default=30, ge=1, description="of an answer that the model may give")
    unanswerable: bool = Field(default=False, description="rows may have no answer, and answers may be none")

    @property
    def inputs(self) -> Inputs:
        """Question and context."""
        return "pair", (self.question, self.context)

    @property
    def target_columns(self) -> tuple[str, ...]:
        """The answers'."""
        return (self.answers,)


class BaseLanguageData(BaseData):
    """Rows of which a causal model predicts tokens."""

    needs: ClassVar[Outputs] = "next token"
    by_token: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, Metric]] = {
        "perplexity": Metric(lower=True, most=math.inf),
        "loss": LOSS,
    }
    has_likelihood: ClassVar[bool] = True


class CausalLMData(BaseLanguageData):
    """Running text per row; loss on every token; long texts are cut into windows."""

    kind: Literal["causal-lm"]
    text: str = "text"

    @property
    def inputs(self) -> Inputs:
        """The text."""
        return "text", (self.text,)


class MaskedLMData(BaseData):
    """Running text per row, cut into windows; some tokens are hidden and told from both sides."""

    needs: ClassVar[Outputs] = "masked token"
    by_token: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, Metric]] = {**BaseLanguageData.metrics, "accuracy": Metric()}
    has_likelihood: ClassVar[bool] = True
    kind: Literal["masked-lm"]
    text: str = "text"
    hidden: float = Field(default=0.15, gt=0, lt=1, description="the share of a window's tokens")
    copies: int = Field(default=1, ge=1, le=100, description="of each window, each with other tokens hidden")
    mask_seed: int = Field(default=0, ge=0, description="of what is hidden, with the tokens alone")
    blank: str = Field(
        default="___", min_length=1, description="what asks for a token in `headwater predict`"
    )

    @property
    def inputs(self) -> Inputs:
        """The text."""
        return "text", (self.text,)


class Seq2SeqData(BaseData):
    """Text and answer per row, for an encoder-decoder; loss on the answer."""

    needs: ClassVar[Outputs] = "answer"
    by_token: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, Metric]] = BaseLanguageData.metrics
    has_likelihood: ClassVar[bool] = True
    has_answers: ClassVar[bool] = True
    kind: Literal["seq2seq"]
    text: str = "text"
    target: str = Field(default="target", description="the column of the answer")
    prefix: str = Field(default="", description="before every text, such as T5's `summarize: `")
    max_target_tokens: int = Field(default=128, ge=2, le=1_048_576, description="longer answers are cut")

    @property
    def most_targets(self) -> int:
        """Tokens of the answer."""
        return self.max_target_tokens

    @property
    def inputs(self) -> Inputs:
        """The text."""
        return "text", (self.text,)

    @property
    def target_columns(self) -> tuple[str, ...]:
        """The answer's."""
        return (self.target,)


TEMPLATE_DATE = datetime.date(2024, 7, 26)
"""What chat templates take for today unless the file says otherwise: Llama 3's own date without a clock."""


class InstructionData(BaseLanguageData):
    """Prompt and answer per row (or a ``messages`` column) with the model's chat template.

    The loss is on the answer only.
    """

    has_answers: ClassVar[bool] = True
    kind: Literal["instruction"]
    format: Literal["columns", "alpaca", "messages", "sharegpt"] | None = Field(
        default=None, description="how rows hold a conversation; recognised by their columns if absent"
    )
    prompt: str = "prompt"
    answer: str = "answer"
    messages: str | None = None
    system: str | None = None
    date: datetime.date = Field(
        default=TEMPLATE_DATE,
        description="what a chat template takes for today where it writes the date, whatever day it is",
    )
    thinking: bool = Field(
        default=False,
        description="the model is asked to think before it answers; rows bring `reasoning_content`",
    )


class NoData(DataTraits):
    """No data: names ``clients`` clients of ``examples`` examples, for the ``noop`` training."""

    has_rows: ClassVar[bool] = False
    test: ClassVar[None] = None
    validation_fraction: ClassVar[float] = 0.0
    kind: Literal["none"]
    clients: int = Field(ge=1, le=1_000_000)
    examples: int = Field(default=1, ge=1)


Data = Annotated[
    ClassificationData
    | RegressionData
    | MultiLabelData
    | TokenClassificationData
    | ExtractiveQAData
    | CausalLMData
    | InstructionData
    | MaskedLMData
    | Seq2SeqData
    | NoData,
    Field(discriminator="kind"),
    open_to("tasks", BaseData),
]


UNKNOWN_LABELS = ("\x00", "\x01")
"""``labels`` of settings that nobody wrote: any label will do."""


def data_kind(kind: str) -> type[DataTraits] | None:
    """The settings class of a ``data.kind``, built in or of an installed package; None if there is none."""
    if kind in _BUILT_IN:
        return _BUILT_IN[kind]
    plugin = find("tasks", kind)
    return None if plugin is None else settings_class(plugin, BaseData)


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of the metric is a better one; False of a name that no task has."""
    found = _metric(metric)
    return found is not None and found.lower


def is_rate(metric: str) -> bool:
    """Whether the metric is a share, from 0 to 1."""
    found = _metric(metric)
    return found is not None and found.is_rate


_BUILT_IN: Mapping[str, type[DataTraits]] = by_kind(Data)


def _metric(name: str) -> Metric | None:
    """The metric of that name; installed packages are asked for names that are not headwater's own."""
    if name in ANSWER_METRICS:
        return ANSWER_METRICS[name]
    for settings in _BUILT_IN.values():
        if name in settings.metrics:
            return settings.metrics[name]
    for plugin in installed():
        if plugin.family == "tasks":
            with contextlib.suppress(HeadwaterError):  # not allowed here, or broken: said where it is used
                if (found := settings_class(plugin, BaseData).metrics.get(name)) is not None:
                    return found
    return None
