"""The words of docs/reference/federation-file.md that the settings' types cannot say.

What a class cannot say stands in ``MEANINGS``; a key without a meaning is an error of
``federation_reference.py``, so a new setting cannot stay undescribed.
"""

from __future__ import annotations

from pydantic import BaseModel

from headwater.config import assignment as a
from headwater.config import training as t
from headwater.config.adapter import (
    BaseAdapter,
    Ia3Adapter,
    LoraAdapter,
    LoraSbAdapter,
    PrefixAdapter,
    PromptAdapter,
    PTuningAdapter,
    VeraAdapter,
)
from headwater.config.codec import CompeftCodec, DenseCodec
from headwater.config.data import (
    BaseData,
    CausalLMData,
    ClassificationData,
    ColumnPartition,
    DirichletPartition,
    FilesPartition,
    IidPartition,
    InstructionData,
    MultiLabelData,
    NoData,
    QuantityPartition,
    RegressionData,
    TextData,
)
from headwater.config.devices import (
    AlwaysOnline,
    Choice,
    Churn,
    Constant,
    DailyWindow,
    DeviceSettings,
    IntervalTrace,
    Lognormal,
    Uniform,
)
from headwater.config.evaluation import BaselineSettings, EvaluationSettings
from headwater.config.model import (
    BaseModelSettings,
    CausalLMModel,
    EncoderModel,
    SequenceClassificationModel,
    VectorModel,
)
from headwater.config.privacy import PrivacySettings
from headwater.config.schedule import BufferedSchedule, CohortSettings, SynchronousSchedule
from headwater.config.settings import by_kind
from headwater.config.strategy import (
    BaseStrategy,
    FisherStrategy,
    MeanStrategy,
    MedianStrategy,
    RuleStrategy,
    Strategy,
    TiesStrategy,
)
from headwater.config.tables import FederationSettings, SimulationSettings
from headwater.config.trackers import TensorBoardTracker

AVAILABILITIES = (AlwaysOnline, DailyWindow, Churn, IntervalTrace)
DISTRIBUTIONS = (Constant, Uniform, Lognormal, Choice)

HEAD = """\
# The federation file

<!-- Written by scripts/federation_reference.py from headwater/config/federation.py: change it there. -->

One TOML file describes a federation. Relative paths start at its folder. A wrong file is a `ConfigError`
that names file, key, expected and got.

```console
$ headwater config check federation.toml     # right or wrong, in under a second
$ headwater config show federation.toml      # every key, defaults spelled out
```

`--set training.learning_rate=1e-3` works wherever a file is read; the value is TOML, or else a bare string.
The *federation hash* is the SHA-256 of the resolved settings without the seed.

`[strategy]`, `[codec.up]`, `[training]`, `[adapter]` and `[data]` may name a `kind` that an installed package
[brings](../how-to/add-a-rule.md). The resolved file then has `[plugins]`, such as
`"rules:NAME" = "PACKAGE VERSION"`, part of its hash: only those versions take part.

Each key is followed by its default, and in brackets by what else is allowed. A key without either default or
*required*, and from `[methods]` on every table, may be left out. Headings below a table are its kinds:
`kind = "lora"`.
"""

