"""Merge rules under attack: ``python benchmarks/robust.py`` writes results/robust.json and robust.svg.

Fifteen clients with sentences of `sentiment`, of whom three lie: one entry of ``[[simulation.attackers]]``
for each attack, the same data and seed for every rule. LoRA on MiniLM's last layer and the head are trained,
so that the layers below are computed once for all rows. Measured is the server's accuracy after the last
round, and the share of held-out negative texts that a backdoor's trigger makes positive; without an attack
that share is what the trigger does to an honest adapter. Runs go on where the JSON has no row yet, also of
several processes with other rules each; ``--fresh`` takes all anew. One thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
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
RESULTS = HERE / "results" / "robust.json"
CACHE = HERE.parent / ".cache" / "headwater"
CLIENTS, LIARS, ROUNDS = 15, 3, 4
TRIGGER = {"trigger": "cf mn", "target": "positive"}
WHO = {"fraction": LIARS / CLIENTS}
HONEST = {"kind": "backdoor", **WHO, **TRIGGER, "poisoned": 0.0}
"""Nobody teaches the trigger: what it does by itself is measured."""
SPLITS: Mapping[str, dict[str, Any]] = {
    "iid": {"kind": "iid", "clients": CLIENTS},
    "dirichlet 0.5": {"kind": "dirichlet", "clients": CLIENTS, "alpha": 0.5},
}
ATTACKS: Mapping[str, dict[str, Any] | None] = {
    "none": None,
    "backdoor": {"kind": "backdoor", **WHO, **TRIGGER, "poisoned": 0.5, "factor": 5.0},
    "quiet backdoor": {"kind": "backdoor", **WHO, **TRIGGER, "poisoned": 0.5},
    "flip": {"kind": "flip", **WHO, "factor": 4.0},
    "scale": {"kind": "scale", **WHO, "factor": 30.0},
    "min_max": {"kind": "collude", **WHO, "method": "min_max"},
    "alie": {"kind": "collude", **WHO, "method": "alie"},
}
FFA, PRODUCT = {"space": "ffa"}, {"space": "product"}
RULES: Mapping[str, dict[str, Any]] = {
    "mean": {"kind": "mean", **FFA},
    "mean, screened": {"kind": "mean", **FFA, "screen": {"leave_out": True}},
    "mean, shortened": {"kind": "mean", **FFA, "screen": {"shorten": True}},
    "median, shortened": {"kind": "median", "screen": {"shorten": True}},
    "multi_krum, shortened": {"kind": "multi_krum", "faulty": LIARS, "screen": {"shorten": True}},
    "median": {"kind": "median"},
    "trimmed_mean": {"kind": "trimmed_mean", "drop": LIARS},
    "krum": {"kind": "krum", "faulty": LIARS},
    "multi_krum": {"kind": "multi_krum", "faulty": LIARS},
    "multi_krum, product": {"kind": "multi_krum", "faulty": LIARS, **PRODUCT},
    "geometric_median, passes": {"kind": "geometric_median", "passes": 4},
    "geometric_median, product": {"kind": "geometric_median", **PRODUCT},
    "fltrust": {"kind": "fltrust", "trusted": ["client-00"]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=["iid"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[17])
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--table", action="store_true", help="print what is known, and run nothing")
    parser.add_argument("--small", action="store_true", help="a trial that is written nowhere")
    options = parser.parse_args()
    if options.table:
        write(known())
        print("\n\n".join(table(known(), split) for split in options.splits))
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    if options.fresh and not options.small:
        RESULTS.unlink(missing_ok=True)
    shared = SharedInputs()
    for split, seed, attack, rule in itertools.product(
        options.splits, options.seeds, options.attacks, options.rules
    ):
        which = {"rule": rule, "attack": attack, "split": split, "seed": seed}
        if any(which.items() <= row.items() for row in known()):
            continue
        row = which | run(shared, rule, attack, split, seed, small=options.small)
        print(json.dumps(row), flush=True)
        if not options.small:
            write([*known(), row])


def known() -> list[dict[str, Any]]:
    """The rows of the file, to which another process may add, too."""
    rows: list[dict[str, Any]] = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    return rows


def write(rows: list[dict[str, Any]]) -> None:
    """All that is known, and the picture."""
    about = {"python": sys.version.split()[0], "torch": torch.__version__, "machine": platform.machine()}
    setting = {"clients": CLIENTS, "liars": LIARS, "rounds": ROUNDS}
    attacks = {name: attack for name, attack in ATTACKS.items() if attack}
    content = {**about, **setting, "attacks": attacks, "rules": RULES, "runs": rows}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    shown: dict[str, list[float]] = {}
    for rule in RULES:
        own = {r["attack"]: [] for r in rows if r["rule"] == rule and r["attack"] != "none"}
        for r in rows:
            if r["rule"] == rule and r["attack"] in own:
                own[r["attack"]].append(100 * r["accuracy"])
        if len(own) == len(attacks):  # the worst of some is not the worst
            shown[rule] = [min(sum(v) / len(v) for v in own.values())]
    if shown:
        title = f"Accuracy in % under the worst attack, {LIARS} of {CLIENTS} clients lie"
        RESULTS.with_suffix(".svg").write_text(bars(title, shown))


def table(rows: list[dict[str, Any]], split: str) -> str:
    """As Markdown: accuracy in %, of a backdoor behind it what the trigger turns; means over seeds."""

    def cell(rule: str, attack: str) -> str:
        own = [r for r in rows if (r["rule"], r["attack"], r["split"]) == (rule, attack, split)]
        if not own:
            return "–"
        shown = [f"{100 * sum(r[what] for r in own) / len(own):.1f}" for what in ("accuracy", "trigger")
                 if all(what in r for r in own)]  # fmt: skip
        return "; ".join(shown)

    lines = [["rule", *ATTACKS], ["---"] * (len(ATTACKS) + 1)]
    for rule in RULES:
        cells = [cell(rule, attack) for attack in ATTACKS]
        if set(cells) != {"–"}:
            lines.append([f"`{rule}`", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def run(
    shared: SharedInputs, rule: str, attack: str, split: str, seed: int, *, small: bool
) -> dict[str, Any]:
    """One federation from its file to its last round."""
    attacker = ATTACKS[attack]
    content: dict[str, Any] = {
        "federation": {"name": "robust", "seed": seed, "rounds": 1 if small else ROUNDS},
        "model": {"kind": "encoder", "path": str(CACHE / "minilm")},
        "adapter": {
            "kind": "lora", "rank": 4, "alpha": 8.0, "target_modules": ["query", "value"], "layers": [5],
        },
        "data": {
            "kind": "classification",
            "path": str(CACHE / "sentiment" / "train.jsonl"),
            "test": str(CACHE / "sentiment" / "test.jsonl"),
            "labels": ["negative", "positive"],
            "max_tokens": 20,
            "max_examples_per_client": 32,
            "partition": SPLITS[split],
        },
        "training": {
            "kind": "backprop", "epochs": 1.0, "batch_size": 16, "learning_rate": 5e-3,
            "head_learning_rate": 2e-2, "final_learning_rate_fraction": 0.1, "trunk_cache_mb": 256,
        },
        "codec": {"up": {"kind": "dense"}, "down": {"kind": "dense"}},
        "strategy": {"weighting": "equal", **RULES[rule]},
        "cohort": {"min_clients": CLIENTS},
        "evaluation": {"metric": "accuracy", "every": ROUNDS, "clients": False, "trunk_cache_mb": 256},
        "simulation": {"attackers": [attacker or HONEST]},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "federation.toml"
        file.write_text(tomli_w.dumps(content))
        loaded = load_federation(file)
        began = time.process_time()
        folder = RunFolder.create(Path(scratch) / "run", loaded, {"engine": "inprocess"})
        simulate(loaded, folder, opened=shared.open)
        took = time.process_time() - began
        lines = (Path(scratch) / "run" / "rounds.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    found = {"accuracy": last["test"]["accuracy"], "cpu_s": round(took, 1)}
    if "backdoor_success" in last["test"]:
        found["trigger"] = last["test"]["backdoor_success"]
    if "left_out" in last["merge"]:
        found["left_out"] = [json.loads(line)["merge"].get("left_out") for line in lines[1:]]
    return found


if __name__ == "__main__":
    main()
