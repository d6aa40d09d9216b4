"""The federation file as frozen, typed settings. :class:`Federation` is the whole file.

One table of the TOML file is one class here; tables with a ``kind`` are unions. Unknown keys and
wrong types are errors. Units stand in the names. Nothing here imports torch.
"""

from __future__ import annotations

import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from headwater.config.assignment import DEFAULT, Assignment, Method
from headwater.config.consistency import require_consistent
from headwater.config.settings import Settings, by_kind
from headwater.config.training import Training
from headwater.config.traits import AdapterTraits, CodecTraits, DataTraits, ModelTraits, StrategyTraits


class FederationSettings(Settings):
    """``[federation]``: what the whole run has in common."""

    name: str = Field(min_length=1, max_length=80)
    seed: int = Field(default=0, ge=0, lt=2**63)
    rounds: int = Field(ge=1, le=100_000)
    threads: int = Field(default=1, ge=1, le=256, description="CPU threads of one training")


# --- [model] -----------------------------------------------------------------------------------


class BaseModelSettings(ModelTraits):
    """What every pretrained base model has."""

    path: str = Field(min_length=1, description="a folder (relative to the file) or a hub name")
    revision: str | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    quantization: Literal["none", "8bit", "4bit"] = "none"
    layers: int | None = Field(default=None, ge=1, description="keep only the first N layers")
    accept_warnings: tuple[str, ...] = Field(
        default=(),
        description="parts of warnings of transformers or PEFT about this model that do no harm; any other "
        "warning is an error",
    )


class EncoderModel(BaseModelSettings):
    """An encoder (``AutoModel``) with a mean-pooled linear head."""

    classifies: ClassVar[bool] = True
    pooled: ClassVar[bool] = True
    kind: Literal["encoder"]


class SequenceClassificationModel(BaseModelSettings):
    """Any ``AutoModelForSequenceClassification`` with its own head."""

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

    language_model: ClassVar[bool] = True
    kind: Literal["causal-lm"]


class VectorModel(ModelTraits):
    """No base model: a bare vector of values, for transport and load experiments."""

    pretrained: ClassVar[bool] = False
    kind: Literal["vector"]
    size: int = Field(ge=1, le=2**31)


Model = Annotated[
    EncoderModel | SequenceClassificationModel | CausalLMModel | VectorModel, Field(discriminator="kind")
]
MODELS: dict[str, type[ModelTraits]] = by_kind(Model)
"""The settings class of every ``model.kind``."""


# --- [adapter] ---------------------------------------------------------------------------------


class BaseAdapter(AdapterTraits):
    """What every adapter has."""

    head_bits: int = Field(
        default=0,
        ge=0,
        le=12,
        description="a fresh head travels and moves in units of 2^head_bits: methods along random directions "
        "then take steps so much longer in it than in the adapter, as its steeper loss needs (5 or 6)",
    )


class LoraAdapter(BaseAdapter):
    """LoRA (arXiv 2106.09685), with rsLoRA (2312.03732) and DoRA (2402.09353) as flags."""

    layered: ClassVar[bool] = True
    has_factors: ClassVar[bool] = True
    kind: Literal["lora"]
    rank: int = Field(default=8, ge=1, le=1024)
    alpha: float = Field(default=16.0, gt=0)
    target_modules: tuple[str, ...] = ("query", "value")
    layers: tuple[int, ...] | None = Field(default=None, description="only these layers; all if absent")
    rslora: bool = False
    dora: bool = False
    dropout: float = Field(default=0.0, ge=0, lt=1)


class PromptAdapter(BaseAdapter):
    """Prompt tuning (arXiv 2104.08691): trained virtual tokens before the input."""

    is_prompt: ClassVar[bool] = True
    kind: Literal["prompt"]
    tokens: int = Field(default=16, ge=1, le=4096)

    @property
    def virtual_tokens(self) -> int:  # noqa: D102 - inherited
        return self.tokens


class PrefixAdapter(BaseAdapter):
    """Prefix tuning (arXiv 2101.00190): trained keys and values in every layer."""

    checkpoints: ClassVar[bool] = False  # transformers' cache and checkpointing exclude each other
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


Adapter = Annotated[LoraAdapter | PromptAdapter | PrefixAdapter | Ia3Adapter, Field(discriminator="kind")]


# --- [data] ------------------------------------------------------------------------------------


class ColumnPartition(Settings):
    """One client per value of a column."""

    kind: Literal["column"]
    column: str


class FilesPartition(Settings):
    """``data.path`` is a folder with one file per client, named after it."""

    kind: Literal["files"]


