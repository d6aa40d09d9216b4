"""What attackers learn, with and without noise: writes results/attacks.json and attacks.svg.

*adapters*: half of the owners are in each run, drawn so that each is in half of the runs. Who reads the last
adapter guesses which rows and which owners were in, by a loss threshold and by LiRA: each run is
attacked with the others as shadows. A further run has canaries among its owners, for a lower bound of ε.
*updates*: a server guesses an owner's rows by how much its update lowers their loss, with and without DP-SGD.
*text*: ``attacks_text.py``.

*prompts*: *adapters* with a soft prompt.

Trainer, clip, sum and noise are the product's; noise is drawn from the seed. LoRA's B, or eight tokens, and a
head on MiniLM's first two layers are trained: what is compared is noise, not models. One thread.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from attacks_text import text_attacks
from picture import bars
from transformers import AutoModel, AutoTokenizer

from headwater.config import load_federation
from headwater.config.codec import DenseCodec
from headwater.config.privacy import ExamplePrivacy
from headwater.merging.plan import MergePlan, PrivateSum, Update
from headwater.privacy.accounting import noise_multiplier_for
from headwater.privacy.audit.canaries import audit_canaries
from headwater.privacy.audit.lira import likelihood_ratios, log_odds
from headwater.privacy.audit.membership import Membership
from headwater.privacy.events import PoissonSample
from headwater.privacy.noise import ReproducibleRandomness
from headwater.protocol.messages import ClientPlan
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.strategies.private_sum import NoisedSum, independent
from headwater.tasks.batches import Example, collate
from headwater.training.cohort import TrainTask
from headwater.training.context import TrainingContext

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "attacks.json"
TABLES = HERE.parent / "results" / "attacks.md"
CACHE = HERE.parent / ".cache" / "headwater"
DATA = CACHE / "sentiment"
EPSILONS: tuple[float | None, ...] = (None, 8.0, 4.0, 1.0)
OWNERS, ROWS, RUNS, ROUNDS, RATE = 120, 6, 6, 5, 0.3
CLIP, DELTA, CANARIES = 0.5, 1e-5, 1000
CLIENTS, CANDIDATES, ROW_DELTA = 12, 60, 1e-4
PARTS = ("adapters", "prompts", "updates", "text")
PROMPT_EPSILONS = (None, 4.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--small", action="store_true", help="a trial that is written nowhere")
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    for part in given.part:
        began = time.process_time()
        if part == "text":
            found: Any = text_attacks(small=given.small)
        else:
            with tempfile.TemporaryDirectory() as scratch:
                setting = Setting.open(Path(scratch), PROMPT if part == "prompts" else {})
                measure = updates if part == "updates" else adapters
                epsilons = PROMPT_EPSILONS if part == "prompts" else EPSILONS
                found = {str(e or "none"): measure(setting, e, given.small) for e in epsilons}
        took = round(time.process_time() - began, 1)
        print(part, took, json.dumps(found), flush=True)
        if not given.small:
            write(part, {"cpu_s": took, "found": found})


def write(part: str, content: dict[str, Any]) -> None:
    """A part's results beside the others', and the picture."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"torch": torch.__version__}
    known[part] = content
    RESULTS.write_text(json.dumps(known, indent=1) + "\n")
    shown = {}
    for which, name in (("adapters", "owners_by_loss"), ("adapters", "rows_by_loss"), ("updates", "update")):
        for epsilon, found in known.get(which, {}).get("found", {}).items():
            who = name.removesuffix("_by_loss")
            label = f"{who}, ε {epsilon}" if epsilon != "none" else f"{who}, no noise"
            shown[label] = [100 * found[name]["auc"][0]]
    if shown:
        title = "How often a member stands above a stranger, in %: 50 is chance"
        RESULTS.with_suffix(".svg").write_text(bars(title, shown))
    TABLES.write_text(tables(known))


