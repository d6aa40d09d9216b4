"""Spaces of LoRA where clients have ranks 4, 4, 8 and 16: accuracy and gap on two corpora. JSON and a table.

    python benchmarks/spaces.py [--corpora sentiment glosses] [--ways product factors] [--seeds 0 1 2]

One recipe for all, fixed before the first run: LoRA on query and value of MiniLM's last two layers, scale 2,
four clients of 300 rows, texts cut to 16 tokens, one pass a round, 6 rounds, dense uploads. *fedit 8* is rank
8 for everybody in space `factors`; the others have an adapter of rank 16, of which each client trains a part.
*zero-padding* (HETLoRA's baseline, NVFlare's example) is `factors` with a mean over all clients, those that
do not have a component included; no federation file offers it.
Goes on where the JSON has no row yet.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

from headwater.config import load_federation
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.simulate import simulate

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "spaces.json"
TRAINING = '{kind="backprop", epochs=1, batch_size=32, learning_rate=3e-3, head_learning_rate=1e-2}'
WAYS = {
    "fedit 8": "strategy.space=factors",
    "factors": "strategy.space=factors",
    "zero-padding": "strategy.space=factors",
    "rolora": "strategy.space=rolora",
    "fair": "strategy.space=fair",
    "product, all": "strategy.space=product",
    "product": "strategy.space=product",
}


def settings(corpus: str, way: str) -> list[str]:
    """What the example's file is changed to."""
    rank = 8 if way == "fedit 8" else 16
    lora = f'kind="lora", rank={rank}, alpha={2 * rank}, target_modules=["query", "value"], layers=[4, 5]'
    chosen = [
        "federation.rounds=6",
        "data.max_examples_per_client=300",
        "data.max_test_examples=400",
        "data.max_tokens=16",
        "strategy.server_learning_rate=1.0",
        "strategy.weighting=equal",
        WAYS[way],
        'codec.up={kind="dense"}',
        f"adapter={{{lora}}}",
        'evaluation={metric="accuracy", every=1, clients=false, trunk_cache_mb=256}',
        "baselines={}",
        f"training={TRAINING}",
    ]
    if corpus == "glosses":
        chosen.append('data.partition={kind="dirichlet", clients=4, alpha=0.5, min_examples=64}')
    if way != "fedit 8":
        chosen += [
            f"methods={{low={{training={TRAINING}, rank=4}}, middle={{training={TRAINING}, rank=8}}}}",
            'assignment={kind="shares", shares={low=0.5, middle=0.25, default=0.25}}',
        ]
    return chosen + (["strategy.rank_weights=all"] if way == "product, all" else [])


def run(corpus: str, way: str, seed: int) -> dict[str, Any]:
    """One run: accuracy by round, gaps, seconds."""
    file = HERE.parent / "examples" / corpus / "federation.toml"
    loaded = load_federation(file, [*settings(corpus, way), f"federation.seed={seed}"])
    padded = patch("headwater.merging.mean.divisors", lambda plan, weights, progress: sum(weights.values()))
    with tempfile.TemporaryDirectory() as scratch, padded if way == "zero-padding" else nullcontext():
        began = time.process_time()
        simulate(loaded, RunFolder.create(Path(scratch, "run"), loaded, {"engine": "inprocess"}))
        seconds = time.process_time() - began
        lines = Path(scratch, "run", "rounds.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {
        "corpus": corpus,
        "way": way,
        "seed": seed,
        "cpu_seconds": round(seconds, 1),
        "accuracy": [round(r["test"]["accuracy"], 4) for r in records],
        "gap": [round(r["gap"]["relative"], 4) for r in records[1:]],
        "truncation": [round(r["merge"]["truncation"], 4) for r in records[1:] if "truncation" in r["merge"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpora", nargs="+", default=["sentiment", "glosses"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    have = {(row["corpus"], row["way"], row["seed"]) for row in rows}
    for seed in options.seeds:
        for corpus in options.corpora:
            for way in options.ways:
                if (corpus, way, seed) not in have:
                    rows.append(run(corpus, way, seed))
                    RESULTS.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
                    print(json.dumps(rows[-1]), flush=True)
    print("| corpus | space | last round | mean gap | runs |\n|---|---|---|---|---|")
    for corpus, way in dict.fromkeys((row["corpus"], row["way"]) for row in rows):
        mine = [row for row in rows if (row["corpus"], row["way"]) == (corpus, way)]
        last = [row["accuracy"][-1] for row in mine]
        spread = f" ± {statistics.stdev(last):.3f}" if len(last) > 1 else ""
        gap = statistics.mean(g for row in mine for g in row["gap"])
        print(f"| {corpus} | {way} | {statistics.mean(last):.3f}{spread} | {gap:.3f} | {len(mine)} |")


if __name__ == "__main__":
    main()
