"""Federated against centralised and dense: accuracy over seeds on two corpora. JSON, a picture, a table.

    python benchmarks/baselines.py [--corpora sentiment glosses] [--seeds 0 1 2] [--workers 2]

Each run is an example of this repository through `headwater simulate`, in a fresh process. All numbers
are those of the last round on the held-out test: none is picked by looking at it.

*federated* is the example as it stands (ComPEFT uploads), *dense* the same with fp32 uploads,
*centralised* trains on all data in one place with the same passes, *probe* is logistic regression on
frozen features.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from picture import bars

HERE = Path(__file__).parent
RESULTS = HERE / "results"
ROWS = ("majority", "probe", "centralised", "dense", "federated")


def simulate(corpus: str, seed: int, workers: int, *overrides: str) -> dict[str, Any]:
    """The summary of one run."""
    with tempfile.TemporaryDirectory() as scratch:
        file = HERE.parent / "examples" / corpus / "federation.toml"
        command = [sys.executable, "-m", "headwater", "simulate", str(file), "--seed", str(seed)]
        command += ["--workers", str(workers), "--quiet", "--out", f"{scratch}/run"]
        command += ["--set", "evaluation={every=100000}"]  # before the first round and after the last
        for override in overrides:
            command += ["--set", override]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return dict(json.loads(Path(scratch, "run", "summary.json").read_text()))


def measure(corpus: str, seed: int, workers: int) -> dict[str, Any]:
    """All rows of one corpus and seed."""
    compared = "{majority=true, probe=true, centralised=true}"
    federated = simulate(corpus, seed, workers, f"baselines={compared}")
    plain = "codec={up={kind='dense'}, down={kind='dense'}}"
    dense = simulate(corpus, seed, workers, plain, "baselines={}")
    baselines = federated["baselines"]
    return {
        "corpus": corpus,
        "seed": seed,
        "majority": baselines["majority"],
        "probe": baselines["probe"],
        "centralised": baselines["centralised"],
        "dense": dense["metric"]["final"],
        "federated": federated["metric"]["final"],
        "bytes_up": federated["bytes"]["up"],
        "bytes_up_dense": dense["bytes"]["up"],
        "seconds": federated["seconds"],
        "adapter_sha256": federated["adapter_sha256"],
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, as Markdown."""
    corpora = list(dict.fromkeys(run["corpus"] for run in runs))
    lines = ["| accuracy | " + " | ".join(corpora) + " |", "|---|" + "---|" * len(corpora)]
    for row in ROWS:
        cells = []
        for corpus in corpora:
            values = [run[row] for run in runs if run["corpus"] == corpus]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3f} ± {spread:.3f}")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    for name, left, right in (
        ("federated − centralised", "federated", "centralised"),
        ("federated − dense", "federated", "dense"),
        ("federated − probe", "federated", "probe"),
    ):
        cells = [
            f"{100 * statistics.mean(r[left] - r[right] for r in runs if r['corpus'] == c):+.1f} points"
            for c in corpora
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    cells = []
    for corpus in corpora:
        sizes = [(r["bytes_up_dense"], r["bytes_up"]) for r in runs if r["corpus"] == corpus]
        cells.append(f"{sum(d for d, _ in sizes) / sum(u for _, u in sizes):.1f}×")
    lines.append("| bytes up, dense over federated | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpora", nargs="+", default=["sentiment", "glosses"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    runs = []
    for corpus in options.corpora:
        for seed in options.seeds:
            started = time.perf_counter()
            runs.append(measure(corpus, seed, options.workers))
            shown = ", ".join(f"{row} {runs[-1][row]:.4f}" for row in ROWS)
            print(f"{corpus}, seed {seed}: {shown} ({time.perf_counter() - started:.0f} s)", flush=True)
            (RESULTS / "baselines.json").write_text(json.dumps(runs, indent=2) + "\n")
    for corpus in options.corpora:
        of = [run for run in runs if run["corpus"] == corpus]
        values = {row: [run[row] for run in of] for row in ROWS}
        (RESULTS / f"baselines-{corpus}.svg").write_text(bars(f"{corpus}: accuracy on the test", values))
    print(table(runs))


if __name__ == "__main__":
    main()
