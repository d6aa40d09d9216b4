"""The page docs/reference/federation-file.md around its keys: head, tables in order, what does not fit, tail.

What a key means stands in ``federation_meanings.py``.
"""

from __future__ import annotations

from pydantic import BaseModel

from headwater.config import assignment as a
from headwater.config import training as t
from headwater.config.adapter import Adapter
from headwater.config.attackers import BackdoorAttacker, ColludeAttacker, FlipAttacker, ScaleAttacker
from headwater.config.codec import (
    BlockCodec,
    ByModuleCodec,
    ChainCodec,
    CompeftCodec,
    DenseCodec,
    LosslessCodec,
    NnadqCodec,
    PowersgdCodec,
    QsgdCodec,
    RandkCodec,
    SignCodec,
    SparseLocoCodec,
    StcCodec,
    TopkCodec,
)
from headwater.config.contribution import ContributionSettings
from headwater.config.data import (
    CausalLMData,
    ClassificationData,
    ExtractiveQAData,
    InstructionData,
    MaskedLMData,
    MultiLabelData,
    NoData,
    RegressionData,
    Seq2SeqData,
    TokenClassificationData,
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
    CausalLMModel,
    EncoderModel,
    MaskedLMModel,
    Seq2SeqModel,
    SequenceClassificationModel,
    VectorModel,
)
from headwater.config.partitions import (
    ColumnPartition,
    DirichletPartition,
    FilesPartition,
    IidPartition,
    QuantityPartition,
)
from headwater.config.privacy import AdaptiveClipping, ExamplePrivacy, PrivacySettings
from headwater.config.schedule import BufferedSchedule, CohortSettings, SynchronousSchedule
from headwater.config.screen import ScreenSettings
from headwater.config.script import ScriptTraining
from headwater.config.settings import by_kind
from headwater.config.strategy import (
    DistanceStrategy,
    FisherStrategy,
    FLTrustStrategy,
    MeanStrategy,
    MedianStrategy,
    RuleStrategy,
    Strategy,
    TiesStrategy,
)
from headwater.config.tables import FederationSettings, SimulationSettings
from headwater.config.trackers import MLflowTracker, TensorBoardTracker, WandBTracker

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
    (
        "data",
        "a model that does not say what it needs: `token-classification` and `extractive-qa` need an "
        "`encoder`, text and instructions a `causal-lm`, one target a row an `encoder` or "
        "`sequence-classification`, `masked-lm` and `seq2seq` models of their names",
    ),
    ("a strategy other than `mean`", "space `factors` without `allow_factors = true`"),
    ("strategy `mean`", "a space but `factors` with another adapter than LoRA"),
    ("space `rolora`, `product`, `fair`", "methods that send scalars; schedule `buffered`"),
    (
        "space `fedsa`",
        "the same; `data.test`, `[baselines]`; `rank`, `last_layers`, `spry`; `control_variates`",
    ),
    (
        '`adapter.head = "own"`',
        "the same; a model without a head; space `product`, `fair`; strategies but `mean` and `median`",
    ),
    ("space `product`, `fair`", "`server_momentum`; `server_learning_rate`; `error_feedback`"),
    ("strategy `fisher`", "a method other than `backprop`; `adapter.head_bits`"),
    ("a strategy other than `mean`", "methods that send scalars (`kseed`, `decomfl`, `blackbox`)"),
    (
        "a strategy other than `mean`, `median`, `trimmed_mean`, and those by distances in space `product`",
        "`spry`, `rank`, `last_layers`",
    ),
    ("strategy `geometric_median` with `passes`", "space `product`; a `smoothing` below 10⁻⁶"),
    (
        "`privacy.masks`",
        "a strategy other than `mean`, `ties` and `fisher`; spaces `product`, `fair`; schedule `buffered`; "
        '`norm_bound`; `control_variates`; `error_feedback = "ef21"`; `[contribution]`; '
        "methods that are weighed, or that send deltas and coefficients; `min_clients` below 3; "
        "edge aggregators",
    ),
    (
        "`privacy.clip_l2`",
        "codecs that may lengthen: `codec.up.alpha`, `fp16`, `int8`, `int4`, `nf4`, `topk` in 8 bits, "
        "`qsgd`, `randk`, `nnadq`; scalars",
    ),
    ("`strategy.norm_bound`, `strategy.screen`", "methods that send scalars"),
    (
        '`strategy.weighting = "targets"`',
        "data kind `none`; training kind `script`; `[training.privacy]`; `control_variates`; "
        "`simulation.devices.start_rows`",
    ),
    ("`strategy.screen.leave_out`, `strategy.screen.shorten`", "`control_variates`; `error_feedback` `ef21`"),
    (
        "noise in `[privacy]`",
        "strategies but `mean`; weights by examples; spaces `product`, `fair`, `fedsa`; `norm_bound`; "
        "`control_variates`; schedule `buffered`; `[methods]`; `spry`; scalars; `ef21`; error feedback over "
        "a cohort of fixed size; `target_clients`; evaluation by clients; baselines `alone`, `centralised`; "
        "edge aggregators; `masks` but for `noise_by`; `screen`; `[contribution]`; own heads",
    ),
    (
        '`privacy.noise_by = "clients"`',
        "no `masks`; no `noise_multiplier`; `clients_per_round`, Poisson cohorts; `mechanism`; "
        "`[privacy.adaptive]`",
    ),
    (
        "`[training.privacy]`",
        "a method without it; strategy `fisher`; evaluation by clients; baselines `alone`, `centralised`; "
        "`data.copies` above 1; `trunk_cache_mb`",
    ),
    ("`privacy.mechanism`", '`cohort.sampling = "poisson"`; `[privacy.adaptive]`'),
    ('`cohort.sampling = "poisson"`', "a file without noise in `[privacy]`"),
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
    (
        "`cohort.upload_s`",
        "neither a server nor `upload_bps` or `trace` of simulated devices; edge aggregators; "
        "a codec but `compeft` in format 2 without `alpha`; "
        "scalars alone; schedule `buffered`; a smaller `deadline_s`",
    ),
    ("`[methods]`", "no `[assignment]`; kind `noop`; 64 methods or more; names that are no identifiers"),
    (
        "methods that send scalars",
        "others of another kind, seeds, directions, rate or bound; `rank`, `last_layers`",
    ),
    ("`blackbox`", "an adapter other than `prompt`"),
    ("`spry`, `last_layers`", "virtual tokens, `vblora` and `uni-lora`: their tensors are no layer's"),
    ("`[[simulation.attackers]]`", "servers and other engines' agents; methods that send scalars; `script`"),
    ("attackers of kind `backdoor`", "`data.kind` but `classification`; a `target` that is no label"),
    ("`simulation.devices.memory_mb`", "`[assignment.devices]`"),
    ("`simulation.devices.start_rows`", "`strategy.control_variates`"),
    ("a method's `rank`", "a smaller rank of the adapter"),
    (
        "methods that send scalars",
        "a largest step, `learning_rate` · `gradient_bound` (`blackbox`: 8 · `scale`), outside 2⁻⁴⁰ to 2¹⁴",
    ),
    ("`decomfl`", "`max_steps` · `directions` of 2¹⁷ or more"),
    ("`forward_gradient` with `variance_target`", "`max_directions` below 2 or below `directions`"),
    ("`baselines.majority`", "a causal model; a metric that a constant has not"),
    ("`baselines.probe`", "data other than classification; a metric other than accuracy"),
    ("`evaluation.by`, `evaluation.answers`", "no `data.test`; the latter but `instruction` and `seq2seq`"),
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
[keep updates](aggregation.md#rules-of-headwater-merge) `max_kept_mb`, ¹ no `weighting`, ² \
also space `product`.

"""
RULE_CLASSES = [
    cls
    for cls in dict.fromkeys(by_kind(Strategy).values())
    if issubclass(cls, RuleStrategy) or (issubclass(cls, DistanceStrategy) and cls.of_offline)
]

TABLES: dict[str, tuple[str, tuple[type[BaseModel], ...]]] = {
    "federation": ("What the whole run has in common.", (FederationSettings,)),
    "model": (
        "The frozen base model. [More](adapters.md#base-model).",
        (
            EncoderModel,
            SequenceClassificationModel,
            CausalLMModel,
            MaskedLMModel,
            Seq2SeqModel,
            VectorModel,
        ),
    ),
    "adapter": (
        "What is trained and travels. Absent only with model kind `vector`. [More](adapters.md).",
        tuple(dict.fromkeys(by_kind(Adapter).values())),
    ),
    "data": (
        "What the clients learn from. [More](data.md).",
        (
            ClassificationData,
            RegressionData,
            MultiLabelData,
            TokenClassificationData,
            ExtractiveQAData,
            CausalLMData,
            InstructionData,
            MaskedLMData,
            Seq2SeqData,
            NoData,
        ),
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
            ScriptTraining,
            t.NoopTraining,
        ),
    ),
    "training.privacy": (
        "DP-SGD at each client: [a budget for each row](../how-to/keep-a-privacy-budget.md#each-row).",
        (ExamplePrivacy,),
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
        (
            DenseCodec,
            LosslessCodec,
            CompeftCodec,
            StcCodec,
            SignCodec,
            BlockCodec,
            TopkCodec,
            SparseLocoCodec,
            QsgdCodec,
            RandkCodec,
            NnadqCodec,
            PowersgdCodec,
            ChainCodec,
            ByModuleCodec,
        ),
    ),
    "codec.down": (
        "How the global adapter travels: any kind of `codec.up`. `dense` and `lossless` send it whole, "
        "others what changed since the version that a client holds; with `error_feedback` the next has "
        "what this one dropped.",
        (DenseCodec,),
    ),
    "strategy": (
        "How updates become the next global adapter; without `kind`, by the `mean`. "
        "[Which one?](../how-to/choose-a-strategy.md)",
        (MeanStrategy, TiesStrategy, FisherStrategy, MedianStrategy, FLTrustStrategy),
    ),
    "strategy.screen": (
        "Which updates stand out, in the round's record, notices and report: of each client `norm`, "
        "`cosine`, `suspect`.",
        (ScreenSettings,),
    ),
    "cohort": ("Who takes part in a round, and when it ends.", (CohortSettings,)),
    "schedule": (
        "Whether clients work in rounds; by default `synchronous`.",
        (SynchronousSchedule, BufferedSchedule),
    ),
    "privacy": (
        "Bounds on what an update may hold, and noise with a budget: "
        "[differential privacy](../how-to/keep-a-privacy-budget.md).",
        (PrivacySettings,),
    ),
    "privacy.adaptive": (
        "The bound follows a quantile of the updates' norms (Andrew et al. 2021, arXiv 1905.03871).",
        (AdaptiveClipping,),
    ),
    "evaluation": (
        "What is measured, where, and what it decides.",
        (EvaluationSettings,),
    ),
    "contribution": (
        "What each owner brings, in rounds.jsonl and the report; absent: nobody is measured. "
        "[How, and what it is no good for](../guides/receipts.md#contribution).",
        (ContributionSettings,),
    ),
    "baselines": (
        "Compared with the federation after the last round.",
        (BaselineSettings,),
    ),
    "simulation": ("How `headwater simulate` trains clients of one process.", (SimulationSettings,)),
    "[simulation.attackers]": (
        "Clients of an experiment that lie: each entry some of them. They clip, encode and send like others; "
        "no server takes such a file.",
        (FlipAttacker, ScaleAttacker, BackdoorAttacker, ColludeAttacker),
    ),
    "simulation.devices": (
        "[The guide](../how-to/simulate-devices.md). Each number may be a distribution over the clients.",
        (DeviceSettings,),
    ),
    "simulation.devices.availability": ("When a client is online.", AVAILABILITIES),
    "simulation.devices.NUMBER": ("Distributions of a number over the clients.", DISTRIBUTIONS),
    "[trackers]": (
        "Who is told of the rounds, on the server; packages [bring others](../how-to/add-a-tracker.md). "
        "No part of the hash; may change in the run folder before a resume.",
        (TensorBoardTracker, MLflowTracker, WandBTracker),
    ),
}