class IidPartition(Settings):
    """Rows dealt at random into equal shares."""

    kind: Literal["iid"]
    clients: int = Field(ge=1, le=1_000_000)


class DirichletPartition(Settings):
    """For each label, shares of the clients from Dirichlet(alpha) (arXiv 1909.06335)."""

    kind: Literal["dirichlet"]
    clients: int = Field(ge=1, le=1_000_000)
    alpha: float = Field(gt=0)
    column: str | None = Field(default=None, description="the label column if absent")
    min_examples: int = Field(default=10, ge=1)


class QuantityPartition(Settings):
    """Rows dealt at random into shares whose sizes follow Dirichlet(alpha)."""

    kind: Literal["quantity"]
    clients: int = Field(ge=1, le=1_000_000)
    alpha: float = Field(gt=0)
    min_examples: int = Field(default=10, ge=1)


Partition = Annotated[
    ColumnPartition | FilesPartition | IidPartition | DirichletPartition | QuantityPartition,
    Field(discriminator="kind"),
]


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


class ClassificationData(BaseData):
    """Text and label per row."""

    has_labels: ClassVar[bool] = True
    kind: Literal["classification"]
    text: str = "text"
    text_pair: str | None = Field(
        default=None, description="the column of a second text, encoded as the tokenizer's pair"
    )
    label: str = "label"
    labels: tuple[str, ...] = Field(min_length=2)

    @field_validator("labels", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        """Whole numbers and truth values as their names: ``[0, 1]`` is ``["0", "1"]``."""
        if not isinstance(value, list | tuple):
            return value
        return tuple(
            str(v).lower() if isinstance(v, bool) else str(v) if isinstance(v, int) else v for v in value
        )


class CausalLMData(BaseData):
    """Running text per row; loss on every token; long texts are cut into windows."""

    language_model: ClassVar[bool] = True
    kind: Literal["causal-lm"]
    text: str = "text"


TEMPLATE_DATE = datetime.date(2024, 7, 26)
"""What chat templates take for today unless the file says otherwise: Llama 3's own date without a clock."""


class InstructionData(BaseData):
    """Prompt and answer per row (or a ``messages`` column) with the model's chat template.

    The loss is on the answer only.
    """

    language_model: ClassVar[bool] = True
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


Data = Annotated[ClassificationData | CausalLMData | InstructionData | NoData, Field(discriminator="kind")]
LABELLED = frozenset(kind for kind, settings in by_kind(Data).items() if settings.has_labels)
"""Every ``data.kind`` whose rows bring labels."""


# --- [codec], [strategy], … ----------------------------------------------------------


class DenseCodec(CodecTraits):
    """Every value as fp32 or bf16."""

    error_feedback: ClassVar[bool] = False
    kind: Literal["dense"] = "dense"
    dtype: Literal["fp32", "bf16"] = "fp32"


class CompeftCodec(CodecTraits):
    """ComPEFT (arXiv 2311.13171): sparse ternary values with one scale per tensor, entropy-coded."""

    lossy: ClassVar[bool] = True
    kind: Literal["compeft"]
    density: float = Field(default=0.05, gt=0, le=1, description="fraction of values kept per tensor")
    alpha: float | None = Field(
        default=None, gt=0, description="scale = alpha·std as in the paper; the kept mean if absent"
    )
    error_feedback: bool = True

    def may_lengthen(self) -> bool:
        """With ``alpha``, which need not be what the kept values were."""
        return bool(self.alpha)


Codec = Annotated[DenseCodec | CompeftCodec, Field(discriminator="kind")]


class CodecSettings(Settings):
    """``[codec]``: how states travel down (server to client) and updates travel up."""

    up: Codec = CompeftCodec(kind="compeft")
    down: DenseCodec = DenseCodec(kind="dense")


class BaseStrategy(StrategyTraits):
    """What every strategy has."""

    space: Literal["factors", "ffa"]
    weighting: Literal["examples", "equal"] = "examples"
    server_learning_rate: float = Field(default=1.0, gt=0)
    server_momentum: float = Field(default=0.0, ge=0, lt=1)
    value_bound: float = Field(default=16.0, gt=0, le=2**16, description="an update beyond it is refused")


class MeanStrategy(BaseStrategy):
    """Weighted mean of the deltas (FedAvg, arXiv 1602.05629)."""

    linear: ClassVar[bool] = True
    kind: Literal["mean"]
    space: Literal["factors", "ffa"] = "factors"
    noise: Literal["weigh", "ignore"] = Field(
        default="weigh",
        description="in a mixed round, what updates weigh depends on their method: on how far it gets, how "
        "noisy it is and how far clients differ (generalised least squares); with one method, and with "
        "backprop alone, nothing changes",
    )

    def weighs_methods(self) -> bool:  # noqa: D102 - inherited
        return self.noise == "weigh"


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


Strategy = Annotated[MeanStrategy | TiesStrategy | FisherStrategy, Field(discriminator="kind")]


class CohortSettings(Settings):
    """``[cohort]``: who takes part in a round, and when a round ends."""

    clients_per_round: int | None = Field(default=None, ge=1, description="all if absent")
    target_clients: int | None = Field(
        default=None,
        ge=1,
        description="a round closes as soon as so many updates are in: over-selection, with more "
        "`clients_per_round`",
    )
    min_clients: int = Field(default=1, ge=1, description="fewer accepted updates end the run")
    deadline_s: float | None = Field(default=None, gt=0)
    retry_s: float = Field(
        default=60.0,
        gt=0,
        description="on a server: how long after a failure a client is asked again while the round waits; "
        "doubled each time, up to 16-fold",
    )


class SynchronousSchedule(Settings):
    """Rounds: all start from the same version, and the next begins when this one has closed."""

    has_rounds: ClassVar[bool] = True
    buffer: ClassVar[int | None] = None
    kind: Literal["synchronous"] = "synchronous"


class BufferedSchedule(Settings):
    """FedBuff (arXiv 2106.06639): whoever is free works; so many updates make a new version."""

    has_rounds: ClassVar[bool] = False
    kind: Literal["buffered"]
    buffer: int = Field(ge=1, description="updates that make a new version")
    staleness_exponent: float = Field(
        default=0.5,
        ge=0,
        le=8,
        description="a in an update's weight · (1+s)⁻ᵃ, where s new versions were made since it started",
    )
    max_staleness: int = Field(default=20, ge=0, description="older updates are dropped")


Schedule = Annotated[SynchronousSchedule | BufferedSchedule, Field(discriminator="kind")]


class PrivacySettings(Settings):
    """``[privacy]``: bounds on what an update may hold."""

    clip_l2: float | None = Field(default=None, gt=0, description="L2 bound of a whole update")


EVALUATION_S = 3600.0
"""How long a server waits for evaluations where the file names no deadline."""


class EvaluationSettings(Settings):
    """``[evaluation]``: what is measured, where, and what it decides."""

    deadline_s: float | None = Field(
        default=None,
        gt=0,
        description=f"cohort.deadline_s if absent; if that is absent too, {EVALUATION_S:g} on a server",
    )
    every: int = Field(default=1, ge=0, description="rounds between evaluations; 0 = never")
    clients: bool = Field(default=True, description="evaluate on the clients' validation splits too")
    metric: Literal["accuracy", "macro_f1", "loss", "perplexity"] | None = None
    patience: int | None = Field(default=None, ge=1, description="evaluations without a better one")
    min_client_examples: int = Field(default=10, ge=1, description="below it a client's own number is hidden")
    batch_size: int = Field(default=64, ge=1, le=2**20)
    trunk_cache_mb: int = Field(
        default=0,
        ge=0,
        le=2**20,
        description="as `training.trunk_cache_mb`, of what is evaluated again and again",
    )


class BaselineSettings(Settings):
    """``[baselines]``: what the summary compares the federation with."""

    majority: bool = False
    probe: bool = Field(default=False, description="logistic regression on frozen features")
    alone: bool = Field(default=False, description="each client without the others, equal passes")
    centralised: bool = Field(default=False, description="all data in one place, equal passes")


class Federation(Settings):
    """The whole federation file."""

    federation: FederationSettings
    model: Model
    adapter: Adapter | None = None
    data: Data
    training: Training
    methods: dict[str, Method] = Field(default={})
    assignment: Assignment | None = None
    codec: CodecSettings = CodecSettings()
    strategy: Strategy = MeanStrategy(kind="mean")
    cohort: CohortSettings = CohortSettings()
    schedule: Schedule = SynchronousSchedule()
    privacy: PrivacySettings = PrivacySettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    baselines: BaselineSettings = BaselineSettings()

    @model_validator(mode="after")
    def _fits_together(self) -> Federation:
        require_consistent(self)
        return self

    @property
    def trainings(self) -> dict[str, Training]:
        """The methods that clients may be told to use, by name."""
        return {DEFAULT: self.training} | {name: m.training for name, m in self.methods.items()}
