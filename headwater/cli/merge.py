"""``headwater merge A B … -o DIR``: several adapters into one; only rules by rows load their base model."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from headwater.cli.interrupts import terminable
from headwater.errors import ConfigError
from headwater.experts.expert_file import opener
from headwater.merging.offline.adapters import Adapters
from headwater.merging.offline.agreement import remarks
from headwater.merging.offline.base_weights import base_weights
from headwater.merging.offline.compare import Comparison, compare
from headwater.merging.offline.decay import DECAYS, decay_weights
from headwater.merging.offline.fit import require_fit
from headwater.merging.offline.folder import MergeReport, merge_folders
from headwater.merging.offline.low_rank import Truncation
from headwater.merging.offline.recipe import Recipe
from headwater.merging.offline.rule import SPACES, DataRule, FactorRule, LinearRule, Rule, ValueRule
from headwater.merging.offline.rules.named import named_rule
from headwater.merging.offline.rules.regmean import blocks_of
from headwater.merging.offline.rules.table import RULES
from headwater.text import json_safe
from headwater.training.merging.call import measure_by


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments; each rule's settings are options of its own."""
    parser.add_argument(
        "adapters",
        nargs="*",
        type=Path,
        metavar="ADAPTER",
        help="folders that PEFT's save_pretrained wrote, or files of headwater compress",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="the folder of the merged adapter")
    parser.add_argument("--rule", default="mean", metavar="RULE", help="how; --rules lists them (mean)")
    parser.add_argument("--rules", action="store_true", help="list the rules, their settings and sources")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--weights", type=_numbers, metavar="W,W,…", help="a number for each adapter (equal)"
    )
    weights.add_argument(
        "--decay",
        choices=list(DECAYS),
        help="weigh versions of one adapter, oldest first, as this fall of the learning rate would",
    )
    parser.add_argument(
        "--rank", type=int, help="the most that a merged LoRA weight has (as many as it needs)"
    )
    parser.add_argument(
        "--energy", type=float, default=1.0, help="of a weight's change that its rank must keep (1: all)"
    )
    parser.add_argument(
        "--space", choices=SPACES, help="of LoRA (product for rules that add, core for the others)"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="multiply the merged change with this (1)")
    parser.add_argument("--seed", type=int, default=0, help="of rules that draw (0)")
    parser.add_argument(
        "--task",
        type=int,
        default=0,
        metavar="N",
        help="rmm, twin: give the N-th adapter back, from the adapters or from the folder of a merge by rmm",
    )
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="rows, for rules that look at them; again for the next adapter's, or for the next objective",
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="DIR",
        help="the base's folder, to merge heads by what changed in them; with --data, where it has moved",
    )
    parser.add_argument(
        "--origin", type=Path, metavar="ADAPTER", help="what .hw files were compressed against, if anything"
    )
    parser.add_argument("--dry-run", action="store_true", help="compare the adapters, write nothing")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder of --output")
    parser.add_argument("--json", action="store_true", help="as one line of JSON")
    for name, (kind, about) in sorted(_options().items()):
        parser.add_argument(f"--{name.replace('_', '-')}", dest=f"rule_{name}", type=kind, help=about)


def run(options: argparse.Namespace) -> int:
    """Merge, or list the rules, or compare."""
    if options.rules:
        print(_listed())
        return 0
    rule = _rule(options)
    truncation = Truncation(options.rank, options.energy)
    recipe = Recipe(rule, options.space, truncation, options.scale, options.seed, options.task)
    weights = options.weights
    if options.decay is not None:
        weights = decay_weights(options.decay, len(options.adapters))
    base = None if options.base is None else base_weights(options.base)
    progress = _progress(options)
    measure = measure_by(recipe, options.data, options.base, progress=progress)
    if options.dry_run:
        adapters = Adapters.open(
            options.adapters,
            weights,
            base=base,
            open_adapter=opener(options.origin),
            progress=progress,
        )
        require_fit(rule, adapters)
        found = compare(adapters)
        progress("")
        notes = [*_cost(recipe, adapters), *remarks(adapters.named)]
        print(_json_of(found, notes) if options.json else _compared(found, recipe, notes))
        return 0
    if options.output is None:
        raise ConfigError("headwater merge", expected="--output DIR, or --dry-run", got="neither")
    with terminable():
        report = merge_folders(
            options.adapters,
            options.output,
            recipe,
            weights=weights,
            base=base,
            open_adapter=opener(options.origin),
            measure=measure,
            overwrite=options.overwrite,
            progress=progress,
        )
    progress("")
    print(json.dumps(asdict(report), default=str) if options.json else _told(report))
    return 0


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between, got {text!r}") from None


