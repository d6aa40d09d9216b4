"""Clients trained as one batch beside one after the other: ``python benchmarks/cohorts.py``.

LoRA r = 8 on query and value of all layers of MiniLM, with a head; four AdamW steps of each client. A row is
written as soon as it is measured, to ``benchmarks/results/cohorts.json`` and a picture; what is there already
is not measured again, but for ``--fresh``. Contestants of a row take turns, so that other load meets all.

- ``1 x 16`` to ``16 x 128``: milliseconds of a client's step on one thread: a bare loop in PyTorch and PEFT,
  one client after the other; Headwater's trainer of one; and its trainer of cohorts. Beside them the share
  that the cohort's step reaches of the machine's own rate, for matrices of the layers' shapes.
- ``both cores``: whole rounds of 100 clients, of 2 x 16, on two workers, beside the bare loop on one thread.
- ``overhead``: of a round, what is not in a kernel of torch.
- ``memory``: peak resident set of a round of 1,000 clients, of one batch and of 10, each in a fresh process.
- ``flower``: three rounds of the same clients in Flower's simulation, on Ray.
- ``pfl``: the same in pfl 0.6, where ``--pfl PYTHON`` names an interpreter that has it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cohort_peers
import cohort_rounds
import cohort_steps
import torch
from picture import bars

RESULTS = Path(__file__).parent / "results" / "cohorts.json"
Row = Callable[[], dict[str, Any]]


def rows(pfl: str) -> Mapping[str, Row]:
    """By name, in the order in which they are measured."""
    steps: dict[str, Row] = {
        f"{batch} x {tokens}": partial(cohort_steps.measured, batch, tokens)
        for batch, tokens in cohort_steps.SHAPES
    }
    rounds: dict[str, Row] = {
        "both cores": cohort_rounds.both_cores,
        "overhead": cohort_rounds.overhead,
        "memory": cohort_rounds.memory,
        "flower": cohort_peers.flower,
    }
    return steps | rounds | ({"pfl": partial(cohort_peers.pfl, pfl)} if pfl else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pfl", default="", help="a Python that has pfl 0.6")
    parser.add_argument("--only", nargs="*", help="these rows")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--small", action="store_true", help="one row, written nowhere")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.small:
        print(json.dumps(cohort_steps.measured(1, 16, seconds=0.0)))
        return
    found: dict[str, Any] = {"rows": {}}
    if RESULTS.exists() and (options.only or not options.fresh):
        found = json.loads(RESULTS.read_text())
    found["command"] = "make bench-cohorts"
    found["machine"] = {"arch": platform.machine(), "cpus": os.cpu_count(), "torch": torch.__version__}
    for name, measure in rows(options.pfl).items():
        there = name in found["rows"] and not options.fresh
        if there or (options.only and name not in options.only):
            continue
        began = time.perf_counter()
        row = measure()
        row["took_s"] = round(time.perf_counter() - began, 1)
        print(f"{name}: {json.dumps(row)}", flush=True)
        found["rows"][name] = row
        write(found)


def write(found: Mapping[str, Any]) -> None:
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    shown = {
        f"{name}, {who}": [ms]
        for name, row in found["rows"].items()
        for who, ms in row.get("ms", {}).items()
        if name[0].isdigit()
    }
    if shown:
        title = "a client's step: milliseconds, one thread"
        RESULTS.with_suffix(".svg").write_text(bars(title, shown, " ms"))


if __name__ == "__main__":
    main()
