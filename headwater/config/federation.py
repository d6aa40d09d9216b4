"""The federation file as frozen, typed settings. :class:`Federation` is the whole file.

One table of the TOML file is one class here; tables with a ``kind`` are unions. Unknown keys and
wrong types are errors. Units stand in the names. Nothing here imports torch.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from headwater.config.assignment import DEFAULT, Assignment, Method
from headwater.config.settings import Settings
from headwater.config.training import SCALAR_KINDS, Training


class FederationSettings(Settings):
    """``[federation]``: what the whole run has in common."""

    name: str = Field(min_length=1, max_length=80)
    seed: int = Field(default=0, ge=0, lt=2**63)
    rounds: int = Field(ge=1, le=100_000)
    threads: int = Field(default=1, ge=1, le=256, description="CPU threads of one training")


# --- [model] -----------------------------------------------------------------------------------


class BaseModelSettings(Settings):
    """What every pretrained base model has."""

    path: str = Field(min_length=1, description="a folder (relative to the file) or a hub name")
    revision: str | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    quantization: Literal["none", "8bit", "4bit"] = "none"
    layers: int | None = Field(default=None, ge=1, description="keep only the first N layers")


class EncoderModel(BaseModelSettings):
    """An encoder (``AutoModel``) with a mean-pooled linear head."""

    kind: Literal["encoder"]


class SequenceClassificationModel(BaseModelSettings):
    """Any ``AutoModelForSequenceClassification`` with its own head."""

    kind: Literal["sequence-classification"]


class CausalLMModel(BaseModelSettings):
    """Any ``AutoModelForCausalLM``."""

    kind: Literal["causal-lm"]


class VectorModel(Settings):
    """No base model: a bare vector of values, for transport and load experiments."""

    kind: Literal["vector"]
    size: int = Field(ge=1, le=2**31)


Model = Annotated[
    EncoderModel | SequenceClassificationModel | CausalLMModel | VectorModel, Field(discriminator="kind")
]


# --- [adapter] ---------------------------------------------------------------------------------


class BaseAdapter(Settings):
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

    kind: Literal["prompt"]
    tokens: int = Field(default=16, ge=1, le=4096)


class PrefixAdapter(BaseAdapter):
    """Prefix tuning (arXiv 2101.00190): trained keys and values in every layer."""

    kind: Literal["prefix"]
    tokens: int = Field(default=16, ge=1, le=4096)


class Ia3Adapter(BaseAdapter):
    """IA3 (arXiv 2205.05638): trained rescaling of activations."""

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


class BaseData(Settings):
    """What every kind of data has."""

    path: str = Field(description="JSONL, CSV or Parquet file, a folder of them, or a `datasets` folder")
    test: str | None = Field(default=None, description="the server's held-out file")
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

    kind: Literal["classification"]
    text: str = "text"
    label: str = "label"
    labels: tuple[str, ...] = Field(min_length=2)


class CausalLMData(BaseData):
    """Running text per row; loss on every token; long texts are cut into windows."""

    kind: Literal["causal-lm"]
    text: str = "text"


class InstructionData(BaseData):
    """Prompt and answer per row (or a ``messages`` column) with the model's chat template.

    The loss is on the answer only.
    """

    kind: Literal["instruction"]
    prompt: str = "prompt"
    answer: str = "answer"
    messages: str | None = None
    system: str | None = None


class NoData(Settings):
    """No data: names ``clients`` clients of ``examples`` examples, for the ``noop`` training."""

    kind: Literal["none"]
    clients: int = Field(ge=1, le=1_000_000)
    examples: int = Field(default=1, ge=1)


Data = Annotated[ClassificationData | CausalLMData | InstructionData | NoData, Field(discriminator="kind")]


# --- [codec], [strategy], … ----------------------------------------------------------


class DenseCodec(Settings):
    """Every value as fp32 or bf16."""

    kind: Literal["dense"] = "dense"
    dtype: Literal["fp32", "bf16"] = "fp32"


class CompeftCodec(Settings):
    """ComPEFT (arXiv 2311.13171): sparse ternary values with one scale per tensor, entropy-coded."""

    kind: Literal["compeft"]
    density: float = Field(default=0.05, gt=0, le=1, description="fraction of values kept per tensor")
    alpha: float | None = Field(
        default=None, gt=0, description="scale = alpha·std as in the paper; the kept mean if absent"
    )
    error_feedback: bool = True


Codec = Annotated[DenseCodec | CompeftCodec, Field(discriminator="kind")]


class CodecSettings(Settings):
    """``[codec]``: how states travel down (server to client) and updates travel up."""

    up: Codec = CompeftCodec(kind="compeft")
    down: DenseCodec = DenseCodec(kind="dense")


class BaseStrategy(Settings):
    """What every strategy has."""

    space: Literal["factors", "ffa"]
    weighting: Literal["examples", "equal"] = "examples"
    server_learning_rate: float = Field(default=1.0, gt=0)
    server_momentum: float = Field(default=0.0, ge=0, lt=1)
    value_bound: float = Field(default=16.0, gt=0, le=2**16, description="an update beyond it is refused")


class MeanStrategy(BaseStrategy):
    """Weighted mean of the deltas (FedAvg, arXiv 1602.05629)."""

    kind: Literal["mean"]
    space: Literal["factors", "ffa"] = "factors"
    noise: Literal["weigh", "ignore"] = Field(
        default="weigh",
        description="an update made along random directions weighs less, by how noisy it is against how "
        "far clients differ (random-effects weights); without such updates nothing changes",
    )


class TiesStrategy(BaseStrategy):
    """TIES (arXiv 2306.01708): trim, elect signs, mean of those that agree."""

    kind: Literal["ties"]
    space: Literal["factors", "ffa"] = "ffa"
    allow_factors: bool = False
    density: float = Field(default=0.2, gt=0, le=1)


class FisherStrategy(BaseStrategy):
    """Fisher merging (arXiv 2111.09832) with diagonal Fishers from the clients."""

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

    kind: Literal["synchronous"] = "synchronous"


class BufferedSchedule(Settings):
    """FedBuff (arXiv 2106.06639): whoever is free works; so many updates make a new version."""

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
    batch_size: int = Field(default=64, ge=1)


class BaselineSettings(Settings):
    """``[baselines]``: what the summary compares the federation with."""

    majority: bool = False
    probe: bool = Field(default=False, description="logistic regression on frozen features")
    alone: bool = Field(default=False, description="each client without the others, equal passes")
    centralised: bool = Field(default=False, description="all data in one place, equal passes")


MAX_METHODS, MAX_METHOD_NAME = 64, 64


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
        vector = self.model.kind == "vector"
        bare = self.training.kind == "noop" and self.data.kind == "none" and self.adapter is None
        if vector and not bare:
            raise ValueError(
                "model.kind 'vector' needs data.kind 'none', training.kind 'noop' and no [adapter]"
            )
        if not vector and self.adapter is None:
            raise ValueError('[adapter] is missing: add one, for example kind = "lora"')
        if not vector and self.data.kind == "none":
            raise ValueError("data.kind 'none' goes with model.kind 'vector' only")
        if not vector and (self.model.kind == "causal-lm") != (
            self.data.kind in ("causal-lm", "instruction")
        ):
            raise ValueError(
                f"model.kind '{self.model.kind}' does not fit data.kind '{self.data.kind}': classification "
                "goes with 'encoder' or 'sequence-classification', text and instructions with 'causal-lm'"
            )
        self._check_measurable()
        self._check_cohort()
        self._check_methods()
        if self.privacy.clip_l2 is not None and self.codec.up.kind == "compeft" and self.codec.up.alpha:
            raise ValueError("codec.up.alpha may lift an update above privacy.clip_l2: leave one of them out")
        strategy = self.strategy
        if strategy.kind != "mean" and strategy.space == "factors" and not strategy.allow_factors:
            raise ValueError(
                f"strategy '{strategy.kind}' in space 'factors' merges A and B coordinate by coordinate, "
                'which is noise of the basis: use space = "ffa", or set allow_factors = true if you mean it'
            )
        if (
            strategy.space == "ffa"
            and self.adapter is not None
            and self.adapter.kind != "lora"
            and (strategy.kind == "mean")
        ):
            raise ValueError(f"space 'ffa' freezes LoRA's A; adapter.kind is '{self.adapter.kind}'")
        return self

    @property
    def trainings(self) -> dict[str, Training]:
        """The methods that clients may be told to use, by name."""
        return {DEFAULT: self.training} | {name: m.training for name, m in self.methods.items()}

    def _check_methods(self) -> None:
        """Every method can be used, and be merged with the others."""
        if bad := [name for name in self.methods if name == DEFAULT or not name.isidentifier()]:
            raise ValueError(f"methods.{bad[0]}: a name of letters, digits and _ other than '{DEFAULT}'")
        if len(self.methods) >= MAX_METHODS or any(len(name) > MAX_METHOD_NAME for name in self.methods):
            raise ValueError(
                f"[methods]: fewer than {MAX_METHODS}, with names of at most {MAX_METHOD_NAME} characters"
            )
        named = set[str]()
        if self.assignment is not None:
            match self.assignment.kind:
                case "shares":
                    named = set(self.assignment.shares)
                case "clients":
                    named = set(self.assignment.clients.values())
                case "planner":
                    named = set(self.assignment.prefer)
        if unknown := sorted(named - self.trainings.keys()):
            raise ValueError(
                f"assignment: there is no method '{unknown[0]}'; there are {', '.join(self.trainings)}"
            )
        if self.methods and self.assignment is None:
            raise ValueError("[methods] without [assignment]: nobody would use them")
        mean, buffered = self.strategy.kind == "mean", self.schedule.kind == "buffered"
        scalar = [t for t in self.trainings.values() if t.kind in SCALAR_KINDS]
        partial = any(m.rank or m.last_layers for m in self.methods.values())
        for training in self.trainings.values():
            kind = training.kind
            if kind == "noop" and self.methods:
                raise ValueError("training kind 'noop' goes with no other method")
            if not mean and (kind in SCALAR_KINDS or kind == "spry" or partial):
                raise ValueError(
                    f"method '{kind}' and methods with rank or last_layers need strategy 'mean', "
                    f"not '{self.strategy.kind}'"
                )
            if self.strategy.kind == "fisher" and self.adapter is not None and self.adapter.head_bits:
                raise ValueError("adapter.head_bits is for methods without gradients, not strategy 'fisher'")
            if self.strategy.kind == "fisher" and kind not in ("backprop", "noop"):
                raise ValueError(f"strategy 'fisher' needs gradients, which '{kind}' does not have")
            if buffered and kind in ("spry", "decomfl"):
                raise ValueError(f"method '{kind}' needs rounds: a buffered version has updates of several")
            if kind == "blackbox" and (self.adapter is None or self.adapter.kind != "prompt"):
                raise ValueError("method 'blackbox' searches a soft prompt: use [adapter] kind = \"prompt\"")
            if kind == "spry" and not self._layered:
                raise ValueError('method \'spry\' splits layers: use [adapter] kind = "lora" or "ia3"')
            if not 2.0**-40 <= _largest_step(training) <= 2.0**14:
                raise ValueError(
                    f"method '{kind}': learning_rate times gradient_bound (scale times 8 of blackbox) is the "
                    "largest step along a seed, and must be between 2^-40 and 2^14, not "
                    f"{_largest_step(training):g}"
                )
        if scalar and self.privacy.clip_l2 is not None:
            raise ValueError("privacy.clip_l2 goes with deltas; bound scalars by gradient_bound instead")
        for name, method in self.methods.items():
            if method.training.kind in SCALAR_KINDS and (method.rank or method.last_layers):
                raise ValueError(f"methods.{name}: seeds move the whole adapter: no rank, no last_layers")
            if method.last_layers and not self._layered:
                raise ValueError(f'methods.{name}.last_layers needs [adapter] kind = "lora" or "ia3"')
            whole = self.adapter.rank if self.adapter is not None and self.adapter.kind == "lora" else 0
            if method.rank and method.rank > whole:
                raise ValueError(f"methods.{name}.rank {method.rank} needs LoRA of at least that rank")
        if len({_span(t) for t in scalar}) > 1:
            raise ValueError(
                "methods that send scalars must share kind, seeds, distribution, learning_rate and "
                "gradient_bound: one set of seeds serves a round"
            )

    @property
    def _layered(self) -> bool:
        """Whether the adapter has tensors of single layers."""
        return self.adapter is not None and self.adapter.kind in ("lora", "ia3")

    def _check_cohort(self) -> None:
        """A round, or a version, can end as the file asks."""
        cohort, schedule = self.cohort, self.schedule
        per_round, target, least = cohort.clients_per_round, cohort.target_clients, cohort.min_clients
        if target is not None and schedule.kind == "buffered":
            raise ValueError("cohort.target_clients goes with rounds: set schedule.buffer instead")
        if schedule.kind == "buffered":
            if least > schedule.buffer:
                raise ValueError(
                    f"cohort.min_clients {least} is above schedule.buffer {schedule.buffer}, "
                    "with which a version closes"
                )
            return  # clients_per_round is how many work at once, and may be fewer than either
        if per_round is not None and per_round < least:
            raise ValueError(f"cohort.clients_per_round {per_round} is below cohort.min_clients {least}")
        if target is not None and target < least:
            raise ValueError(f"cohort.target_clients {target} is below cohort.min_clients {least}")
        if target is not None and per_round is not None and target > per_round:
            raise ValueError(f"cohort.target_clients {target} is above cohort.clients_per_round {per_round}")

    def _check_measurable(self) -> None:
        """What is to be measured can be: found out here, not after the last round."""
        data, wanted, metric = self.data, self.baselines, self.evaluation.metric
        tokens = self.model.kind in ("causal-lm", "vector")
        if metric in ("accuracy", "macro_f1") and tokens:
            raise ValueError(f"evaluation.metric '{metric}' needs classification: use 'loss' or 'perplexity'")
        if metric == "perplexity" and self.model.kind != "causal-lm":
            raise ValueError("evaluation.metric 'perplexity' needs a causal model")
        if (wanted.majority or wanted.probe) and (tokens or metric not in (None, "accuracy")):
            raise ValueError("baselines.majority and probe need classification judged by accuracy")
        held_out = data.kind != "none" and (data.test is not None or data.validation_fraction > 0)
        if any(value for _, value in wanted) and not held_out:
            raise ValueError("[baselines] need data.test, or data.validation_fraction above 0")
        measured = held_out and self.evaluation.every > 0
        by_clients = data.kind != "none" and data.validation_fraction > 0 and self.evaluation.clients
        if self.evaluation.patience is not None and not (
            measured and (by_clients or (data.kind != "none" and data.test is not None))
        ):
            raise ValueError("evaluation.patience needs evaluations: data.test, or clients that evaluate")


def _largest_step(training: Training) -> float:
    """How far a client that sends scalars can go along a seed at once; 1 for other methods."""
    if training.kind == "blackbox":
        return 8 * training.scale
    if training.kind == "kseed" or training.kind == "decomfl":
        return training.learning_rate * training.gradient_bound
    return 1.0


def _span(training: Training) -> tuple[object, ...]:
    """What makes two methods' scalars mean the same."""
    names = ["kind", "seeds", "dimensions", "directions", "max_steps", "distribution"]
    names += ["learning_rate", "gradient_bound", "scale", "sigma"]
    kseed = training.kind == "kseed"
    return tuple(getattr(training, name, None) for name in names if not (kseed and name == "max_steps"))
