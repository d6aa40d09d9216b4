"""The same clients in Flower's simulation and in pfl: rounds of 100, three of them. For ``cohorts.py``."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cohort_rounds import CLIENTS, COHORT, MINILM, ROUNDS, federation, ran

PLAIN = Path(__file__).parent / "cohort_plain.py"


def peer(python: str, kind: str) -> dict[str, Any]:
    """A peer's run in a fresh process: seconds of its rounds, and of the process."""
    began = time.perf_counter()
    command = [python, str(PLAIN), kind, str(MINILM), str(CLIENTS), str(ROUNDS)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
    seconds = json.loads(done.stdout.strip().splitlines()[-1])["rounds_s"]
    return {"rounds_s": [round(s, 3) for s in seconds], "process_s": round(time.perf_counter() - began, 2)}


def flower() -> dict[str, Any]:
    """Flower on both cores beside Headwater on both."""
    theirs = peer(sys.executable, "flower")
    with federation(CLIENTS) as file:
        ours = ran(file, cohort=COHORT, workers=2)
    own = statistics.median(ours["rounds_s"])
    return {
        "flower": theirs,
        "headwater": ours,
        "against_the_median_round": round(statistics.median(theirs["rounds_s"]) / own, 2),
        "against_the_best_round": round(min(theirs["rounds_s"]) / own, 2),
        "against_the_process": round(theirs["process_s"] / ours["process_s"], 2),
    }


def pfl(python: str) -> dict[str, Any]:
    """pfl on one thread beside Headwater on one thread and on two."""
    theirs = peer(python, "pfl")
    with federation(CLIENTS) as file:
        runs = {f"{workers}": ran(file, cohort=COHORT, workers=workers) for workers in (1, 2)}
    median = statistics.median(theirs["rounds_s"])
    return {
        "pfl": theirs,
        "headwater": runs,
        "against_pfl": {
            workers: round(median / statistics.median(run["rounds_s"]), 2) for workers, run in runs.items()
        },
    }