def tables(known: dict[str, Any]) -> str:
    """All that was measured, for people."""
    lines = ["# Attacks", "", "Written by `make bench-attacks`. In brackets: intervals of 95 %.", ""]
    for part in ("adapters", "prompts"):
        if not (found := known.get(part, {}).get("found")):
            continue
        lines += [
            *([""] if part == "prompts" else []),
            f"**Released {part}**: {OWNERS} owners of {ROWS} rows, half of them in each of {RUNS} runs,"
            f" {ROUNDS} rounds, q {RATE}, δ {DELTA:g}; {CANARIES} canaries in a run of their own.",
            "",
            "| ε | accuracy | rows by loss: AUC | TPR at 1 % FPR | owners by loss: AUC | TPR at 1 % FPR "
            "| LiRA, rows: AUC | LiRA, owners: AUC | canaries: ε at least | if Gaussian | estimate |",
            "|---" * 11 + "|",
        ]
        for epsilon, one in found.items():
            lines.append(
                f"| {epsilon} | {np.mean(one['accuracy']):.3f} | "
                + " | ".join(
                    span(one[side][what] if what == "auc" else list(one[side]["tpr"].values())[1])
                    for side in ("rows_by_loss", "owners_by_loss")
                    for what in ("auc", "tpr")
                )
                + f" | {lira(one, 'rows')} | {lira(one, 'owners')} | "
                + " | ".join(f"{one['canaries'][name]:.2f}" for name in ("epsilon", "gaussian", "estimate"))
                + " |"
            )
    if found := known.get("updates", {}).get("found"):
        lines += [
            "",
            f"**One owner's update**, {CLIENTS} owners of {CANDIDATES // 2} rows, 4 epochs, δ {ROW_DELTA:g}.",
            "",
            "| ε of a row | AUC | TPR at 1 % FPR |",
            "|---|---|---|",
        ]
        for epsilon, one in found.items():
            update = one["update"]
            lines.append(f"| {epsilon} | {span(update['auc'])} | {span(list(update['tpr'].values())[1])} |")
    if cases := known.get("text", {}).get("found"):
        lines += [
            "",
            "**Tokens read out of one update** of the first layer's LoRA, rank 8 on q and v: of the distinct "
            "tokens, and in brackets of those said.",
            "",
            "| update | rows × tokens | read | as many as there are, ranked |",
            "|---|---|---|---|",
        ]
        for one in cases:
            lines.append(
                f"| {one['case']} | {one['rows']} × {one['tokens']} | {one['read']:.2f} ({one['right']:.2f}) "
                f"| {one['ranked']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def lira(one: dict[str, Any], side: str) -> str:
    return span(one[side]["auc"]) if side in one else "not measured"


def span(interval: Sequence[float]) -> str:
    value, low, high = interval
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


@dataclass
class Setting:
    """Model, trainer and rows of all parts."""

    context: TrainingContext
    rows: list[Example]
    test: list[Example]

    @staticmethod
    def open(folder: Path, changes: dict[str, Any]) -> Setting:
        file, base = folder / "federation.toml", {"kind": "encoder", "path": str(first_layers(folder))}
        file.write_text(tomli_w.dumps({**FILE, **changes, "model": base}))
        context = TrainingContext.open(load_federation(file))
        return Setting(context, read(context, "train", OWNERS * ROWS), read(context, "test", 200))

    def losses(self, state: AdapterState, rows: list[Example]) -> np.ndarray:
        """Of each row."""
        model = self.context.model
        model.load(state)
        batches = (collate(rows[start : start + 60], self.context.pad) for start in range(0, len(rows), 60))
        with torch.inference_mode():
            return torch.cat([model.forward(batch).losses for batch in batches]).double().numpy()

    def train(self, tasks: list[TrainTask], key: Key) -> list[AdapterState]:
        results = list(self.context.trainer(tasks[0].plan.training).train(tasks, key=key)) if tasks else []
        for result in results:
            assert result.error is None, result.error
        return [result.delta for result in results]

    def task(self, name: str, state: AdapterState, rows: list[Example], **changes: object) -> TrainTask:
        training = self.context.loaded.settings.training.model_copy(update=changes)
        return TrainTask(name, state, rows, ClientPlan(training, DenseCodec(kind="dense")))


def first_layers(folder: Path) -> Path:
    """The base: MiniLM with its first two layers."""
    AutoModel.from_pretrained(CACHE / "minilm", num_hidden_layers=2).save_pretrained(folder)
    AutoTokenizer.from_pretrained(CACHE / "minilm").save_pretrained(folder)
    return folder


def read(context: TrainingContext, which: str, count: int) -> list[Example]:
    """Rows drawn from all domains."""
    lines = [json.loads(line) for line in (DATA / f"{which}.jsonl").read_text().splitlines()]
    chosen = np.random.default_rng(17).permutation(len(lines))[:count]
    tokens = [context.tokenizer.encode(lines[i]["text"], 16) for i in chosen]
    labels = [int(lines[i]["label"] == "positive") for i in chosen]
    return [Example(np.array(t, np.int32), np.array([y])) for t, y in zip(tokens, labels, strict=True)]


def silent(what: str, multiplier: float, longest: float, size: int) -> tuple[np.ndarray, int]:
    """No noise."""
    return np.zeros(size, np.int64), 1


def federated(
    setting: Setting,
    inside: np.ndarray,
    multiplier: float | None,
    key: Key,
    canaries: np.ndarray | None = None,
) -> AdapterState:
    """DP-FedAvg over the owners marked; canaries are owners that add the clip to a value of their own."""
    state, spec = setting.context.initial_state(), setting.context.spec
    count = 0 if canaries is None else len(canaries)
    places = key.child("places").numpy().permutation(spec.numel)[:count]
    expected = RATE * OWNERS / 2
    # without noise nothing is clipped either
    private = PrivateSum(1e3 if multiplier is None else CLIP, multiplier or 1.0, expected)
    for number in range(ROUNDS):
        now = key.child("round", number)
        randomness = ReproducibleRandomness(now.child("noise"))
        rule = NoisedSum(silent if multiplier is None else independent(randomness))
        drawn = now.child("cohort").numpy().random(OWNERS + count) < RATE
        names = {f"o{i}": 1 for i in range(OWNERS)} | {f"c{i}": 1 for i in range(count)}
        acc = rule.init(MergePlan(spec, names, 1e6, private=private))
        who = np.flatnonzero(inside & drawn[:OWNERS])
        tasks = [setting.task(f"o{i}", state, setting.rows[i * ROWS : (i + 1) * ROWS]) for i in who]
        sent = list(zip([t.client for t in tasks], setting.train(tasks, now), strict=True))
        for i in range(count):
            if canaries[i] and drawn[OWNERS + i]:
                values = torch.zeros(spec.numel)
                values[places[i]] = CLIP
                sent.append((f"c{i}", AdapterState.from_vector(spec, values)))
        for name, delta in sent:
            acc = rule.add(acc, Update(name, 1, delta, 1, 1, {}, {}))
        state = state + rule.finalize(acc).delta
    return state


def adapters(setting: Setting, epsilon: float | None, small: bool) -> dict[str, Any]:
    """What the reader of the last adapter gets."""
    runs = 4 if small else RUNS
    multiplier = epsilon and noise_multiplier_for(epsilon, DELTA, ROUNDS, PoissonSample(RATE))
    draw = np.random.default_rng(3)
    inside = np.argsort(draw.random((runs, OWNERS)), axis=0) < runs // 2
    losses, accuracy = [], []
    for run in range(runs):
        state = federated(setting, inside[run], multiplier, Key.root(run))
        losses.append(setting.losses(state, setting.rows))
        accuracy.append(setting.context.evaluate(state, setting.test)[1]["accuracy"])
    rows_in = np.repeat(inside, ROWS, axis=1)
    ratios = likelihood_ratios(log_odds(np.array(losses)), rows_in)
    by_owner = ratios.reshape(runs, OWNERS, ROWS).sum(2)
    plain = -np.array(losses)
    coins = draw.random(CANARIES) < 0.5
    start = setting.context.initial_state()
    key = Key.root(99)
    last = federated(setting, inside[0], multiplier, key, coins)
    places = key.child("places").numpy().permutation(setting.context.spec.numel)[:CANARIES]
    moved = (last.vector().double() - start.vector().double()).numpy()[places]
    return {
        "multiplier": multiplier,
        "values": setting.context.spec.numel,
        "accuracy": accuracy,
        "rows": told(ratios, rows_in),
        "rows_by_loss": told(plain, rows_in),
        "owners": told(by_owner, inside),
        "owners_by_loss": told(plain.reshape(runs, OWNERS, ROWS).mean(2), inside),
        "canaries": asdict(audit_canaries(moved, coins, DELTA)),
    }


def updates(setting: Setting, epsilon: float | None, small: bool) -> dict[str, Any]:
    """What a server gets from one owner's update: by how much it lowers each candidate's loss."""
    changes: dict[str, Any] = {"epochs": 4.0, "batch_size": 10}
    members = CANDIDATES // 2
    if epsilon is not None:
        steps = setting.task("a", setting.context.initial_state(), [], **changes).plan.training.steps(members)
        z = noise_multiplier_for(epsilon, ROW_DELTA, steps, PoissonSample(10 / members))
        changes["privacy"] = ExamplePrivacy(noise_multiplier=z, delta=ROW_DELTA, noise="reproducible")
    scores, inside, start = [], [], setting.context.initial_state()
    for client in range(2 if small else CLIENTS):
        rows = setting.rows[client * CANDIDATES : (client + 1) * CANDIDATES]
        marked = np.random.default_rng(client).permutation(CANDIDATES) < members
        own = [row for row, mark in zip(rows, marked, strict=True) if mark]
        (delta,) = setting.train([setting.task("a", start, own, **changes)], Key.root(client))
        scores.append(setting.losses(start, rows) - setting.losses(start + delta, rows))
        inside.append(marked)
    return {"update": told(np.array(scores), np.array(inside)), "multiplier": epsilon and z}


def told(scores: np.ndarray, inside: np.ndarray) -> dict[str, Any]:
    return asdict(Membership.of(scores[inside], scores[~inside]))


FILE: dict[str, Any] = {
    "federation": {"name": "attacks", "seed": 17, "rounds": ROUNDS, "threads": 1},
    "adapter": {"kind": "lora", "rank": 2, "alpha": 4.0, "target_modules": ["query", "value"], "layers": [1]},
    "data": {
        "kind": "classification", "path": str(DATA / "train.jsonl"), "labels": ["negative", "positive"],
        "max_tokens": 16, "validation_fraction": 0.0, "partition": {"kind": "iid", "clients": 1},
    },
    "training": {
        "kind": "backprop", "epochs": 3.0, "batch_size": ROWS, "learning_rate": 3e-3,
        "head_learning_rate": 1e-2, "trunk_cache_mb": 64,
    },
    "strategy": {"kind": "mean", "weighting": "equal", "space": "ffa"},
}  # fmt: skip
PROMPT: dict[str, Any] = {
    "adapter": {"kind": "prompt", "tokens": 8},
    "training": {**FILE["training"], "learning_rate": 3e-2},
    "strategy": {"kind": "mean", "weighting": "equal"},
}

if __name__ == "__main__":
    main()
