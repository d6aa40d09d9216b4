"""Whole rounds of clients trained as batches: both cores, overhead and memory. For ``cohorts.py``."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cohort_steps
import numpy as np
import torch
from cohort_steps import COHORT, FEDERATION, MINILM

from headwater.config import load_federation
from headwater.server.events import Event, RoundEnded, RoundStarted
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.simulate import simulate

BATCH, TOKENS, STEPS, CLIENTS, ROUNDS = 2, 16, 4, 100, 3
ROUNDS_OF = """\
max_tokens = {tokens}
partition = {{ kind = "column", column = "owner" }}
[training]
kind = "backprop"
batch_size = {batch}
max_steps = {steps}
[codec.up]
kind = "dense"
[cohort]
clients_per_round = {asked}
[evaluation]
every = 0
clients = false
"""


@contextmanager
def federation(clients: int, *, asked: int = 0, rounds: int = ROUNDS, steps: int = STEPS) -> Iterator[Path]:
    """A federation file of so many clients, each with as many rows of 16 tokens as it trains on."""
    words = [
        line
        for line in (MINILM / "vocab.txt").read_text(encoding="utf-8").splitlines()
        if line.isascii() and line.isalpha()
    ]
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        with (path / "rows.jsonl").open("w") as file:
            for client in range(clients):
                for _ in range(BATCH * steps):
                    text = " ".join(words[i] for i in draw.integers(0, len(words), TOKENS - 2))
                    row = {"text": text, "label": "abc"[draw.integers(3)], "owner": f"c{client:04}"}
                    file.write(json.dumps(row) + "\n")
        asked = asked or clients
        text = (FEDERATION + ROUNDS_OF).format(
            model=MINILM, rounds=rounds, tokens=TOKENS, batch=BATCH, steps=steps, asked=asked
        )
        (path / "federation.toml").write_text(text)
        yield path / "federation.toml"


def ran(file: Path, *, cohort: int, workers: int = 1) -> dict[str, Any]:
    """A run in a fresh process: seconds of its rounds and of the process, peak MiB, adapter."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "headwater", "simulate", str(file), "--out", f"{out}/run", "--quiet"]
        command += ["--workers", str(workers), "--set", f"simulation.cohort={cohort}"]
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        process_s = time.perf_counter() - began
        lines = Path(out, "run", "rounds.jsonl").read_text().splitlines()
        summary = json.loads(Path(out, "run", "summary.json").read_text())
    seconds = [json.loads(line)["seconds"] for line in lines[1:]]
    return {
        "rounds_s": [round(s, 3) for s in seconds],
        "process_s": round(process_s, 2),
        "peak_mib": round(summary["peak_rss_bytes"] / 2**20),
        "adapter_sha256": summary["adapter_sha256"],
    }


def bare_s(clients: int = 12) -> float:
    """Seconds that the bare loop on one thread takes for 100 clients, from those of a few."""
    context = cohort_steps.opened()
    tasks = cohort_steps.clients(context, BATCH, TOKENS, count=clients)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        cohort_steps.bare(context, tasks, BATCH)
        times.append((time.perf_counter() - began) * CLIENTS / clients)
    return statistics.median(times[1:])


def both_cores() -> dict[str, Any]:
    """Rounds of 100 clients, by the number of workers, with cohorts and without."""
    before = bare_s()
    with federation(CLIENTS) as file:
        runs = {
            f"{'cohorts' if cohort > 1 else 'one by one'}, {workers} worker{'s' if workers > 1 else ''}": ran(
                file, cohort=cohort, workers=workers
            )
            for cohort, workers in ((COHORT, 2), (COHORT, 1), (1, 2))
        }
    loop = (before + bare_s()) / 2
    medians = {name: statistics.median(run["rounds_s"]) for name, run in runs.items()}
    two = medians["cohorts, 2 workers"]
    return {
        "bare_loop_s": round(loop, 2),
        "runs": runs,
        "round_s": {name: round(value, 2) for name, value in medians.items()},
        "against_the_loop": {name: round(loop / value, 2) for name, value in medians.items()},
        "against_one_by_one_on_both": round(medians["one by one, 2 workers"] / two, 2),
        "same_bits": len({run["adapter_sha256"] for name, run in runs.items() if "cohorts" in name}) == 1,
    }


def overhead() -> dict[str, Any]:
    """Of a round in one process: the share of its time outside torch's operators, by torch's profiler."""
    torch.set_num_threads(1)
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    times: dict[str, float] = {}

    def watch(event: Event) -> None:
        if isinstance(event, RoundStarted) and event.round == 2:  # the first warms up
            profiler.start()
            times["began"] = time.perf_counter()
        elif isinstance(event, RoundEnded) and event.round == 2:
            times["ended"] = time.perf_counter()
            profiler.stop()
        elif isinstance(event, RoundStarted) and event.round == 3:
            times["plain_began"] = time.perf_counter()
        elif isinstance(event, RoundEnded) and event.round == 3:
            times["plain_ended"] = time.perf_counter()

    with federation(2 * COHORT) as file, tempfile.TemporaryDirectory() as out:
        loaded = load_federation(file, (f"simulation.cohort={COHORT}",))
        simulate(loaded, RunFolder.create(Path(out) / "run", loaded, {}), observer=watch)
    wall = times["ended"] - times["began"]
    inside = sum(e.self_cpu_time_total for e in profiler.key_averages() if e.key.startswith("aten::")) / 1e6
    slowest = sorted(profiler.key_averages(), key=lambda e: -e.self_cpu_time_total)[:8]
    return {
        "round_s": round(wall, 3),
        "unprofiled_round_s": round(times["plain_ended"] - times["plain_began"], 3),
        "in_operators_s": round(inside, 3),
        "share_outside": round(1 - inside / wall, 3),
        "largest": {e.key: round(e.self_cpu_time_total / 1e6 / wall, 3) for e in slowest},
    }


def memory() -> dict[str, Any]:
    """Peak resident set with 10, with one batch, and with all of 1,000 clients a round, one step each.

    In batches of 16 and of 32: a step takes as long in both, but what a batch holds is twice as much.
    """
    found: dict[str, Any] = {}
    for cohort in (COHORT // 2, COHORT):
        peaks = {}
        for asked in (10, cohort, 1000):
            with federation(1000, asked=asked, rounds=1, steps=1) as file:
                peaks[asked] = ran(file, cohort=cohort)["peak_mib"]
        found[f"batches of {cohort}"] = {
            "peak_mib": {str(asked): peak for asked, peak in peaks.items()},
            "of_10": round(peaks[1000] / peaks[10], 3),
            "of_one_batch": round(peaks[1000] / peaks[cohort], 3),
        }
    return found
