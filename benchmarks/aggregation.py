"""What a merge costs: ``python benchmarks/aggregation.py`` writes benchmarks/results/aggregation.json.

Two questions, one thread each:

* Milliseconds to add one update of a million values, per rule, beside a plain float32 accumulate
  (``total.add_(vector, alpha=p)``) timed in the same loop. CPU time of the thread, which other load
  on the machine disturbs less, and wall time; the ratio is of CPU times.
* Peak resident memory of a process that streams 8 or 64 updates of a million values through a rule:
  it must not grow with the number of clients.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from picture import bars

from headwater.merging import FisherAggregator, GapSketch, MeanAggregator, MedianAggregator, TiesAggregator
from headwater.merging.plan import MergePlan, Update
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec

RESULT = Path(__file__).parent / "results" / "aggregation.json"
WIDTH, RANK = 5208, 8  # 12 modules of (5208 + 5208)·8 values: 999 936
MODULES = 12
CLIENTS = (8, 64)


def million() -> StateSpec:
    tensors = []
    for i in range(MODULES):
        a, b = f"layer.{i:02d}.lora_A", f"layer.{i:02d}.lora_B"
        tensors.append(TensorSpec(a, (RANK, WIDTH), "lora_a"))
        tensors.append(TensorSpec(b, (WIDTH, RANK), "lora_b", pair=a, scaling=2.0))
    return StateSpec.of(tensors)


def update(spec: StateSpec, number: int) -> Update:
    rng = np.random.default_rng(number)
    delta = rng.standard_normal(spec.numel, dtype=np.float32) * np.float32(1e-2)
    fisher = rng.standard_exponential(spec.numel, dtype=np.float32) * np.float32(0.99)
    return Update(
        f"c{number}",
        1,
        AdapterState.from_vector(spec, torch.from_numpy(delta)),
        examples=100,
        statistics={"fisher": AdapterState.from_vector(spec, torch.from_numpy(fisher))},
    )


def rules(spec: StateSpec) -> dict[str, Any]:
    base = AdapterState.from_vector(spec, torch.full((spec.numel,), 1e-2))
    return {
        "mean": MeanAggregator(),
        "ties density=0.2": TiesAggregator(0.2),
        "ties density=1": TiesAggregator(1.0),
        "fisher": FisherAggregator(),
        "median": MedianAggregator(most_bytes=1 << 40),
        "gap sketch probes=8": GapSketch(base, key=Key.root(0)),
    }


def plan_for(spec: StateSpec, clients: int) -> MergePlan:
    return MergePlan(spec, {f"c{i}": 100 + i for i in range(clients)}, 16.0)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall milliseconds."""
    cpu, wall = time.thread_time(), time.perf_counter()
    work()
    return (time.thread_time() - cpu) * 1e3, (time.perf_counter() - wall) * 1e3


def measure_adds(repeats: int) -> dict[str, Any]:
    """Baseline and rules take turns, so that other load on the machine hits them alike."""
    spec = million()
    plan = plan_for(spec, repeats + 2)
    made = rules(spec)
    accs = {name: rule.init(plan) for name, rule in made.items()}
    total = torch.zeros(spec.numel)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ["plain float32", *made]}
    for i in range(repeats + 2):
        one = update(spec, i)
        plain = timed(lambda one=one: total.add_(one.delta.vector(), alpha=0.01))
        row = {"plain float32": plain}
        for name, rule in made.items():
            row[name] = timed(lambda name=name, rule=rule, one=one: rule.add(accs[name], one))
        if i >= 2:  # the first two touch fresh memory
            for name, value in row.items():
                times[name].append(value)
    cpu = {name: statistics.median(t[0] for t in pairs) for name, pairs in times.items()}
    return {
        name: {
            "add_cpu_ms": round(cpu[name], 2),
            "add_wall_ms": round(statistics.median(t[1] for t in pairs), 2),
            "ratio_to_plain_float32": round(cpu[name] / cpu["plain float32"], 1),
        }
        for name, pairs in times.items()
    }


def stream(name: str, clients: int) -> None:
    """In a process of its own: fold ``clients`` updates and print the peak memory in MiB."""
    spec = million()
    rule = rules(spec)[name]
    acc = rule.init(plan_for(spec, clients))
    for i in range(clients):
        acc = rule.add(acc, update(spec, i))
    print(peak_mib())


def peak_mib() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a child starts at its parent's peak on Linux; VmHWM does not
        line = next(x for x in status.read_text(encoding="ascii").splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def measure_memory(name: str) -> dict[str, float]:
    result = {}
    for clients in CLIENTS:
        command = [sys.executable, __file__, "--stream", name, str(clients)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result[f"peak_mib_{clients}_clients"] = round(float(done.stdout), 1)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--stream", nargs=2, metavar=("RULE", "CLIENTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.stream:
        stream(arguments.stream[0], int(arguments.stream[1]))
        return
    spec = million()
    report = {
        "command": "python benchmarks/aggregation.py",
        "values": spec.numel,
        "threads": 1,
        "machine": {"cpus": os.cpu_count(), "arch": platform.machine(), "python": platform.python_version()},
        "torch": torch.__version__,
        "repeats": arguments.repeats,
        "rules": measure_adds(arguments.repeats),
    }
    for name in rules(spec):
        report["rules"][name] |= measure_memory(name)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    times = {name: [row["add_cpu_ms"]] for name, row in report["rules"].items()}
    RESULT.with_suffix(".svg").write_text(bars("one update of a million values: CPU ms to add", times, " ms"))
    print(json.dumps(report["rules"], indent=2))


if __name__ == "__main__":
    main()
