"""Energy per rank over 50 rounds where clients have different ranks: NumPy clients, JSON and a picture.

    python benchmarks/ranks.py

Eight clients of ranks 2, 2, 2, 2, 4, 4, 8 and 16 look for the same weight of 16 directions, each with noise
of its own, by gradient steps on ½‖B·A − W‖². Four ways to merge what they send:

* *redistributed*: each client gets the best of its rank, and the mean of the products is over all (FlexLoRA);
* *redistributed, rank-aware*: likewise, each component's mean over the clients that have it (raFLoRA);
* *all* and *holders*: space `product` with that `rank_weights`. A client works with the whole adapter, trains
  the components of its rank, and what is merged is how it changed the product.

Then one round of 16 clients of rank 16 on a weight of 4,096 x 14,336: CPU seconds, memory of the sums, and
how far the result is from the exact mean of the products, by the QR of all clients' factors side by side.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from picture import curves

from headwater.merging import ProductAggregator
from headwater.merging.plan import MergePlan, Update
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec

HERE = Path(__file__).parent
RANKS = (2, 2, 2, 2, 4, 4, 8, 16)
SIZE, TRUE, ROUNDS, STEPS, RATE, NOISE = 128, 16, 50, 20, 0.2, 0.02
BANDS = ((0, 2), (2, 4), (4, 8), (8, 16))
WAYS = ("redistributed", "redistributed, rank-aware", "all", "holders")

Matrix = npt.NDArray[np.float64]
SPEC = StateSpec.of(
    [
        TensorSpec("q.lora_A", (TRUE, SIZE), "lora_a"),
        TensorSpec("q.lora_B", (SIZE, TRUE), "lora_b", pair="q.lora_A"),
    ]
)


def main() -> None:
    """Run all ways with three seeds; write results/ranks.json and .svg."""
    runs = {way: [run(way, seed) for seed in range(3)] for way in WAYS}
    content = {
        "ranks": RANKS,
        "size": SIZE,
        "directions": TRUE,
        "local_steps": STEPS,
        "rate": RATE,
        "noise": NOISE,
        "rounds": [1, *range(5, ROUNDS + 1, 5)],
        "ways": {way: summary(found) for way, found in runs.items()},
    }
    content["large"] = large()
    (HERE / "results" / "ranks.json").write_text(json.dumps(content, indent=1) + "\n")
    tail = {
        way: np.mean([[r["energy"][-1] for r in rounds] for rounds in found], axis=0)
        for way, found in runs.items()
    }
    picture = curves(
        "Energy of directions 9 to 16, of 1, over the rounds", {w: list(v) for w, v in tail.items()}
    )
    (HERE / "results" / "ranks.svg").write_text(picture)
    print(content["large"])
    for way, rows in content["ways"].items():
        print(f"{way:28} error {rows['error']}  energy {rows['energy'][-1]}")


def summary(runs: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Means over the seeds: the final error with its spread, and the energy of each band in some rounds."""
    shown = [0, *range(4, ROUNDS, 5)]
    final = [rounds[-1]["error"] for rounds in runs]
    return {
        "error": round(float(np.mean(final)), 4),
        "error_spread": round(float(np.std(final)), 4),
        "rounds_to_half": [
            next((i + 1 for i, r in enumerate(rounds) if r["error"] < 0.5), None) for rounds in runs
        ],
        "energy": [
            [round(float(e), 4) for e in np.mean([r[i]["energy"] for r in runs], axis=0)] for i in shown
        ],
    }


def run(way: str, seed: int) -> list[dict[str, Any]]:
    """Error, and energy by band of ranks as a part of the true one, after each round."""
    rng = np.random.default_rng(seed)
    axes = [np.linalg.qr(rng.normal(size=(SIZE, TRUE)))[0] for _ in range(2)]
    sizes = np.linspace(1.0, 0.5, TRUE)
    truth = (axes[0] * sizes) @ axes[1].T
    wanted = [truth + NOISE / np.sqrt(SIZE) * rng.normal(size=truth.shape) for _ in RANKS]
    up, down = np.zeros((SIZE, TRUE)), rng.uniform(-1, 1, (TRUE, SIZE)) / np.sqrt(SIZE)
    found = []
    for number in range(1, ROUNDS + 1):
        sent = []
        for rank, target in zip(RANKS, wanted, strict=True):
            held = rank if way.startswith("redistributed") else TRUE
            sent.append(trained(up[:, :held], down[:held], rank, target))
        if way.startswith("redistributed"):
            up, down = redistributed(sent, down, aware=way.endswith("aware"))
        else:
            up, down = merged(up, down, sent, by_holders=way == "holders", number=number)
        product = up @ down
        # how much of each true direction is there; the energy of a band of ranks is that of its directions
        along = np.einsum("ik,ij,jk->k", axes[0], product, axes[1])
        energy = [float(np.square(along[a:b]).sum() / np.square(sizes[a:b]).sum()) for a, b in BANDS]
        found.append(
            {"error": float(np.linalg.norm(product - truth) / np.linalg.norm(truth)), "energy": energy}
        )
    return found


