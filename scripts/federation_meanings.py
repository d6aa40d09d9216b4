"""What each key of a federation file means, where its class does not say: :data:`MEANINGS`.

A key without a meaning is an error of ``federation_reference.py``, so a new setting cannot stay undescribed.
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
from headwater.config.adapter_base import LayerAdapter
from headwater.config.codec import DenseCodec
from headwater.config.data import (
    BaseData,
    CausalLMData,
    ClassificationData,
    ExtractiveQAData,
    InstructionData,
    Labelled,
    MaskedLMData,
    MultiLabelData,
    NoData,
    RegressionData,
    Seq2SeqData,
    TextData,
)
from headwater.config.devices import (
    Choice,
    Constant,
    DailyWindow,
    DeviceSettings,
    IntervalTrace,
    Lognormal,
    Uniform,
)
from headwater.config.evaluation import BaselineSettings, EvaluationSettings
from headwater.config.layer_adapters import (
    AdaptionPromptAdapter,
    C3aAdapter,
    DeloraAdapter,
    FourierFtAdapter,
    GloraAdapter,
    GraloraAdapter,
    HiraAdapter,
    HraAdapter,
    LnTuningAdapter,
    LohaAdapter,
    LokrAdapter,
    MissAdapter,
    OftAdapter,
    PeanutAdapter,
    PrincipalAdapter,
    RandLoraAdapter,
    RoadAdapter,
    ShiraAdapter,
    UniLoraAdapter,
    VbloraAdapter,
    WaveFtAdapter,
)
from headwater.config.model import (
    BaseModelSettings,
    SequenceClassificationModel,
    VectorModel,
)
from headwater.config.partitions import ColumnPartition, DirichletPartition, IidPartition, QuantityPartition
from headwater.config.privacy import PrivacySettings
from headwater.config.schedule import BufferedSchedule, CohortSettings
from headwater.config.script import ScriptTraining
from headwater.config.strategy import (
    BaseStrategy,
    DistanceStrategy,
    FisherStrategy,
    KeptStrategy,
    MeanStrategy,
    MedianStrategy,
    TiesStrategy,
)
from headwater.config.tables import FederationSettings, SimulationSettings

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
        "memory_mb": "MiB that a training may use; a task predicted to need more fails; absent: no end",
        "start_rows": "training rows at the start; absent: all",
        "rows_per_hour": "that come from then on, in their order",
        "joules_per_byte": "sent or received, on top",
        "idle_watts": "of who was asked and is idle",
        "server_s": "to close a round",
    },
    SimulationSettings: {
        "cohort": 'most clients that are trained as one batch, up to 4,096, or `"auto"`, which measures what '
        "pays; above 1 last digits change",
        "devices": "simulated devices, with a clock of their own",
        "attackers": "[clients that lie](#simulation-attackers), in an experiment",
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
    FederationSettings: {
        "name": "of the run",
        "seed": "of everything random; replaced by `--seed N`",
        "rounds": "fewer if `evaluation.patience` ends the run",
    },
    BaseModelSettings: {
        "revision": "of a hub name",
        "sha256": "what the base's files must hash to",
        "dtype": "of the frozen base; what is trained stays float32",
        "quantization": "needs bitsandbytes; on a GPU or, slower, a CPU",
        "accept_warnings": "parts of harmless warnings of transformers or PEFT; any other is an error",
    },
    SequenceClassificationModel: {
        "head": "outputs go to labels of their names; output k is label k; it starts anew",
    },
    BaseAdapter: {
        "head_bits": "a fresh head in units of 2^head_bits, [for methods along random "
        "directions](../guides/low-memory.md#what-makes-it-work) (5 or 6)",
        "head": "`own`: [each client keeps a head of its own](aggregation.md) over a shared adapter",
        "start": "[begin from this adapter](adapters.md#start): a PEFT folder, a run folder, a version's "
        "file, a `.hw` file",
        "start_sha256": "what it must hash to",
        "start_head": "`fresh`: a new head for other labels",
    },
    VectorModel: {"size": "values of the vector"},
    LoraAdapter: {
        "rank": "r",
        "alpha": "s = alpha/r",
        "target_modules": 'the ends of module names, or `["all-linear"]`',
        "rslora": "s = alpha/√r",
        "dora": "train the rows' magnitudes too",
        "target_parameters": "the ends of parameters' names, such as fused experts'",
        "rank_pattern": "the end of a module's name → its rank",
        "alpha_pattern": "the end of a module's name → its alpha",
        "trainable_token_indices": "[rows of the embedding](adapters.md#tokens) to train beside it: their "
        "ids, or the end of a module's name → ids",
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
    LayerAdapter: {"target_modules": 'the ends of module names, or `["all-linear"]`'},
    PrincipalAdapter: {"rank": "r", "alpha": "s = alpha/r", "dropout": "on the input of A while training"},
    LnTuningAdapter: {"target_modules": "the ends of norms' names; those of all numbered layers if empty"},
    LohaAdapter: {"rank": "r", "alpha": "s = alpha/r"},
    LokrAdapter: {"rank": "r", "alpha": "s = alpha/r", "factor": "side of the smaller factor; −1: near √"},
    HiraAdapter: {"rank": "r"},
    GraloraAdapter: {"rank": "r", "alpha": "s = alpha/r", "blocks": "in each direction"},
    GloraAdapter: {"rank": "r of each product"},
    DeloraAdapter: {"rank": "r", "strength": "λ at the start"},
    MissAdapter: {"rank": "r"},
    PeanutAdapter: {"rank": "r"},
    AdaptionPromptAdapter: {"tokens": "virtual tokens", "upper_layers": "how many; all if absent"},
    VbloraAdapter: {
        "rank": "r",
        "vectors": "of the bank",
        "length": "of a vector",
        "chosen": "mixed into one",
    },
    UniLoraAdapter: {"rank": "r", "size": "of the vector", "places_seed": "of the places"},
    RandLoraAdapter: {"rank": "r", "alpha": "s = alpha/r"},
    OftAdapter: {"block": "its side"},
    HraAdapter: {"rank": "r"},
    RoadAdapter: {"group": "outputs among which pairs are made"},
    FourierFtAdapter: {
        "entries": "of each weight",
        "scale": "of the update",
        "places_seed": "of the places",
    },
    WaveFtAdapter: {
        "entries": "of each weight",
        "scale": "of the update",
        "places_seed": "of the places",
    },
    C3aAdapter: {"block": "its side"},
    ShiraAdapter: {"rank": "r·(d_in + d_out) values of a weight"},
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
        "max_test_examples": "at most so many of the test file's (a causal model: windows; whole questions)",
        "fraction": "keep this share of each client's rows, drawn once",
    },
    TextData: {"text": "the column of the text"},
    Labelled: {"labels": "all labels, in the order of the model's outputs; whole numbers and booleans too"},
    ClassificationData: {
        "label": "the column of the label",
    },
    RegressionData: {
        "target": "the column of the number",
        "target_mean": "what is subtracted from it before it is learnt",
        "target_scale": "what it is then divided by",
    },
    MultiLabelData: {
        "label": "the column of the labels: a list, or text with `separator`",
    },
    ExtractiveQAData: {
        "question": "the column of the question",
        "context": "the column in which the answer is",
    },
    CausalLMData: {"text": "the column of the text"},
    MaskedLMData: {"text": "the column of the text"},
    Seq2SeqData: {"text": "the column of the text"},
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
        "lora_b_rate": "LoRA+ (arXiv 2402.12354): B learns so many times as fast as A",
        "weight_decay": "the optimizer's",
        "max_grad_norm": "gradients are scaled down to this L2 norm",
        "gradient_checkpointing": "less memory, more time, the same bits",
    },
    ScriptTraining: {"learning_rate": "instead of the script's own"},
    t.NoopTraining: {"scale": "standard deviation of the random change"},
    DenseCodec: {"dtype": "4 bytes a value, or 2"},
    BaseStrategy: {
        "space": "[of LoRA](aggregation.md#spaces)",
        "weighting": "a client weighs its training examples, their targets (rows, or tokens with a loss), "
        "or 1; at most 2²⁴",
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
    DistanceStrategy: {"allow_factors": "permit space `factors`, which merges noise of the basis"},
    KeptStrategy: {"max_kept_mb": "MiB of updates that a round may keep in memory"},
    MedianStrategy: {"allow_factors": "permit space `factors`, which merges noise of the basis"},
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
    PrivacySettings: {
        "clip_l2": "bound on an update's L2 norm; by itself it adds no noise",
        "padding": "of messages both ways: `padme` adds at most 12 %, `power-of-two` up to 100 %, and either "
        "makes 4,096 bytes of what is shorter. [What stays visible](../explanation/security.md#on-the-link)",
    },
    BaselineSettings: {"majority": "the best constant answer, such as the most frequent training label"},
}
"""Meanings of keys whose settings carry no description, or a longer one than this page needs, by class."""
