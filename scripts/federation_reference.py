"""Write docs/reference/federation-file.md from the settings' classes. ``--check`` only compares.

What a class cannot say in its types stands in ``MEANINGS``; a key without a meaning is an error, so a new
setting cannot stay undescribed.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

import annotated_types as at
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from headwater.config import assignment as a
from headwater.config import federation as f
from headwater.config import training as t

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "federation-file.md"

HEAD = """\
# The federation file

<!-- Written by scripts/federation_reference.py from headwater/config/federation.py: change it there. -->

One TOML file says everything about a federation. Relative paths start at the file's folder. An unknown
key, a wrong type or a value out of range is a `ConfigError` (exit code 2) that names file, key, expected
and got.

```console
$ headwater config check federation.toml          # right or wrong, in under a second
$ headwater config show federation.toml           # every key, defaults spelled out
$ headwater config check federation.toml --set training.learning_rate=1e-3
```

`--set table.key=value` works wherever a file is read; the value is TOML, or else a bare string. `--seed N`
of `headwater simulate` replaces `federation.seed`. The *federation hash* is the SHA-256 of the resolved
settings without the seed.

**Tables:** {tables}

In the tables below, a key without a default must be given.
"""

TAIL = """\
## What does not fit together

Refused when the file is read:

- model kind `vector` with anything but data kind `none`, training kind `noop` and no `[adapter]`; another
  model without an `[adapter]`, or with data kind `none`
- classification with a causal model; running text or instructions with another kind
- `ties` or `fisher` in space `factors` without `allow_factors = true`
- `mean` in space `ffa` with an adapter other than LoRA
- `privacy.clip_l2` with `codec.up.alpha`, which may lift an update above the bound
- `cohort.clients_per_round` or `cohort.target_clients` below `cohort.min_clients`;
  `cohort.target_clients` above `cohort.clients_per_round`
- schedule `buffered` with `cohort.target_clients`, or with `cohort.min_clients` above `schedule.buffer`
- `[methods]` without `[assignment]`; an `[assignment]` that names a method that is not there
- methods that send scalars (`kseed`, `decomfl`, `blackbox`), `spry`, and methods with `rank` or
  `last_layers`, with another strategy than `mean`; `fisher` with a method other than `backprop`
- two methods that send scalars of different seeds; scalars with `privacy.clip_l2`, `rank` or `last_layers`
- `spry` or `decomfl` with schedule `buffered`; `blackbox` with an adapter other than `prompt`; `spry` and
  `last_layers` with one other than `lora` and `ia3`; a method's `rank` above the adapter's
- `kseed` and `decomfl` whose largest step, `learning_rate` · `gradient_bound`, is not between 2⁻⁴⁰ and 2¹⁴;
  `adapter.head_bits` with strategy `fisher`
- training kind `noop` with `[methods]`; 64 methods or more, or names that are no identifiers of at most 64
  characters
- a metric that the model does not have; baselines or `evaluation.patience` with nothing to measure them on

