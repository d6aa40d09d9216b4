"""DP-SGD at a client beside plain training, on one LoRA adapter: to ``results/private_examples.json``.

Each way in a fresh process, one thread, the same rows, all of them in every step, so that the work is the
same: CPU seconds of a step, and the process's memory at its highest. *plain*: ``BackpropTrainer``; *private*:
the same with ``[training.privacy]``, noise from the operating system included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "private_examples.json"
MODELS = Path(__file__).parents[1] / ".cache" / "headwater"
WAYS = ("plain", "private")


def main() -> None:
    """Measure every way, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rows", type=int, default=16, help="of a step")
    parser.add_argument("--tokens", type=int, default=48, help="of a row")
    given = parser.parse_args()
    if given.way:
        print(json.dumps(measured(given.way, given.steps, given.rows, given.tokens)))
        return
    found: dict[str, Any] = {"load": os.getloadavg(), "rows": given.rows, "tokens": given.tokens}
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, *sys.argv[1:]]
        said = subprocess.check_output(command, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        found[way] = json.loads(said.splitlines()[-1])
        print(way, found[way], flush=True)
    found["times_plain"] = found["private"]["step_s"] / found["plain"]["step_s"]
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def measured(way: str, steps: int, rows: int, tokens: int) -> dict[str, float]:
    """CPU seconds of a step, and MiB at the highest, above what the loaded model takes."""
    from headwater.config import load_federation
    from headwater.tasks.batches import Example
    from headwater.training.context import TrainingContext

    file = Path(tempfile.mkdtemp()) / "federation.toml"
    file.write_text(TEXT.format(model=MODELS / "minilm", rows=rows, privacy=PRIVACY * (way == "private")))
    context = TrainingContext.open(load_federation(file))
    assert context.model is not None
    draw = np.random.default_rng(0)
    found = [
        Example(draw.integers(1000, 20000, tokens).astype(np.int32), np.array([i % 2], np.int64))
        for i in range(rows)
    ]
    train(context, found, 2)
    before, base = time.process_time(), resident()
    train(context, found, steps)
    spent = time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"step_s": spent / steps, "peak_mib": peak, "resident_mib": base, "values": context.spec.numel}


def train(context: Any, rows: list[Any], steps: int) -> None:  # noqa: ANN401 - loaded in here
    """Of a client, as it trains."""
    from headwater.config.codec import DenseCodec
    from headwater.protocol.messages import ClientPlan
    from headwater.seeds.keys import Key
    from headwater.training.cohort import TrainTask

    training = context.loaded.settings.training.model_copy(update={"epochs": float(steps)})
    task = TrainTask("a", context.initial_state(), rows, ClientPlan(training, DenseCodec(kind="dense")))
    (result,) = context.trainer(training).train([task], key=Key.root(0))
    assert result.error is None, result.error
    assert result.steps == steps


def resident() -> float:
    """MiB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


PRIVACY = "[training.privacy]\nnoise_multiplier = 1.0\ndelta = 1e-4\n"
TEXT = """
[federation]
name = "private"
rounds = 1
seed = 0
threads = 1
[model]
kind = "encoder"
path = "{model}"
[adapter]
kind = "lora"
rank = 8
alpha = 16.0
[data]
kind = "classification"
path = "none.jsonl"
labels = ["bad", "good"]
validation_fraction = 0.0
partition = {{ kind = "iid", clients = 1 }}
[training]
kind = "backprop"
batch_size = {rows}
{privacy}
"""

if __name__ == "__main__":
    main()
