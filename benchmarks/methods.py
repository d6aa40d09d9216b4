"""Every local method to 95 % of backprop's final accuracy: passes, bytes, minutes. JSON, a picture, a table.

    python benchmarks/methods.py [--corpora sentiment glosses] [--methods kseed mixed] [--seeds 0 1 2]
    python benchmarks/methods.py --corpora glosses --methods decomfl --rounds 48

One adapter, one recipe for each method and corpus, fixed on seed 17 before these seeds were run: LoRA of
rank 4 on query and value of MiniLM's last layer, and the head; texts are cut short and clients have 300 rows,
so that a step is cheap. `blackbox`, which moves a prompt and nothing else, has one of 8 tokens instead, and a
head as it was drawn. Every method without backprop may make the same number of passes over a batch. Each run
is `headwater simulate` in a fresh process, and after every round held-out rows are measured. *mixed* is half
backprop, a quarter forward gradients, a quarter kseed; *backprop half* is what its backprop clients would be
alone. Runs go on where the JSON has no row yet.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from picture import bars

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "methods.json"
REACH = 0.95
ROUNDS = 8
TOKENS = {"sentiment": 16, "glosses": 12}
PASSES = {"sentiment": 240, "glosses": 120}
"""Of a client over a batch, in a round, by every method without backprop."""
RATE = {"sentiment": 6e-6, "glosses": 2.5e-6}
"""Of a step along one direction. The mean of four is less noisy: twice as long, and a quarter as many."""
COMMON = "final_learning_rate_fraction=0.1, trunk_cache_mb=256"
BACKPROP = (
    f'{{kind="backprop", epochs=0.5, batch_size=32, learning_rate=3e-3, head_learning_rate=1e-2, {COMMON}}}'
)


def trainings(corpus: str) -> dict[str, tuple[str, float]]:
    """For each method its ``[training]``, and the passes over a batch that a step makes."""
    rate = RATE[corpus]

    def walk(passes: int, longer: int = 1) -> str:
        steps, length = PASSES[corpus] // passes, rate * longer
        return f"max_steps={steps}, epochs=1000, batch_size=16, learning_rate={length:g}, {COMMON}"

    probe = "epsilon=1e-4, gradient_bound=1024.0"
    return {
        "backprop": (BACKPROP, 3),
        "forward_gradient": (f'{{kind="forward_gradient", directions=4, {walk(4, 2)}}}', 4),
        "spry": (f'{{kind="spry", directions=4, {walk(4, 2)}}}', 4),
        "mezo": (f'{{kind="mezo", {probe}, {walk(2)}}}', 2),
        "kseed": (f'{{kind="kseed", seeds=4096, {probe}, {walk(2)}}}', 2),
        "decomfl": (f'{{kind="decomfl", directions=4, {probe}, {walk(5)}}}', 5),
        # CMA-ES needs no rate; a generation asks for the loss of each of its 16 candidates
        "blackbox": (f'{{kind="blackbox", generations={PASSES[corpus] // 16}, batch_size=16}}', 16),
    }


def settings(corpus: str, method: str, rounds: int) -> list[str]:
    """What the example's file is changed to."""
    own = trainings(corpus)
    chosen = [
        f"federation.rounds={rounds}",
        "data.max_examples_per_client=300",
        "data.max_test_examples=400",
        "strategy.weighting=equal",
        "strategy.server_learning_rate=1.0",
        f"data.max_tokens={TOKENS[corpus]}",
        'adapter={kind="lora", rank=4, target_modules=["query", "value"], layers=[5], head_bits=6}',
        'evaluation={metric="accuracy", every=1, clients=false, trunk_cache_mb=256}',
        "baselines={}",
        f"training={own['backprop' if method in ('mixed', 'backprop half') else method][0]}",
    ]
    if method == "blackbox":  # moves a prompt, and nothing else
        chosen = [text for text in chosen if not text.startswith("adapter=")]
        chosen.append('adapter={kind="prompt", tokens=8}')
    if corpus == "glosses":
        chosen.append('data.partition={kind="dirichlet", clients=4, alpha=0.5, min_examples=64}')
    if method == "mixed":
        phone, sensor = own["forward_gradient"][0], own["kseed"][0]
        chosen += [
            f"methods={{phone={{training={phone}}}, sensor={{training={sensor}}}}}",
            'assignment={kind="shares", shares={default=0.5, phone=0.25, sensor=0.25}}',
        ]
    if method == "backprop half":
        # the same two clients as in mixed: the other two move nothing, so the mean is doubled
        chosen += [
            "strategy.server_learning_rate=2.0",
            "strategy.noise=ignore",
            'methods={idle={training={kind="kseed", max_steps=1, learning_rate=1e-9}}}',
            'assignment={kind="shares", shares={default=0.5, idle=0.5}}',
        ]
    return chosen


