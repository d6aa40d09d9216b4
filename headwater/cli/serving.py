"""``headwater check ADAPTER`` and ``headwater export ADAPTER --for RUNTIME``: adapters and servers."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headwater.adapters.serving.against_base import against_base
from headwater.adapters.serving.arrival import Arrival, arrivals, roundings
from headwater.adapters.serving.base_files import BaseFiles
from headwater.adapters.serving.check import Verdict, check
from headwater.adapters.serving.export import export_for
from headwater.adapters.serving.facts import MERGED, RUNTIMES
from headwater.adapters.serving.gguf_merged import TYPES
from headwater.adapters.serving.merged import measured_rows
from headwater.adapters.serving.plain import PlainLora
from headwater.adapters.serving.traits import TRAITS, Subject
from headwater.adapters.serving.wish import Exported, Wish
from headwater.errors import HeadwaterError, ModelError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument(
        "adapter", type=Path, metavar="ADAPTER", help="a run folder, an adapter's folder, or a .hw file"
    )
    parser.add_argument("--base", help="folder or hub name of the base model, if it has moved")
    parser.add_argument(
        "--origin", type=Path, metavar="ADAPTER", help="what a .hw file was compressed against"
    )
    parser.add_argument("--json", action="store_true", help="as one line of JSON")
    if parser.get_default("verb") == "export":
        _configure_export(parser)


def run(options: argparse.Namespace) -> int:
    """Check or export."""
    subject = Subject.open(options.adapter, options.origin)
    return (_export if options.verb == "export" else _check)(options, subject)


def _configure_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--for", dest="runtime", required=True, choices=(*RUNTIMES, MERGED), help="who shall serve it"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--rank", type=int, help="of all weights, by zeros (the next that the runtime has)")
    parser.add_argument("--from", dest="served", default="", metavar="NAME", help="ollama: the base in there")
    parser.add_argument(
        "--dtype", choices=tuple(TYPES), default="keep", help="merged: type of the changed weights (keep)"
    )
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="merged: into this GGUF of the base")
    parser.add_argument(
        "--anyway", action="store_true", help="merged: also where little of the change arrives"
    )
    parser.add_argument(
        "--unchecked", action="store_true", help="merged: do not compare its logits with PEFT's"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the folder of --output")


def _check(options: argparse.Namespace, subject: Subject) -> int:
    base, remarks = _base(options, subject)
    verdicts = check(subject, base)
    found: dict[str, Arrival] = {}
    if options.base is not None:
        found = _arrivals(subject, options.base)
    if options.json:
        measured = {name: {"part": a.part, "error": a.error} for name, a in found.items()}
        content: dict[str, Any] = {
            "adapter": str(subject.path),
            "kind": subject.kind,
            "traits": subject.traits,
            "runtimes": [asdict(verdict) for verdict in verdicts],
        }
        if base is not None:
            content["base"] = {"folder": str(base.folder), "remarks": remarks}
        print(json.dumps(content | ({"merged_into": measured} if found else {})))
        return 0
    print("\n".join(_told(subject, verdicts)))
    if base is not None:
        print(f"  on {base.folder}:" + ("" if remarks else " it fits"))
        print("".join(f"      {text}\n" for text in remarks), end="")
    for name, arrival in found.items():
        warning = "" if arrival.sound else "  not offered"
        print(f"  merged into {name}: {arrival.part:.1%} arrives, error {arrival.error:.0%}{warning}")
    return 0


def _base(options: argparse.Namespace, subject: Subject) -> tuple[BaseFiles | None, list[str]]:
    """The base that is given, or that the adapter names and is here, and what does not go with it."""
    if options.base is not None:
        base = BaseFiles.find(subject, options.base)
        return base, against_base(subject, base)
    try:
        found = BaseFiles.beside(subject)
        return found, [] if found is None else against_base(subject, found)
    except HeadwaterError:  # nobody asked for it
        return None, []


def _arrivals(subject: Subject, base: str) -> dict[str, Arrival]:
    if not subject.lora or subject.adapter is None:
        raise ModelError("--base", expected="a LoRA adapter, whose change can be measured", got=subject.kind)
    rows = measured_rows(PlainLora.of(subject), BaseFiles.find(subject, base))
    return arrivals(rows, roundings())


def _told(subject: Subject, verdicts: list[Verdict]) -> list[str]:
    lines = [f"{subject.path}: {subject.kind}"]
    lines += [f"  {TRAITS[trait]}" + (f": {text}" if text else "") for trait, text in subject.traits.items()]
    lines += ["", f"  {'runtime':<10} {'this folder':<20} export"]
    for verdict in verdicts:
        lines.append(f"  {verdict.runtime:<10} {verdict.untouched:<20} {verdict.remedy}")
        lines += [f"      {text}" for text in (*verdict.reasons, *verdict.remarks)]
    return lines


def _export(options: argparse.Namespace, subject: Subject) -> int:
    wish = Wish(
        options.runtime,
        options.base,
        options.rank,
        options.dtype,
        options.gguf,
        options.served,
        options.anyway,
        not options.unchecked,
    )
    start = time.perf_counter()
    done = export_for(subject, options.output, wish, overwrite=options.overwrite, progress=_progress(options))
    seconds = time.perf_counter() - start
    if options.json:
        print(json.dumps(done.record() | {"seconds": round(seconds, 3)}))
    else:
        print(_written(done, seconds))
    return 0


def _progress(options: argparse.Namespace) -> Callable[[str], None]:
    if options.json or not sys.stderr.isatty():
        return lambda text: None
    return lambda text: print(text, file=sys.stderr, flush=True)


def _written(done: Exported, seconds: float) -> str:
    ranks = f", rank {', '.join(map(str, done.ranks))}" if done.ranks else ""
    lines = [f"exported for {done.runtime} to {done.folder} in {seconds:.1f} s: {done.remedy}{ranks}"]
    if done.arrival is not None:
        lines.append(f"  {done.arrival.part:.1%} of the change arrives, error {done.arrival.error:.1%}")
    if done.logits is not None:
        found = done.logits
        lines.append(
            f"  logits, compared in {done.compared_s:.1f} s: the adapter changes them by {found.effect:.3g} "
            f"(rms), the merged model differs from PEFT by {found.error:.3g}; the same likeliest token at "
            f"{found.top:.1%} of positions"
        )
    lines += [f"  {text}" for text in (*done.reasons, *done.remarks)]
    return "\n".join([*lines, f"  {done.command}"])