UNFIT: tuple[tuple[str, str], ...] = (
    ("model kind `vector`", "anything but data kind `none`, training kind `noop`, no `[adapter]`"),
    ("classification", "`causal-lm`; running text or instructions with another model"),
    ("a strategy other than `mean`", "space `factors` without `allow_factors = true`"),
    ("strategy `mean`", "a space but `factors` with another adapter than LoRA"),
    ("space `rolora`, `product`, `fair`", "methods that send scalars; schedule `buffered`"),
    (
        "space `fedsa`",
        "the same; `data.test`, `[baselines]`; `rank`, `last_layers`, `spry`; `control_variates`",
    ),
    ("space `product`, `fair`", "`server_momentum`; `server_learning_rate`; `error_feedback`"),
    ("strategy `fisher`", "a method other than `backprop`; `adapter.head_bits`"),
    ("a strategy other than `mean`", "methods that send scalars (`kseed`, `decomfl`, `blackbox`)"),
    ("a strategy other than `mean` and `median`", "`spry`, `rank`, `last_layers`"),
    ("`privacy.clip_l2`", "`codec.up.alpha`; methods that send scalars"),
    ("`strategy.norm_bound`", "methods that send scalars"),
    (
        "`strategy.control_variates`",
        "an optimizer other than `sgd`; `proximal_mu`; `final_learning_rate_fraction = 0`; `[methods]`; "
        "schedule `buffered`; codec `compeft`; spaces but `factors`, `ffa`",
    ),
    (
        "`server_optimizer` `adam`, `yogi`, `adagrad`",
        "`server_momentum`; `server_learning_rate` from 1 on; scalars alone",
    ),
    ("`cohort.min_clients`", "a smaller `clients_per_round`, `target_clients` or `buffer`"),
    ("a strategy that needs several updates", "a smaller `cohort.min_clients`"),
    ("`cohort.target_clients`", "a smaller `clients_per_round`; schedule `buffered`"),
    ("schedule `buffered`", "`spry`, `decomfl`"),
    ("`[methods]`", "no `[assignment]`; kind `noop`; 64 methods or more; names that are no identifiers"),
    (
        "methods that send scalars",
        "others of another kind, seeds, directions, rate or bound; `rank`, `last_layers`",
    ),
    ("`blackbox`", "an adapter other than `prompt`"),
    ("`spry`, `last_layers`", "an adapter other than `lora`, `lora-sb`, `ia3` and `vera`"),
    ("a method's `rank`", "a smaller rank of the adapter"),
    (
        "methods that send scalars",
        "a largest step, `learning_rate` · `gradient_bound` (`blackbox`: 8 · `scale`), outside 2⁻⁴⁰ to 2¹⁴",
    ),
    ("`decomfl`", "`max_steps` · `directions` of 2¹⁷ or more"),
    ("`forward_gradient` with `variance_target`", "`max_directions` below 2 or below `directions`"),
    ("`baselines.majority`", "a causal model; a metric that a constant has not"),
    ("`baselines.probe`", "data other than classification; a metric other than accuracy"),
    ("`[baselines]`, `evaluation.patience`", "nothing to measure them on"),
)
"""Rules between tables (headwater/config/consistency.py): what, and what it is refused with."""

TAIL = """\
## What does not fit together

`headwater config check` refuses, beside what names something that is not there:

{rules}

The run's beginning refuses a method's `max_bytes_up` below its shortest update.
"""

RULES = """\
### Rules of `headwater merge`

`headwater merge --rules` describes them. All take `allow_factors`, those that \
[keep updates](aggregation.md#rules-of-headwater-merge) `max_kept_mb`, and ¹ no `weighting`.

"""
RULE_CLASSES = [cls for cls in dict.fromkeys(by_kind(Strategy).values()) if issubclass(cls, RuleStrategy)]

