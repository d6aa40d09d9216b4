"""Clients trained as one batch beside one after the other: ``python benchmarks/cohorts.py``.

LoRA r = 8 on query and value of all layers of MiniLM, with a head; four AdamW steps of each client. Three
contestants take turns, so that other load meets all alike: a bare loop in PyTorch and PEFT, one client after
the other; Headwater's trainer of one; and its trainer of cohorts, of as many clients as it chooses itself.
Milliseconds of a client's step, wall time, medians. Writes ``benchmarks/results/cohorts.json`` and a picture.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from picture import bars
from torch import nn

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

RESULTS = Path(__file__).parent / "results" / "cohorts.json"
MINILM = Path(__file__).parents[1] / ".cache" / "headwater" / "minilm"
SHAPES = ((1, 16), (2, 16), (2, 64), (4, 32), (8, 64), (16, 128))
STEPS, COHORT, CLASSES = 4, 32, 3
FEDERATION = """
[federation]
name = "cohorts"
rounds = 1
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
partition = {{ kind = "iid", clients = 1 }}
[training]
kind = "backprop"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="one shape, written nowhere")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "federation.toml"
        file.write_text(FEDERATION.format(model=MINILM))
        context = TrainingContext.open(load_federation(file), threads=False)
    rows = []
    for shape in SHAPES[:1] if options.small else SHAPES:
        rows.append(measured(context, *shape, repeat=1 if options.small else options.repeat))
        print(json.dumps(rows[-1]), flush=True)
    if options.small:
        return
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"threads": {}}
    found["threads"][str(options.threads)] = rows
    found["command"] = "python benchmarks/cohorts.py --threads N"
    found["machine"] = {"arch": platform.machine(), "cpus": os.cpu_count(), "torch": torch.__version__}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    shown = {
        f"{row['shape']}, {name}": row["ms"][name] for row in found["threads"]["1"] for name in row["ms"]
    }
    path = RESULTS.with_suffix(".svg")
    path.write_text(
        bars("a client's step: milliseconds, one thread", {k: [v] for k, v in shown.items()}, " ms")
    )


def measured(context: TrainingContext, batch: int, tokens: int, *, repeat: int) -> dict[str, object]:
    """One shape: each contestant in turn, the first turn not counted."""
    assert context.model is not None
    room = MOST_TOKENS // (batch * tokens)
    size = min(COHORT, room) if room >= FEWEST else 1
    tasks = clients(context, batch, tokens, count=max(size, 2))
    alone = BackpropTrainer(context.model, context.pad)
    together = BatchedBackpropTrainer(context.model, context.pad, COHORT)
    work: dict[str, Callable[[], object]] = {
        "bare loop": lambda: bare(context, tasks, batch),
        "one by one": lambda: results(alone, tasks),
        "cohort": lambda: results(together, tasks),
    }
    spent: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeat + 1):
        for name, run in work.items():
            began = time.perf_counter()
            run()
            spent[name].append(1e3 * (time.perf_counter() - began) / len(tasks) / STEPS)
    ms = {name: round(statistics.median(times[1:]), 2) for name, times in spent.items()}
    off = max(
        float((one - other).norm() / one.norm())
        for one, other in zip(results(alone, tasks), results(together, tasks), strict=True)
    )
    return {
        "shape": f"{batch} x {tokens}",
        "clients": size,
        "ms": ms,
        "times": {name: round(ms["bare loop"] / ms[name], 2) for name in ms},
        "furthest_from_alone": off,
    }


def results(trainer: CohortTrainer, tasks: Sequence[TrainTask]) -> list[torch.Tensor]:
    deltas = [result.delta for result in trainer.train(tasks, key=Key.root(0))]
    return [delta.vector() for delta in deltas if isinstance(delta, AdapterState)]


def clients(context: TrainingContext, batch: int, tokens: int, *, count: int) -> list[TrainTask]:
    draw = np.random.default_rng(0)
    training = BackpropTraining(kind="backprop", batch_size=batch)
    plan, start = ClientPlan(training, DenseCodec(kind="dense")), context.initial_state()
    return [
        TrainTask(
            f"c{number}",
            start,
            [
                Example(draw.integers(1000, 20000, tokens).astype(np.int32), draw.integers(CLASSES, size=1))
                for _ in range(batch * STEPS)
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


if __name__ == "__main__":
    main()