Refused when the run begins, once the adapter's tensors are known: a method's `max_bytes_up` below what its
shortest update takes.
"""

TABLES: dict[str, tuple[str, tuple[type[BaseModel], ...]]] = {
    "federation": ("What the whole run has in common.", (f.FederationSettings,)),
    "model": (
        "The frozen base model. Only safetensors are read, and no code from a model repository is run: "
        "[adapters](adapters.md#base-model).",
        (f.EncoderModel, f.SequenceClassificationModel, f.CausalLMModel, f.VectorModel),
    ),
    "adapter": (
        "What is trained and travels. Absent only with model kind `vector`. [More](adapters.md).",
        (f.LoraAdapter, f.PromptAdapter, f.PrefixAdapter, f.Ia3Adapter),
    ),
    "data": (
        "What the clients learn from. [More](data.md).",
        (f.ClassificationData, f.CausalLMData, f.InstructionData, f.NoData),
    ),
    "data.partition": (
        "Who has which rows. [More](data.md#partitions).",
        (f.ColumnPartition, f.FilesPartition, f.IidPartition, f.DirichletPartition, f.QuantityPartition),
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
        "Ways to train beside `[training]`, which is the method `default`: one table `[methods.NAME]` each. "
        "May be left out.",
        (a.Method,),
    ),
    "assignment": (
        "Who uses which method. May be left out: everybody uses `[training]`.",
        (a.AssignedByShare, a.AssignedByClient, a.AssignedByPlanner),
    ),
    "assignment.devices": (
        "One table `[assignment.devices.NAME]` for each kind of device of a simulation, with kind `planner`.",
        (a.Device,),
    ),
    "codec.up": (
        "How updates travel. May be left out: `compeft` with its defaults. "
        "[Which one?](../how-to/choose-a-codec.md)",
        (f.DenseCodec, f.CompeftCodec),
    ),
    "codec.down": ("How the global state travels. May be left out: `dense`, fp32.", (f.DenseCodec,)),
    "strategy": (
        "How updates become the next global adapter. May be left out: `mean`. "
        "A table without `kind` is `mean`. [Which one?](../how-to/choose-a-strategy.md)",
        (f.MeanStrategy, f.TiesStrategy, f.FisherStrategy),
    ),
    "cohort": ("Who takes part in a round, and when it ends. May be left out.", (f.CohortSettings,)),
    "schedule": (
        "Whether clients work in rounds. May be left out: `synchronous`.",
        (f.SynchronousSchedule, f.BufferedSchedule),
    ),
    "privacy": ("Bounds on what an update may hold. May be left out.", (f.PrivacySettings,)),
    "evaluation": (
        "What is measured, where, and what it decides. May be left out.",
        (f.EvaluationSettings,),
    ),
    "baselines": (
        "What the summary compares the federation with, measured once after the last round. May be left out.",
        (f.BaselineSettings,),
    ),
}

MEANINGS: dict[type[BaseModel], dict[str, str]] = {
    f.FederationSettings: {
        "name": "of the run: folder, report, summary",
        "seed": "of everything random; the same file and seed give the same bits",
        "rounds": "how many; fewer if `evaluation.patience` ends the run",
    },
    f.BaseModelSettings: {
        "revision": "of a hub name",
        "sha256": "what the base's files must hash to",
        "quantization": "of the base; needs a CUDA GPU and bitsandbytes",
    },
    f.VectorModel: {"size": "values of the vector"},
    f.LoraAdapter: {
        "rank": "r",
        "alpha": "the change of weight is s·B·A with s = alpha/r",
        "target_modules": 'the ends of module names, or `["all-linear"]`',
        "rslora": "s = alpha/√r (arXiv 2312.03732)",
        "dora": "train the rows' magnitudes too (arXiv 2402.09353)",
        "dropout": "on the input of A while training",
    },
    f.PromptAdapter: {"tokens": "virtual tokens"},
    f.PrefixAdapter: {"tokens": "virtual tokens of every layer"},
    f.Ia3Adapter: {
        "target_modules": "the ends of module names",
        "feedforward_modules": "those of them whose input is rescaled, not the output",
    },
    f.ColumnPartition: {"column": "its value is the client's name"},
    f.IidPartition: {"clients": "how many"},
    f.DirichletPartition: {
        "clients": "how many",
        "alpha": "small: each client has few labels; large: all alike",
        "min_examples": "of every client; the shares are drawn again until they fit",
    },
    f.QuantityPartition: {
        "clients": "how many",
        "alpha": "small: very unequal sizes; large: all alike",
        "min_examples": "of every client; the shares are drawn again until they fit",
    },
    f.BaseData: {
        "partition": "who has which rows, see below",
        "max_tokens": "longer texts are cut; running text is cut into windows",
        "validation_fraction": "of each client's rows, drawn once",
        "max_examples_per_client": "keep so many of a client's rows, drawn once; all if absent",
        "max_test_examples": "keep so many of the test file's examples (of a causal model: windows), "
        "drawn once; all if absent",
        "fraction": "keep this share of each client's rows, drawn once",
    },
    f.ClassificationData: {
        "text": "the column of the text",
        "label": "the column of the label",
        "labels": "all labels, in the order of the model's outputs; whole numbers and booleans stand for "
        "their names",
    },
    f.CausalLMData: {"text": "the column of the text"},
    f.InstructionData: {
        "prompt": "the column of the prompt",
        "answer": "the column of the answer",
        "messages": "a column with lists of `role` and `content`, in place of prompt and answer",
        "system": "a system message before every prompt",
    },
    f.NoData: {"clients": "how many", "examples": "of each"},
    a.Method: {"training": "as `[training]`"},
    t.Passes: {"batch_size": "examples of one step", "learning_rate": "of the adapter"},
    t.Directed: {"distribution": "of the directions"},
    t.ForwardGradientTraining: {
        "max_directions": "of a step, with `variance_target`",
        "optimizer": "what takes the estimate for a gradient",
    },
    t.SpryTraining: {
        "directions": "of a step",
        "optimizer": "what takes the estimate for a gradient",
    },
    t.BlackboxTraining: {
        "population": "points of a generation",
        "batch_size": "examples that judge a generation",
        "distribution": "of the projection",
    },
    t.BackpropTraining: {
        "head_learning_rate": "of the head; `learning_rate` if absent",
        "weight_decay": "AdamW's",
        "max_grad_norm": "gradients are scaled down to this L2 norm; a huge one switches it off",
        "gradient_checkpointing": "less memory, more time, the same bits",
    },
    t.NoopTraining: {"scale": "standard deviation of the random change"},
    f.DenseCodec: {"dtype": "4 or 2 bytes a value"},
    f.CompeftCodec: {
        "error_feedback": "a client adds to its next update what this one dropped",
    },
    f.BaseStrategy: {
        "space": "`factors`: A and B are trained and merged; `ffa`: A is frozen and shared",
        "weighting": "a client weighs as many as its training examples (at most 2²⁴), or 1",
        "server_learning_rate": "η in x ← x + η·m",
        "server_momentum": "β in m ← β·m + Δ",
    },
    f.TiesStrategy: {
        "allow_factors": "permit space `factors`, where it merges noise of the basis",
        "density": "fraction of each delta's values that take part",
    },
    f.FisherStrategy: {"allow_factors": "permit space `factors`, where it merges noise of the basis"},
    f.CohortSettings: {
        "clients_per_round": "how many are asked, drawn anew each round; all if absent. "
        "Schedule `buffered`: at most so many work at once",
        "min_clients": "a round with fewer accepted updates does not close: on a server it waits, "
        "a simulation stops; the state is kept",
        "deadline_s": "seconds after which a round closes with who answered; never if absent",
    },
    f.EvaluationSettings: {
        "every": "rounds between evaluations; 0: never. The last round is always evaluated otherwise",
        "deadline_s": "seconds after which an evaluation ends with who answered; if absent, "
        "`cohort.deadline_s`; if that is absent too, 3600 on a server. A round's adapter does not depend on "
        "who evaluates it; which round is the best, and `patience`, may",
        "patience": "end the run after so many evaluations without a better one",
        "metric": "the one that decides; `perplexity` for a causal model, else `accuracy`",
        "batch_size": "examples at once",
    },
    f.PrivacySettings: {
        "clip_l2": "bound on a whole update's L2 norm; clients keep it, the server checks; no noise is added"
    },
    f.BaselineSettings: {"majority": "always the most frequent training label"},
}
"""Meanings of keys whose settings carry no description, by the class that declares them."""


def page() -> str:
    """The whole page."""
    links = " · ".join(f"[`[{name}]`](#{anchor(name)})" for name in TABLES)
    parts = [HEAD.format(tables=links)]
    for name, (about, classes) in TABLES.items():
        parts.append(f"## `[{name}]` {{ #{anchor(name)} }}\n\n{about}\n")
        parts.extend(table(classes))
    parts.append(TAIL)
    return "\n".join(parts)


def anchor(name: str) -> str:
    """The table's anchor."""
    return name.replace(".", "-")


