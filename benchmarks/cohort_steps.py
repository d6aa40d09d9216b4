"""A client's step, in a cohort and alone, on one thread: :func:`measured`. For ``cohorts.py``."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from headwater.config import load_federation
from headwater.config.codec import DenseCodec
from headwater.config.training import BackpropTraining
from headwater.protocol.messages import ClientPlan
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.tasks.batches import Example, collate
from headwater.training.backprop import BackpropTrainer
from headwater.training.batched.groups import FEWEST, MOST_TOKENS
from headwater.training.batched.trainer import BatchedBackpropTrainer
from headwater.training.cohort import CohortTrainer, TrainTask
from headwater.training.context import TrainingContext

MINILM = Path(__file__).parents[1] / ".cache" / "headwater" / "minilm"
SHAPES = ((1, 16), (2, 16), (2, 64), (4, 32), (8, 64), (16, 128))
STEPS, COHORT, CLASSES = 4, 32, 3
ALONE = 6
"""Clients that the contestants without a cohort train: one takes what another takes."""
FEWEST_TURNS, MOST_TURNS = 3, 7
FEDERATION = """
[federation]
name = "cohorts"
rounds = {rounds}
[model]
kind = "encoder"
path = "{model}"
[adapter]
kind = "lora"
rank = 8
alpha = 16.0
target_modules = ["query", "value"]
[data]
kind = "classification"
path = "rows.jsonl"
labels = ["a", "b", "c"]
"""
"""Of one model and adapter; a table goes on with data, and others follow."""
ONE_CLIENT = 'partition = {{ kind = "iid", clients = 1 }}\n[training]\nkind = "backprop"\n'


@cache
def opened() -> TrainingContext:
    """MiniLM with its adapter; the threads are not touched."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "federation.toml"
        file.write_text((FEDERATION + ONE_CLIENT).format(model=MINILM, rounds=1))
        return TrainingContext.open(load_federation(file), threads=False)


def measured(batch: int, tokens: int, *, seconds: float = 20.0) -> dict[str, Any]:
    """One shape: each contestant in turn, the first turn not counted, for so many seconds."""
    context = opened()
    assert context.model is not None
    room = MOST_TOKENS // (batch * tokens)
    size = min(COHORT, room) if room >= FEWEST else 1
    steps = STEPS if batch * tokens < MOST_TOKENS else 2
    apart = ALONE if size > 1 else steps // 2
    tasks = clients(context, batch, tokens, count=max(size, apart), steps=steps)
    few = tasks[:apart]
    alone = BackpropTrainer(context.model, context.pad)
    together = BatchedBackpropTrainer(context.model, context.pad, COHORT)
    joint = tasks[:size] if size > 1 else few
    work: dict[str, tuple[int, Callable[[], object]]] = {
        "bare loop": (len(few), lambda: bare(context, few, batch)),
        "one by one": (len(few), lambda: results(alone, few)),
        "cohort": (len(joint), lambda: results(together, joint)),
    }
    spent: dict[str, list[float]] = {name: [] for name in work}
    rates: list[float] = []
    ends = time.perf_counter() + seconds
    for turn in range(MOST_TURNS + 1):
        if turn > FEWEST_TURNS and time.perf_counter() > ends:
            break
        for name, (count, run) in work.items():
            began = time.perf_counter()
            run()
            spent[name].append(1e3 * (time.perf_counter() - began) / count / steps)
        rates.append(sgemm(size * batch * tokens))
    ms = {name: statistics.median(times[1:]) for name, times in spent.items()}
    flops = counted(lambda: results(together, joint)) / len(joint) / steps
    rate = statistics.median(rates)
    off = max(
        float((one - other).norm() / one.norm())
        for one, other in zip(results(alone, joint), results(together, joint), strict=True)
    )
    return {
        "clients": size,
        "ms": {name: round(value, 2) for name, value in ms.items()},
        "turns": len(rates) - 1,
        "times": {name: round(ms["bare loop"] / value, 2) for name, value in ms.items()},
        "gflop_a_step": round(flops / 1e9, 3),
        "sgemm_gflops": round(rate, 1),
        "share_of_sgemm": round(flops / ms["cohort"] / 1e6 / rate, 2),
        "furthest_from_alone": off,
    }


def sgemm(rows: int) -> float:
    """GFLOP/s of one layer's products: four of 384 x 384, then 384 x 1536 and back."""
    shapes = [(384, 384)] * 4 + [(384, 1536), (1536, 384)]
    pairs = [(torch.randn(rows, k), torch.randn(k, n)) for k, n in shapes]
    flops = sum(2 * rows * k * n for k, n in shapes)
    times = []
    for _ in range(max(3, int(2e9 / flops))):
        began = time.perf_counter()
        for left, right in pairs:
            left @ right
        times.append(time.perf_counter() - began)
    return flops / statistics.median(times) / 1e9


def counted(work: Callable[[], object]) -> int:
    """Floating-point operations of its matrix products, as torch counts them."""
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return counter.get_total_flops()


def results(trainer: CohortTrainer, tasks: Sequence[TrainTask]) -> list[torch.Tensor]:
    deltas = [result.delta for result in trainer.train(tasks, key=Key.root(0))]
    return [delta.vector() for delta in deltas if isinstance(delta, AdapterState)]


def clients(
    context: TrainingContext, batch: int, tokens: int, *, count: int, steps: int = STEPS
) -> list[TrainTask]:
    draw = np.random.default_rng(0)
    training = BackpropTraining(kind="backprop", batch_size=batch)
    plan, start = ClientPlan(training, DenseCodec(kind="dense")), context.initial_state()
    return [
        TrainTask(
            f"c{number}",
            start,
            [
                Example(draw.integers(1000, 20000, tokens).astype(np.int32), draw.integers(CLASSES, size=1))
                for _ in range(batch * steps)
            ],
            plan,
        )
        for number in range(count)
    ]


def bare(context: TrainingContext, tasks: Sequence[TrainTask], batch: int) -> None:
    """What a researcher writes: the same model and steps, no clipping, no checks."""
    model = context.model
    assert model is not None
    parameters = [parameter for _, parameter in model.parameters()]
    for task in tasks:
        model.load(task.state)
        optimiser = torch.optim.AdamW(parameters, lr=1e-3)
        for at in range(0, len(task.examples), batch):
            rows = collate(task.examples[at : at + batch], context.pad)
            loss = nn.functional.cross_entropy(model.network(rows.tokens, rows.mask), rows.targets)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
        optimiser.zero_grad()