def trained(up: Matrix, down: Matrix, rank: int, target: Matrix) -> tuple[Matrix, Matrix]:
    """B and A after a client's gradient steps on their first ``rank`` components."""
    up, down = up.copy(), down.copy()
    for _ in range(STEPS):
        missing = target - up @ down
        more = missing @ down[:rank].T, up[:, :rank].T @ missing
        up[:, :rank] += RATE * more[0]
        down[:rank] += RATE * more[1]
    return up, down


def redistributed(sent: list[tuple[Matrix, Matrix]], before: Matrix, *, aware: bool) -> tuple[Matrix, Matrix]:
    """The best factors of the mean of the clients' products."""
    total = np.zeros((SIZE, SIZE))
    for k in range(TRUE):
        parts = [np.outer(up[:, k], down[k]) for up, down in sent if up.shape[1] > k]
        total += np.sum(parts, axis=0) / (len(parts) if aware else len(sent))
    u, s, vt = np.linalg.svd(total)
    root, there = np.sqrt(s[:TRUE]), s[:TRUE] > 1e-9 * s[0]
    return u[:, :TRUE] * (root * there), np.where(there[:, None], root[:, None] * vt[:TRUE], before)


def merged(
    up: Matrix, down: Matrix, sent: list[tuple[Matrix, Matrix]], *, by_holders: bool, number: int
) -> tuple[Matrix, Matrix]:
    """What :class:`ProductAggregator` makes of them."""
    base = state(up, down)
    plan = MergePlan(SPEC, {f"c{i}": 1 for i in range(len(RANKS))}, 16.0)
    plan = replace(plan, ranks={f"c{i}": rank for i, rank in enumerate(RANKS)})
    rule = ProductAggregator(base, key=Key.root(0).child(number), by_holders=by_holders)
    acc = rule.init(plan)
    for i, factors in enumerate(sent):
        acc = rule.add(acc, Update(f"c{i}", number, state(*factors) - base, examples=1))
    after = base + rule.finalize(acc).delta
    return after["q.lora_B"].double().numpy(), after["q.lora_A"].double().numpy()


def state(up: Matrix, down: Matrix) -> AdapterState:
    """The two factors as an adapter."""
    values = {"q.lora_A": torch.from_numpy(down).float(), "q.lora_B": torch.from_numpy(up).float()}
    return AdapterState(SPEC, values)


def large() -> dict[str, float]:
    """One round at the size of a large model's widest layer."""
    d_out, d_in, rank, clients, scaling = 4096, 14336, 16, 16, 2.0
    rng = np.random.default_rng(0)
    spec = StateSpec.of(
        [
            TensorSpec("q.lora_A", (rank, d_in), "lora_a"),
            TensorSpec("q.lora_B", (d_out, rank), "lora_b", pair="q.lora_A", scaling=scaling),
        ]
    )
    start = [rng.uniform(-1, 1, rank * d_in) / np.sqrt(d_in), 0.02 * rng.normal(size=rank * d_out)]
    base = AdapterState.from_vector(spec, torch.from_numpy(np.concatenate(start)).float())
    common = rng.normal(size=spec.numel)
    moves = [(common + rng.normal(size=spec.numel)) / 800 for _ in range(clients)]
    deltas = [AdapterState.from_vector(spec, torch.from_numpy(move).float()) for move in moves]
    plan = MergePlan(spec, {f"c{i:02}": 1 for i in range(clients)}, 16.0)
    rule = ProductAggregator(base, key=Key.root(0))
    times = [time.process_time()]
    acc = rule.init(plan)
    times.append(time.process_time())
    for name, delta in zip(plan.weights, deltas, strict=True):
        acc = rule.add(acc, Update(name, 1, delta, examples=1))
    times.append(time.process_time())
    after = base + rule.finalize(acc).delta
    times.append(time.process_time())

    def both(states: list[AdapterState], factor: float) -> tuple[Matrix, Matrix]:
        ups = [factor * scaling * s["q.lora_B"].double().numpy() for s in states]
        return np.hstack(ups), np.vstack([s["q.lora_A"].double().numpy() for s in states])

    def core(up: Matrix, down: Matrix) -> Matrix:
        found: Matrix = np.linalg.qr(up)[1] @ np.linalg.qr(down.T)[1].T
        return found

    mean, new = both([base + delta for delta in deltas], 1 / clients), both([after], -1.0)
    values = np.linalg.svd(core(*mean), compute_uv=False)
    missed = core(np.hstack([mean[0], new[0]]), np.vstack([mean[1], new[1]]))
    merged_values = scaling * np.square(after["q.lora_B"].double().numpy()).sum(axis=0)
    sums = acc.products["q.lora_B"]
    return {
        "init_cpu_s": round(times[1] - times[0], 3),
        "add_cpu_s": round((times[2] - times[1]) / clients, 3),
        "finalize_cpu_s": round(times[3] - times[2], 3),
        "sums_mib": round(sum(p.nbytes for p in (sums.right, sums.left) if p is not None) / 2**20, 1),
        "singular_values_off": float(np.abs(merged_values - values[:rank]).max() / values[0]),
        "error_over_best": float(np.linalg.norm(missed) / np.sqrt(np.square(values[rank:]).sum())),
    }


if __name__ == "__main__":
    main()
