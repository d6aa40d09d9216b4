"""What noise costs: ``python benchmarks/private_rounds.py`` writes results/private_rounds.json and .svg.

Two hundred owners with 32 sentences of `sentiment` each, twenty asked a round on average (Poisson), twenty
rounds: accuracy on the held-out rows without noise and bound, and at each ε (δ = 10⁻⁵, user-level, central
noise), for four ways to train few values of MiniLM. The bound of an update is the same at every ε and stands
beside each. Runs that the JSON has are kept, also of several processes with other ways each; ``--fresh``
takes all anew. One thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
import torch
from picture import bars

from headwater.config import load_federation
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.simulate import simulate
from headwater.simulation.sweeps.shared import SharedInputs

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "private_rounds.json"
CACHE = HERE.parent / ".cache" / "headwater"
OWNERS, ASKED, ROUNDS, DELTA = 200, 20, 20, 1e-5
EPSILONS = (None, 8.0, 4.0, 2.0, 1.0)
LORA = {"rank": 4, "alpha": 8.0, "target_modules": ["query", "value"], "layers": [5]}
WAYS: Mapping[str, dict[str, Any]] = {
    "ffa": {"adapter": {"kind": "lora", **LORA}, "strategy": {"space": "ffa"}, "clip_l2": 0.5},
    "lora": {"adapter": {"kind": "lora", **LORA}, "clip_l2": 0.5},
    "lora-sb": {
        "adapter": {"kind": "lora-sb", "rank": 16, "target_modules": ["query", "value"], "layers": [5]},
        "clip_l2": 0.5,
    },
    "prompt": {
        "adapter": {"kind": "prompt", "tokens": 4},
        "training": {"learning_rate": 3e-2},
        "clip_l2": 0.5,
    },
}
"""By name: the adapter, how its updates are merged and bounded."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--epsilons", nargs="+", type=float, default=None, help="0: without noise")
    parser.add_argument("--seeds", nargs="+", type=int, default=[17])
    parser.add_argument("--clip", type=float, help="a trial of another bound, written nowhere")
    parser.add_argument("--fresh", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    if options.fresh:
        RESULTS.unlink(missing_ok=True)
    shared = SharedInputs()
    epsilons = EPSILONS if options.epsilons is None else [e or None for e in options.epsilons]
    for seed, epsilon, way in itertools.product(options.seeds, epsilons, options.ways):
        done = any((r["way"], r["epsilon"], r["seed"]) == (way, epsilon, seed) for r in known())
        if done and options.clip is None:
            continue
        row = run(shared, way, epsilon, seed, options.clip)
        print(json.dumps(row), flush=True)
        if options.clip is None:
            write([*known(), row])


def known() -> list[dict[str, Any]]:
    """The rows of the file, to which another process may add, too."""
    rows: list[dict[str, Any]] = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    return rows


def run(
    shared: SharedInputs, way: str, epsilon: float | None, seed: int, clip: float | None = None
) -> dict[str, Any]:
    """One federation from its file to its last round."""
    chosen = WAYS[way]
    noise = {
        "clip_l2": clip or chosen["clip_l2"],
        "epsilon": epsilon,
        "delta": DELTA,
        "noise": "reproducible",
    }
    content: dict[str, Any] = {
        "federation": {"name": "private-rounds", "seed": seed, "rounds": ROUNDS},
        "model": {"kind": "encoder", "path": str(CACHE / "minilm")},
        "adapter": chosen["adapter"],
        "data": {
            "kind": "classification",
            "path": str(CACHE / "sentiment" / "train.jsonl"),
            "test": str(CACHE / "sentiment" / "test.jsonl"),
            "labels": ["negative", "positive"],
            "max_tokens": 24,
            "max_test_examples": 1000,
            "max_examples_per_client": 32,
            "validation_fraction": 0.0,
            "partition": {"kind": "iid", "clients": OWNERS},
        },
        "training": {
            "kind": "backprop", "epochs": 1.0, "batch_size": 16, "learning_rate": 5e-3,
            "head_learning_rate": 2e-2, "trunk_cache_mb": 512, **chosen.get("training", {}),
        },
        "codec": {"up": {"kind": "dense"}, "down": {"kind": "dense"}},
        "strategy": {"kind": "mean", "weighting": "equal", **chosen.get("strategy", {})},
        "cohort": {"sampling": "poisson", "clients_per_round": ASKED, "population": OWNERS},
        "privacy": noise if epsilon else {},
        "evaluation": {"metric": "accuracy", "every": ROUNDS, "clients": False},
        "simulation": {"cohort": 8},
    }  # fmt: skip
    if not epsilon:
        content["cohort"] = {"clients_per_round": ASKED}
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "federation.toml"
        file.write_text(tomli_w.dumps(content))
        loaded = load_federation(file)
        began = time.process_time()
        folder = RunFolder.create(Path(scratch) / "run", loaded, {"engine": "inprocess"})
        simulate(loaded, folder, opened=shared.open)
        took = time.process_time() - began
        lines = [
            json.loads(line) for line in (Path(scratch) / "run" / "rounds.jsonl").read_text().splitlines()
        ]
    last = lines[-1]
    found = {"accuracy": last["test"]["accuracy"], "rounds": last["round"], "cpu_s": round(took, 1)}
    if epsilon:
        found["privacy"] = last["privacy"]
    return {"way": way, "epsilon": epsilon, "seed": seed, "clip_l2": noise["clip_l2"], **found}


def write(rows: list[dict[str, Any]]) -> None:
    """All that is known, and the picture."""
    about = {"python": sys.version.split()[0], "torch": torch.__version__, "machine": platform.machine()}
    setting = {"owners": OWNERS, "asked": ASKED, "rounds": ROUNDS, "delta": DELTA, "ways": WAYS}
    RESULTS.write_text(json.dumps({**about, **setting, "runs": rows}, indent=1) + "\n")
    shown: dict[str, list[float]] = {}
    for way, epsilon in itertools.product(WAYS, EPSILONS):
        values = [100 * r["accuracy"] for r in rows if (r["way"], r["epsilon"]) == (way, epsilon)]
        if values:
            shown[f"{way}, " + (f"ε = {epsilon:g}" if epsilon else "no noise")] = [statistics.mean(values)]
    title = f"Accuracy in % after {ROUNDS} rounds, {OWNERS} owners, δ = {DELTA:g}"
    RESULTS.with_suffix(".svg").write_text(bars(title, shown))


if __name__ == "__main__":
    main()