def _options() -> dict[str, tuple[Callable[[str], Any], str]]:
    """The settings of all rules: type, and help that names the rules."""
    found: dict[str, tuple[Callable[[str], Any], list[str]]] = {}
    for rule in RULES.values():
        for name, field in rule.model_fields.items():
            kind = int if field.annotation is int else float if field.annotation is float else str
            default = "" if field.default is PydanticUndefined else f" ({field.default})"
            found.setdefault(name, (kind, []))[1].append(f"{rule.name}: {field.description or name}{default}")
    return {name: (kind, "; ".join(about).replace("%", "%%")) for name, (kind, about) in found.items()}


def _rule(options: argparse.Namespace) -> Rule:
    """The rule, with those of its settings that were given."""
    given = {
        key.removeprefix("rule_"): value
        for key, value in vars(options).items()
        if key.startswith("rule_") and value is not None
    }
    return named_rule(options.rule, given)


def _progress(options: argparse.Namespace) -> Callable[[str], None]:
    """One line on a terminal that is written over; nothing elsewhere."""
    if options.json or not sys.stderr.isatty():
        return lambda text: None

    def show(text: str) -> None:
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    return show


def _listed() -> str:
    lines = []
    for rule in RULES.values():
        exact = issubclass(rule, LinearRule) or (issubclass(rule, DataRule) and "product" in rule.spaces)
        family = "any ranks, exact" if exact else "in the coordinates of --space core"
        if issubclass(rule, FactorRule) or (issubclass(rule, ValueRule) and rule.alone):
            family = "its balanced factors"
        lines.append(f"{rule.name}: {rule.line}")
        lines.append(f"    {rule.source}")
        lines.append(f"    reads each adapter {rule.passes}x, keeps {rule.memory}; LoRA: {family}")
        if rule.gives_back:
            lines.append("    --task N: the N-th adapter instead of the merge")
        if issubclass(rule, DataRule):
            rows = (
                "rows with what is to be learnt" if rule.labelled else "rows; a classifier's need no labels"
            )
            lines.append(f"    needs the base model and --data: {rows}, {_FILES[rule.files]}")
        for name, field in rule.model_fields.items():
            about = field.description or name
            lines.append(f"    --{name.replace('_', '-')} {field.default}: {about}")
    return "\n".join(lines)


_FILES = {
    "adapters": "one file, or one for each adapter in their order",
    "heap": "one file or several",
    "objectives": "a file for each objective",
}


def _cost(recipe: Recipe, adapters: Adapters) -> list[str]:
    """What a rule that looks at rows would do, a sentence."""
    rule = recipe.rule
    if not isinstance(rule, DataRule):
        return []
    forward, backward = rule.passes_per_row(len(blocks_of(adapters.modules)))
    ranks = [sum(f.modules[m].rank for f in adapters.folders) for m in adapters.modules]
    columns = [adapters.first.modules[m].columns for m in adapters.modules]
    size = 8 * rule.kept_values(columns, ranks, recipe.chosen)
    gradients = f" and {backward} for gradients" if backward else ""
    return [
        f"{rule.name} loads the base model; a row costs at most {forward} passes forward{gradients}; "
        f"beside the base and the adapters it keeps {size / 1e6:.3g} MB"
    ]


def _told(report: MergeReport) -> str:
    lines = [f"merged {report.adapters} adapters by {report.rule} in space {report.space}: {report.folder}"]
    lines += [f"  {weight:+.4g}  {path}" for path, weight in report.weights.items()]
    if report.ranks:
        low, high = min(report.ranks.values()), max(report.ranks.values())
        lines.append(f"  rank {low}" + (f" to {high}" if high > low else "") + f", {report.norm:.4g} long")
        if report.kept < 1:
            lines.append(f"  {report.kept:.1%} of the squared length of the change is kept")
    lines += [f"note: {note}" for note in report.notes]
    return "\n".join(lines)


def _json_of(found: Comparison, notes: list[str]) -> str:
    return json.dumps(
        {
            "adapters": list(found.names),
            "ranks": list(found.ranks),
            "norms": json_safe(found.norms.tolist()),
            "cosines": json_safe(found.cosines.tolist()),
            "conflicts": json_safe(found.conflicts.tolist()),
            "notes": notes,
        }
    )


def _compared(found: Comparison, recipe: Recipe, notes: list[str]) -> str:
    lines = [f"{len(found.names)} adapters that rule {recipe.rule.name} would merge; nothing is written"]
    for i, name in enumerate(found.names):
        rank = f", rank {found.ranks[i]}" if found.ranks[i] else ""
        lines.append(f"  [{i + 1}] {name}: norm {found.norms[i]:.4g}{rank}")
    for title, table in (("cosine", found.cosines), ("signs that differ", found.conflicts)):
        lines.append(f"{title}:")
        lines.append("      " + " ".join(f"[{j + 1}]".rjust(7) for j in range(len(found.names))))
        for i, row in enumerate(table):
            cells = " ".join("-".rjust(7) if math.isnan(v) else f"{v:7.3f}" for v in row)
            lines.append(f"  {f'[{i + 1}]'.rjust(4)}{cells}")
    lines += [f"note: {note}" for note in notes]
    return "\n".join(lines)
