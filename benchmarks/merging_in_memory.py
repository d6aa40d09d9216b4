"""Folding and a round's rules in memory: rows of ``benchmarks/merging.py``. Entry: :func:`in_memory`."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from headwater.merging.aggregator import Aggregator
    from headwater.merging.plan import MergePlan
    from headwater.state import AdapterState

DENSITY = 0.2


def in_memory(repeat: int, *, small: bool) -> list[dict[str, object]]:
    """CPU milliseconds a million values of one adapter: the fold, and what a round's rules add."""
    import torch

    torch.set_num_threads(1)
    rows = []
    for size, count in ((100_000, 4),) if small else ((131_072, 20), (1_000_000, 20)):
        rows += folds(size, count, repeat)
    for size in (100_000,) if small else (131_072, 1_000_000, 10_000_000):
        rows += additions(size, repeat)
    for row in rows:
        print(json.dumps(row), flush=True)
    return rows


def folds(size: int, count: int, repeat: int) -> list[dict[str, object]]:
    """Trim and TIES of some vectors, beside PEFT's function, which reads float32."""
    import torch
    from peft.utils import merge_utils

    from headwater.merging.largest import Cut
    from headwater.merging.offline.fold import fold
    from headwater.merging.offline.rules.ties import Ties

    draw = np.random.default_rng(0)
    changes = [draw.normal(size=size) for _ in range(count)]
    tensors = [torch.from_numpy(change.astype(np.float32)) for change in changes]
    rule, shares = Ties(density=DENSITY), np.full(count, 1 / count)

    def read(i: int) -> np.ndarray:
        values = changes[i].copy()
        return Cut.of(values, DENSITY).apply(values)

    work = {
        **by_both("headwater, fold", lambda: fold(rule, read, shares)),
        "PEFT, ties": lambda: merge_utils.ties(tensors, torch.from_numpy(shares).float(), DENSITY),
    }
    return timed(f"{count} x {size} values", work, repeat, size * count)


def additions(size: int, repeat: int) -> list[dict[str, object]]:
    """Updates that a rule of a round adds, beside NumPy's sum in float32 and in float64.

    Four at a time: where loops are compiled, TIES adds four updates in one pass.
    """
    import torch

    from headwater.merging import MeanAggregator, TiesAggregator
    from headwater.merging.plan import MergePlan
    from headwater.state import AdapterState, StateSpec, TensorSpec

    spec = StateSpec.of([TensorSpec("a", (size,), "vector")])
    names = [f"c{number}" for number in range(2 * 4 * 3 * repeat)]
    plan = MergePlan(spec, dict.fromkeys(names, 100), 16.0)
    values = np.random.default_rng(0).standard_normal(size, np.float32) * np.float32(0.01)
    delta = AdapterState.from_vector(spec, torch.from_numpy(values))
    work: dict[str, Callable[[], object]] = {}
    for kind in (np.float32, np.float64):
        total = np.zeros(size, kind)
        work[f"NumPy, {np.dtype(kind)}"] = lambda total=total: [
            np.add(total, values, out=total) for _ in range(4)
        ]
    rules = {"mean": MeanAggregator(), "ties": TiesAggregator(DENSITY), "ties of all": TiesAggregator(1.0)}
    for name, rule in rules.items():
        work |= by_both(f"headwater, {name}", adding(rule, plan, delta, names))
    return timed(f"add {size} values", work, 3 * repeat, 4 * size)


def adding(
    rule: Aggregator[Any], plan: MergePlan, delta: AdapterState, names: list[str]
) -> Callable[[], object]:
    from headwater.merging.plan import Update

    acc, left = rule.init(plan), iter(names)

    def add() -> None:
        for _ in range(4):
            rule.add(acc, Update(next(left), 0, delta, 100))

    return add


def by_both(name: str, run: Callable[[], object]) -> dict[str, Callable[[], object]]:
    """By NumPy, and by compiled loops where numba is installed: not by size, as the product chooses."""
    from headwater.kernels import gate

    def by(chosen: gate.Gate) -> Callable[[], object]:
        def work() -> object:
            gate.GATE = chosen
            return run()

        return work

    found = {f"{name}, NumPy": by(gate.Gate(float("-inf")))}
    compiled = gate.Gate(float("inf"))
    if compiled.open() is not None:
        found[f"{name}, compiled"] = by(compiled)
    return found


def timed(
    shape: str, work: Mapping[str, Callable[[], object]], repeat: int, values: int
) -> list[dict[str, object]]:
    """CPU time of each in turn, so that other load meets all alike; the first turn touches fresh memory."""
    spent: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeat):
        for name, run in work.items():
            began = time.thread_time()
            run()
            spent[name].append(1e9 * (time.thread_time() - began) / values)
    rows = []
    for name, all_of in spent.items():
        warm = sorted(all_of[1:] or all_of)
        rows.append(
            {
                "contestant": name,
                "shape": shape,
                "ms_a_million": round(statistics.median(warm), 3),
                "least": round(warm[0], 3),
            }
        )
    return rows