def table(classes: tuple[type[BaseModel], ...]) -> Iterator[str]:
    """The sections of one TOML table: what all kinds share, then each kind."""
    if len(classes) == 1:
        yield keys(classes[0], set(classes[0].model_fields))
        return
    shared = common(classes)
    if shared is not None:
        of = [c.model_fields["kind"].annotation for c in classes if issubclass(c, shared)]
        kinds = ", ".join(f"`{get_args(k)[0]}`" for k in of)
        every = "every kind" if len(of) == len(classes) else kinds
        kept = {
            k
            for k in shared.model_fields
            if all(declared_in(c, k) is shared for c in classes if k in c.model_fields)
        }
        yield f"Of {every}:\n\n{keys(shared, kept)}"
    for cls in classes:
        kind = get_args(cls.model_fields["kind"].annotation)[0]
        own = set(cls.model_fields) - {"kind"}
        if shared is not None and issubclass(cls, shared):
            own = {k for k in own if declared_in(cls, k) is not shared}
        yield f'### `kind = "{kind}"`\n\n{doc(cls)}\n\n{keys(cls, own)}'.rstrip() + "\n"


def common(classes: tuple[type[BaseModel], ...]) -> type[BaseModel] | None:
    """The settings that several kinds extend, if there are any."""
    for cls in classes:
        for base in cls.__mro__[1:]:
            if base not in (f.Settings, BaseModel, object) and issubclass(base, f.Settings):
                return base
    return None