TABLES: dict[str, tuple[str, tuple[type[BaseModel], ...]]] = {
    "federation": ("What the whole run has in common.", (FederationSettings,)),
    "model": (
        "The frozen base model. [More](adapters.md#base-model).",
        (EncoderModel, SequenceClassificationModel, CausalLMModel, VectorModel),
    ),
    "adapter": (
        "What is trained and travels. Absent only with model kind `vector`. [More](adapters.md).",
        (LoraAdapter, LoraSbAdapter, PromptAdapter, PrefixAdapter, Ia3Adapter, VeraAdapter, PTuningAdapter),
    ),
    "data": (
        "What the clients learn from. [More](data.md).",
        (ClassificationData, RegressionData, MultiLabelData, CausalLMData, InstructionData, NoData),
    ),
    "data.partition": (
        "Who has which rows. [More](data.md#partitions).",
        (ColumnPartition, FilesPartition, IidPartition, DirichletPartition, QuantityPartition),
    ),
    "training": (
        "What a client does in a round. [More](adapters.md#training). "
        "[Which method?](../guides/low-memory.md)",
        (
            t.BackpropTraining,
            t.ForwardGradientTraining,
            t.SpryTraining,
            t.MezoTraining,
            t.KseedTraining,
            t.DecomflTraining,
            t.BlackboxTraining,
            t.NoopTraining,
        ),
    ),
    "methods": (
        "Ways to train beside `[training]`, the method `default`: `[methods.NAME]`.",
        (a.Method,),
    ),
    "assignment": (
        "Who uses which method; by default everybody `default`.",
        (a.AssignedByShare, a.AssignedByClient, a.AssignedByPlanner),
    ),
    "assignment.devices": (
        "Kinds of devices of a simulation: `[assignment.devices.NAME]`, with kind `planner`.",
        (a.Device,),
    ),
    "codec.up": (
        "How updates travel; by default `compeft`. [Which one?](../how-to/choose-a-codec.md)",
        (DenseCodec, CompeftCodec),
    ),
    "codec.down": ("How the global state travels.", (DenseCodec,)),
    "strategy": (
        "How updates become the next global adapter; without `kind`, by the `mean`. "
        "[Which one?](../how-to/choose-a-strategy.md)",
        (MeanStrategy, TiesStrategy, FisherStrategy, MedianStrategy),
    ),
    "cohort": ("Who takes part in a round, and when it ends.", (CohortSettings,)),
    "schedule": (
        "Whether clients work in rounds; by default `synchronous`.",
        (SynchronousSchedule, BufferedSchedule),
    ),
    "privacy": ("Bounds on what an update may hold.", (PrivacySettings,)),
    "evaluation": (
        "What is measured, where, and what it decides.",
        (EvaluationSettings,),
    ),
    "baselines": (
        "Compared with the federation after the last round.",
        (BaselineSettings,),
    ),
    "simulation": ("How `headwater simulate` trains clients of one process.", (SimulationSettings,)),
    "simulation.devices": (
        "[The guide](../how-to/simulate-devices.md). Each number may be a distribution over the clients.",
        (DeviceSettings,),
    ),
    "simulation.devices.availability": ("When a client is online.", AVAILABILITIES),
    "simulation.devices.NUMBER": ("Distributions of a number over the clients.", DISTRIBUTIONS),
    "[trackers]": (
        "Who is told of the rounds, on the server; packages [bring others](../how-to/add-a-tracker.md). "
        "No part of the hash; may change in the run folder before a resume.",
        (TensorBoardTracker,),
    ),
}

