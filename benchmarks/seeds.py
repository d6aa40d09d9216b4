"""What a replay of seeds costs: ``python benchmarks/seeds.py`` writes benchmarks/results/seeds.json.

An adapter of a million values is rebuilt from the coefficients of 4,096 seeds, on one thread:

* ``torch.randn``: the usual loop, a generator for each seed, ``randn`` and an axpy into float32;
* ``rademacher`` and ``gaussian``: :meth:`Directions.combine`, exact integers;
* the same of one round's changes only: 10 clients draw 200 of the 4,096 seeds each.

All in one process, in turns, so that other load on the machine hits them alike; every method is measured
in full, none is scaled up. Seconds of CPU time of the process, and of wall time; ratios are of CPU times.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from picture import bars

from headwater.seeds.directions import Directions, Integers

RESULT = Path(__file__).parent / "results" / "seeds.json"
VALUES, SEEDS, CLIENTS, DRAWS = 1_000_000, 4096, 10, 200


def usual(seeds: Integers, coefficients: Integers) -> torch.Tensor:
    total = torch.zeros(VALUES)
    for seed, coefficient in zip(seeds.tolist(), coefficients.tolist(), strict=True):
        z = torch.randn(VALUES, generator=torch.Generator().manual_seed(seed))
        total.add_(z, alpha=coefficient * 2.0**-20)
    return total


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(repeats: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    seeds = np.arange(SEEDS)
    coefficients = rng.integers(-32767, 32768, SEEDS)
    changes = np.zeros(SEEDS, np.int64)
    for _ in range(CLIENTS):
        np.add.at(changes, rng.integers(0, SEEDS, DRAWS), rng.integers(-32767, 32768, DRAWS))
    touched = np.flatnonzero(changes)
    signs, normals = (Directions(bytes(16), kind, VALUES) for kind in ("rademacher", "gaussian"))
    works = {
        "torch.randn": (SEEDS, lambda: usual(seeds, coefficients)),
        "rademacher": (SEEDS, lambda: signs.combine(seeds, coefficients)),
        "gaussian": (SEEDS, lambda: normals.combine(seeds, coefficients)),
        "rademacher, a round": (len(touched), lambda: signs.combine(touched, changes[touched])),
        "gaussian, a round": (len(touched), lambda: normals.combine(touched, changes[touched])),
    }
    for combine in (signs.combine, normals.combine):  # fresh memory, the table of quantiles
        combine(seeds[:8], coefficients[:8])
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, (_count, work) in works.items():
            times[name].append(timed(work))
    cpu = {name: statistics.median(t[0] for t in pairs) for name, pairs in times.items()}
    return {
        name: {
            "seeds": works[name][0],
            "cpu_s": round(cpu[name], 3),
            "wall_s": round(statistics.median(t[1] for t in pairs), 3),
            "times_faster_than_randn": round(cpu["torch.randn"] / cpu[name], 1),
        }
        for name, pairs in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = {
        "command": "python benchmarks/seeds.py",
        "values": VALUES,
        "threads": 1,
        "machine": {"cpus": os.cpu_count(), "arch": platform.machine(), "python": platform.python_version()},
        "torch": torch.__version__,
        "numpy": np.__version__,
        "repeats": arguments.repeats,
        "replays": measure(arguments.repeats),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    seconds = {name: [row["cpu_s"]] for name, row in report["replays"].items()}
    title = f"replay of {SEEDS:,} seeds on a million values: CPU seconds"
    RESULT.with_suffix(".svg").write_text(bars(title, seconds, " s"), encoding="utf-8")
    print(json.dumps(report["replays"], indent=2))


if __name__ == "__main__":
    main()