def doc(cls: type[BaseModel]) -> str:
    """The class's docstring as Markdown on one line."""
    return " ".join((cls.__doc__ or "").replace("``", "`").split())


def declared_in(cls: type[BaseModel], key: str) -> type[BaseModel]:
    """The class of the hierarchy that declares ``key`` first from below."""
    return next(c for c in cls.__mro__ if key in inspect.get_annotations(c))


def keys(cls: type[BaseModel], names: set[str]) -> str:
    """A Markdown table of the settings ``names``."""
    rows = [row(cls, key, info) for key, info in cls.model_fields.items() if key in names]
    if not rows:
        return ""
    return "| key | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"


def row(cls: type[BaseModel], key: str, info: FieldInfo) -> str:
    """One key."""
    found = [MEANINGS.get(c, {}).get(key) for c in cls.__mro__ if issubclass(c, BaseModel)]
    meaning = next((m for m in found if m), info.description)
    if key == "kind":
        meaning = meaning or "which codec"
    if meaning is None:
        raise SystemExit(f"{cls.__name__}.{key} has no meaning: add a description, or a line in MEANINGS")
    if info.is_required():
        default = ""
    elif info.default is None:
        default = "absent"
    else:
        default = f"`{toml(info.default)}`"
    cells = (f"`{key}`", kind_of(info.annotation, info.metadata), default, meaning)
    return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"


def toml(value: object) -> str:
    """A default as it stands in a file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(toml(v) for v in value) + "]"
    return (
        f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
    )


def kind_of(annotation: object, metadata: list[object]) -> str:
    """The type in words, with its bounds."""
    union = get_origin(annotation) in (types.UnionType, typing.Union)
    inner = [a for a in get_args(annotation) if a is not type(None)] if union else [annotation]
    base = inner[0]
    if get_origin(base) is typing.Annotated or len(inner) > 1:
        text = "table"
    elif get_origin(base) is Literal:
        text = " or ".join(f'`"{v}"`' for v in get_args(base))
    elif get_origin(base) is tuple:
        text = {str: "list of strings", int: "list of integers"}[get_args(base)[0]]
    else:
        text = {str: "string", int: "integer", float: "number", bool: "boolean"}.get(base, "table")
    bounds = [b for b in (bound(m) for m in metadata) if b]
    return ", ".join([text, *bounds])


def bound(meta: object) -> str:
    """One constraint in words."""
    if isinstance(meta, at.Ge):
        return f"≥ {exact(meta.ge)}"
    if isinstance(meta, at.Gt):
        return f"> {exact(meta.gt)}"
    if isinstance(meta, at.Le):
        return f"≤ {exact(meta.le)}"
    if isinstance(meta, at.Lt):
        return f"< {exact(meta.lt)}"
    if isinstance(meta, at.MinLen):
        return f"at least {meta.min_length} long" if meta.min_length > 1 else "not empty"
    if isinstance(meta, at.MaxLen):
        return f"at most {meta.max_length} long"
    pattern = getattr(meta, "pattern", None)
    return "64 hex digits" if pattern == "^[0-9a-f]{64}$" else str(pattern or "")


def exact(value: object) -> str:
    """A bound; powers of two as such."""
    if isinstance(value, int) and value > 2**15 and value & (value - 1) == 0:
        return "2" + str(value.bit_length() - 1).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def main() -> int:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if the page is not current")
    text = re.sub(r"\n{3,}", "\n\n", page()).rstrip() + "\n"
    if not parser.parse_args().check:
        PAGE.write_text(text, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE} is not current: run python scripts/federation_reference.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