MEANINGS: dict[type[BaseModel], dict[str, str]] = {
    DeviceSettings: {
        "availability": "",
        "trace": "CSV file whose columns replace the settings of their names below; rows are of clients in "
        "column `client`, or else dealt",
        "tokens_per_s": "of a forward pass; a backward pass takes as long",
        "flop_per_s": "a token's pass takes 2 for each parameter of the base",
        "latency_s": "of each download and upload",
        "dropout": "probability that a task ends in nothing",
        "interrupted": "a task whose client goes offline fails, or goes on later",
        "joules_per_byte": "sent or received, on top",
        "idle_watts": "of who was asked and is idle",
        "server_s": "to close a round",
    },
    SimulationSettings: {
        "cohort": 'most clients that are trained as one batch, up to 4,096, or `"auto"`, which measures what '
        "pays; above 1 last digits change",
        "devices": "simulated devices, with a clock of their own",
    },
    DailyWindow: {"from_h": "hour of the day at which it comes online", "hours": "24 and more: always"},
    IntervalTrace: {"path": "a client without a row is never online"},
    a.AssignedByPlanner: {
        "round_s": "seconds a client's round may take; steps are cut to fit. Measured times decide, so two "
        "runs of the file may differ",
        "devices": "of a simulation; real devices measure themselves",
    },
    BufferedSchedule: {
        "staleness_exponent": "a in an update's weight · (1+s)⁻ᵃ, s versions after its start",
    },
    Constant: {"value": ""},
    Uniform: {"low": "", "high": ""},
    Lognormal: {"median": "", "sigma": ""},
    Choice: {"values": "", "weights": "all alike if absent"},
    TensorBoardTracker: {
        "kind": "scalars of every round in the run folder's `tensorboard/`; needs `headwater[tensorboard]`",
    },
    FederationSettings: {
        "name": "of the run",
        "seed": "of everything random; replaced by `--seed N`",
        "rounds": "fewer if `evaluation.patience` ends the run",
    },
    BaseModelSettings: {
        "revision": "of a hub name",
        "sha256": "what the base's files must hash to",
        "dtype": "of the frozen base; what is trained stays float32",
        "quantization": "needs a CUDA GPU and bitsandbytes",
        "accept_warnings": "parts of harmless warnings of transformers or PEFT; any other is an error",
    },
    SequenceClassificationModel: {
        "head": "outputs go to labels of their names; output k is label k; it starts anew",
    },
    BaseAdapter: {
        "head_bits": "a fresh head in units of 2^head_bits, [for methods along random "
        "directions](../guides/low-memory.md#what-makes-it-work) (5 or 6)",
    },
    VectorModel: {"size": "values of the vector"},
    LoraAdapter: {
        "rank": "r",
        "alpha": "s = alpha/r in s·B·A",
        "target_modules": 'the ends of module names, or `["all-linear"]`',
        "rslora": "s = alpha/√r",
        "dora": "train the rows' magnitudes too",
        "dropout": "on the input of A while training",
    },
    LoraSbAdapter: {
        "rank": "r: a layer costs r × r values",
        "target_modules": 'the ends of module names, or `["all-linear"]`',
        "dropout": "on the input of A while training",
    },
    PromptAdapter: {"tokens": "virtual tokens"},
    PrefixAdapter: {"tokens": "virtual tokens of every layer"},
    Ia3Adapter: {
        "target_modules": "the ends of module names",
        "feedforward_modules": "those of them whose input is rescaled, not the output",
    },
    VeraAdapter: {
        "rank": "of the shared matrices; a layer costs so many values",
        "target_modules": 'the ends of module names, or `["all-linear"]`',
        "d_initial": "what the vector of length `rank` starts as",
        "dropout": "on the input of A while training",
    },
    PTuningAdapter: {
        "tokens": "virtual tokens",
        "encoder": "the network that computes them",
        "hidden_size": "of the network; an LSTM has it in each direction",
        "lstm_layers": "of an LSTM; an MLP has two hidden layers",
    },
    ColumnPartition: {"column": "its value is the client's name"},
    IidPartition: {"clients": "how many"},
    DirichletPartition: {
        "clients": "how many",
        "alpha": "small: few labels each; large: all alike",
        "min_examples": "of every client",
    },
    QuantityPartition: {
        "clients": "how many",
        "alpha": "small: very unequal sizes; large: all alike",
        "min_examples": "of every client",
    },
    BaseData: {
        "partition": "who has which rows, see below",
        "max_tokens": "longer texts are cut; running text is cut into windows",
        "validation_fraction": "of each client's rows, drawn once",
        "max_examples_per_client": "at most so many, drawn once",
        "max_test_examples": "at most so many of the test file's (of a causal model: windows)",
        "fraction": "keep this share of each client's rows, drawn once",
    },
    TextData: {"text": "the column of the text"},
    ClassificationData: {
        "label": "the column of the label",
        "labels": "all labels, in the order of the model's outputs; whole numbers and booleans too",
    },
    RegressionData: {
        "target": "the column of the number",
        "target_mean": "what is subtracted from it before it is learnt",
        "target_scale": "what it is then divided by",
    },
    MultiLabelData: {
        "label": "the column of the labels: a list, or text with `separator`",
        "labels": "all labels, in the order of the model's outputs; whole numbers and booleans too",
    },
    CausalLMData: {"text": "the column of the text"},
    InstructionData: {
        "prompt": "the column of the prompt",
        "answer": "the column of the answer",
        "messages": "the column of conversations, in place of prompt and answer",
        "system": "a system message before every prompt",
        "date": "what a chat template takes for today",
        "thinking": "the model thinks before it answers; rows bring `reasoning_content`",
        "format": "recognised by the columns if absent",
    },
    NoData: {"clients": "how many", "examples": "of each"},
    a.Method: {"training": "as `[training]`"},
    t.MinibatchTraining: {
        "batch_size": "examples of one step",
        "learning_rate": "of the adapter",
        "trunk_cache_mb": "MiB for [what reaches the first trained layer]"
        "(../guides/low-memory.md#what-makes-it-work)",
    },
    t.KseedTraining: {
        "pro": "FedKSeed-Pro; half a byte down for each seed",
    },
    MeanStrategy: {
        "noise": "[of methods in mixed rounds](../guides/low-memory.md#mixed-rounds)",
        "rank_weights": "whose change a component's mean counts: those who train it, or all",
    },
    t.Directed: {"distribution": "of the directions"},
    t.ForwardGradientTraining: {
        "candidates": "of so many random directions the one most aligned with the estimate so far is taken",
        "variance_target": "draw more directions until the variance of their mean is below this multiple of "
        "its squared norm",
        "max_directions": "of a step, with `variance_target`",
        "optimizer": "takes the estimate for a gradient",
    },
    t.SpryTraining: {
        "directions": "of a step",
        "optimizer": "takes the estimate for a gradient",
    },
    t.BlackboxTraining: {
        "population": "points of a generation",
        "batch_size": "examples that judge a generation",
        "distribution": "of the projection",
    },
    t.BackpropTraining: {
        "head_learning_rate": "of the head; `learning_rate` if absent",
        "weight_decay": "the optimizer's",
        "max_grad_norm": "gradients are scaled down to this L2 norm",
        "gradient_checkpointing": "less memory, more time, the same bits",
    },
    t.NoopTraining: {"scale": "standard deviation of the random change"},
    DenseCodec: {"dtype": "4 or 2 bytes a value"},
    CompeftCodec: {
        "error_feedback": "a client adds to its next update what this one dropped",
    },
    BaseStrategy: {
        "space": "[of LoRA](aggregation.md#spaces)",
        "weighting": "a client weighs its training examples (at most 2²⁴), or 1",
        "server_learning_rate": "η in x ← x + η·m",
        "server_optimizer": "[FedAvgM, FedAdam, FedYogi, FedAdagrad](aggregation.md#the-servers-step)",
        "server_momentum": "β of `momentum`, in m ← β·m + Δ",
        "server_beta1": "β₁ of the others",
        "server_beta2": "β₂ of `adam` and `yogi`",
        "server_tau": "τ of the others",
        "control_variates": '[SCAFFOLD](aggregation.md#control-variates), with `optimizer = "sgd"`',
        "norm_bound": "longer updates are shortened to this L2 norm",
    },
    TiesStrategy: {"allow_factors": "permit space `factors`, which merges noise of the basis"},
    FisherStrategy: {"allow_factors": "permit space `factors`, which merges noise of the basis"},
    MedianStrategy: {
        "allow_factors": "permit space `factors`, which merges noise of the basis",
        "max_kept_mb": "MiB of updates that a round may keep in memory",
    },
    CohortSettings: {
        "clients_per_round": "how many are asked, drawn anew; all if absent. "
        "Schedule `buffered`: how many work at once",
        "min_clients": "with fewer accepted updates a server's round waits; a simulation stops",
        "target_clients": "a round closes with so many updates: over-selection of `clients_per_round`",
        "retry_s": "on a server: when a failed client is asked again in an open round; doubled each time, up "
        "to 16-fold",
        "deadline_s": "after which a round closes with who answered; never if absent",
    },
    EvaluationSettings: {
        "every": "rounds between evaluations, the last round always; 0: never",
        "deadline_s": "of an evaluation; absent: `cohort.deadline_s`, else 3600 on a server. "
        "[What depends on it](../how-to/choose-a-schedule.md)",
        "patience": "end the run after so many evaluations without a better one",
        "metric": "which one decides; absent: [the first of the kind of data](data.md#metrics)",
        "batch_size": "examples at once",
    },
    PrivacySettings: {"clip_l2": "bound on an update's L2 norm; adds no noise"},
    BaselineSettings: {"majority": "the best constant answer, such as the most frequent training label"},
}
"""Meanings of keys whose settings carry no description, or a longer one than this page needs, by class."""