def run(corpus: str, method: str, seed: int, rounds: int) -> dict[str, Any]:
    """One run's curve."""
    with tempfile.TemporaryDirectory() as scratch:
        file = HERE.parent / "examples" / corpus / "federation.toml"
        command = [sys.executable, "-m", "headwater", "simulate", str(file), "--seed", str(seed)]
        command += ["--workers", "1", "--quiet", "--out", f"{scratch}/run"]
        for text in settings(corpus, method, rounds):
            command += ["--set", text]
        began = time.monotonic()
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        seconds = time.monotonic() - began
        lines = Path(scratch, "run", "rounds.jsonl").read_text().splitlines()
    own, curve = trainings(corpus), []
    passes = 0.0
    names = {"": "backprop" if method in ("mixed", "backprop half") else method}
    names |= {"default": "backprop", "phone": "forward_gradient", "sensor": "kseed", "idle": "kseed"}
    for record in map(json.loads, lines):
        rows = record["clients"].values()
        passes += sum(r.get("steps", 0) * own[names[r.get("method", "")]][1] for r in rows)
        curve.append(
            {
                "round": record["round"],
                "accuracy": record["test"]["accuracy"],
                "passes": passes,
                "up": record["bytes"]["up"],
                "down": record["bytes"]["down"],
                "train_s": sum(r.get("seconds", 0.0) for r in rows),
            }
        )
    return {"corpus": corpus, "method": method, "seed": seed, "seconds": seconds, "curve": curve}


def rounds_of(row: dict[str, Any]) -> int:
    """How many rounds a run had."""
    return len(row["curve"]) - 1  # round 0 is before the first


def reached(curve: list[dict[str, Any]], goal: float) -> dict[str, float] | None:
    """What it took until the accuracy was first at ``goal``; None if it never was."""
    up = down = seconds = 0.0
    for point in curve:
        up, down, seconds = up + point["up"], down + point["down"], seconds + point["train_s"]
        if point["accuracy"] >= goal:
            done = {"rounds": point["round"], "passes": point["passes"], "bytes_up": up}
            return {**done, "bytes_down": down, "train_minutes": seconds / 60}
    return None


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for each corpus, method and number of rounds; the goal is backprop's in the usual number."""
    found = []
    for corpus in dict.fromkeys(r["corpus"] for r in rows):
        mine = [r for r in rows if r["corpus"] == corpus]
        usual = [r for r in mine if r["method"] == "backprop" and rounds_of(r) == ROUNDS]
        finals = [r["curve"][-1]["accuracy"] for r in usual]
        goal = REACH * statistics.mean(finals) if finals else float("inf")
        for method, rounds in dict.fromkeys((r["method"], rounds_of(r)) for r in mine):
            runs = [r["curve"] for r in mine if (r["method"], rounds_of(r)) == (method, rounds)]
            took = [t for t in (reached(c, goal) for c in runs) if t]
            last = [c[-1]["accuracy"] for c in runs]
            found.append(
                {
                    "corpus": corpus,
                    "method": method,
                    "of_rounds": rounds,
                    "runs": len(runs),
                    "final": statistics.mean(last),
                    "final_spread": statistics.stdev(last) if len(last) > 1 else None,
                    "goal": goal if finals else None,
                    "reached_in": len(took),
                    **({k: statistics.median(t[k] for t in took) for k in took[0]} if took else {}),
                }
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*trainings("sentiment"), "mixed", "backprop half"]
    parser.add_argument("--corpora", nargs="+", default=list(TOKENS), choices=list(TOKENS))
    parser.add_argument("--methods", nargs="+", default=names, choices=names)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--at-once", type=int, default=2, help="runs at a time, one process each")
    parser.add_argument("--anew", action="store_true", help="forget the rows that are there")
    options = parser.parse_args()
    result: dict[str, Any] = {"rows": []}
    if RESULTS.exists() and not options.anew:
        result = json.loads(RESULTS.read_text())
    have = {(r["corpus"], r["method"], r["seed"], rounds_of(r)) for r in result["rows"]}
    wanted = [
        (c, m, s, options.rounds) for s in options.seeds for c in options.corpora for m in options.methods
    ]
    with ThreadPoolExecutor(options.at_once) as pool:
        done = [pool.submit(run, *what) for what in wanted if what not in have]
        for one in as_completed(done):
            row = one.result()
            result["rows"].append(row)
            result["summary"] = summary(result["rows"])
            RESULTS.write_text(json.dumps(result, indent=1) + "\n")
            curve = [round(p["accuracy"], 3) for p in row["curve"]]
            print(
                f"{row['corpus']} {row['method']} seed {row['seed']}: {row['seconds']:.0f} s, {curve}",
                flush=True,
            )
    for corpus in options.corpora:
        lines = [line for line in summary(result["rows"]) if line["corpus"] == corpus]
        shown = {
            line["method"]: [
                r["curve"][-1]["accuracy"]
                for r in result["rows"]
                if (r["corpus"], r["method"], rounds_of(r)) == (corpus, line["method"], ROUNDS)
            ]
            for line in lines
            if line["of_rounds"] == ROUNDS
        }
        (RESULTS.parent / f"methods-{corpus}.svg").write_text(bars(f"{corpus}: accuracy, last round", shown))
        for line in lines:
            print(json.dumps(line))


if __name__ == "__main__":
    main()
