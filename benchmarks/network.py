"""Headwater's daemon and agents beside Flower's own stack: latency, MB/s, memory; and hundreds of rounds.

    python benchmarks/network.py [--rounds 10] [--long 300] [--skip flower large memory long]

Real processes, TLS on Headwater's side, two clients without training. Flower's stack runs in the same
minutes on the same machine, in memory and without TLS. JSON, pictures and a table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flower_stack import FlowerStack, rounded
from picture import bars
from processes import Sampler, disk_bytes, rss_mib, tree

from headwater.config import load_federation
from headwater.files import read_lines
from headwater.simulation.network import LocalNetwork

LOAD_BEFORE = os.getloadavg()

RESULTS = Path(__file__).parent / "results"
MINILM = Path(__file__).parents[1] / ".cache" / "headwater" / "minilm"
LARGE = 12_500_000
"""Values: 50 MB."""
VECTOR = """
[federation]
name = "network"
rounds = {rounds}
[model]
kind = "vector"
size = {size}
[data]
kind = "none"
clients = 2
[training]
kind = "noop"
[codec.up]
kind = "dense"
[cohort]
min_clients = 2
[baselines]
alone = false
"""
TEXT = """
[federation]
name = "minilm"
rounds = 2
[model]
kind = "encoder"
path = "{model}"
[adapter]
kind = "lora"
rank = 8
[data]
kind = "classification"
path = "rows.jsonl"
test = "rows.jsonl"
labels = ["good", "bad"]
partition = {{ kind = "column", column = "owner" }}
[training]
kind = "backprop"
epochs = 1.0
batch_size = 4
[cohort]
min_clients = 2
[baselines]
alone = false
majority = false
"""
Look = Callable[[LocalNetwork, int], None]


def run(folder: Path, text: str, within_s: float, look: Look = lambda network, done: None) -> dict[str, Any]:
    """One federation on a daemon and two agents of its own; its rounds and its processes' memory."""
    folder.mkdir()
    (folder / "federation.toml").write_text(text)
    loaded = load_federation(folder / "federation.toml")
    peaks: dict[str, float] = {}
    with LocalNetwork(folder / "net") as network:
        network.add_owners(loaded)
        began = time.perf_counter()
        network.start_daemon()
        start_s, idle_mib = time.perf_counter() - began, rss_mib(network.daemon.pid)
        for agent in network.agents.values():
            agent.start()
        name = network.submit(loaded)
        rounds = network.run_folder(name) / "rounds.jsonl"

        def sample() -> None:
            kinds = [("daemon", network.daemon.pid)]
            for agent in network.agents.values():
                own, *children = tree(agent.pid)
                kinds += [("agent", own), *(("worker", child) for child in children)]
            for kind, pid in kinds:
                peaks[kind] = max(peaks.get(kind, 0.0), rss_mib(pid))
            look(network, len(read_lines(rounds)) - 1)

        with Sampler(sample, 0.5):
            *_, row = network.watch(name, within_s)
        if row.state != "finished":
            raise SystemExit(f"{row.state}: {row.reason}\n{network.daemon.tail(30)}")
        records = [json.loads(line) for line in read_lines(rounds)]
        sample()
        failures = json.loads((network.run_folder(name) / "summary.json").read_text())["failures_total"]
    seconds = [record["seconds"] for record in records[1:]]
    sizes = [record["bytes"]["up"] + record["bytes"]["down"] for record in records[1:]]
    return {
        "round_s": seconds,
        "round_s_median": round(statistics.median(seconds), 3),
        "mb_per_s": round(statistics.median(s / 1e6 / t for s, t in zip(sizes, seconds, strict=True)), 2),
        "bytes_per_round": sizes[-1],
        "failures": failures,
        "peak_rss_mib": {kind: round(peak) for kind, peak in peaks.items()},
        "daemon_idle_rss_mib": round(idle_mib),
        "daemon_start_s": round(start_s, 2),
    }


def flower(folder: Path, rounds: int, values: int, within_s: float) -> dict[str, Any]:
    """The same by Flower's own stack."""
    folder.mkdir()
    with FlowerStack(folder) as stack:
        seconds = stack.run(rounds, values, within_s)
    sizes = 4 * values * 4  # two clients, down and up
    return {
        "round_s": seconds,
        "round_s_median": round(statistics.median(seconds), 3),
        "mb_per_s": round(sizes / 1e6 / statistics.median(seconds), 2),
        "bytes_per_round": sizes,
        "peak_rss_mib": rounded(stack.peak_mib),
    }


def long(folder: Path, rounds: int, within_s: float) -> dict[str, Any]:
    """Memory and disk of the daemon over many rounds."""
    marks = sorted({max(1, rounds // 10), rounds // 2, rounds})
    seen: dict[int, dict[str, Any]] = {}

    def look(network: LocalNetwork, done: int) -> None:
        for mark in marks:
            if done >= mark and mark not in seen:
                runs = network.workspace.runs
                lines = sum(
                    p.stat().st_size for n in ("rounds", "versions") for p in runs.rglob(f"{n}.jsonl")
                )
                logs = disk_bytes(network.workspace.log.parent)
                disk = disk_bytes(network.workspace.path)
                seen[mark] = {
                    "round": done,
                    "daemon_rss_mib": round(rss_mib(network.daemon.pid), 1),
                    "disk_bytes": disk,
                    "of_it_lines_bytes": lines,
                    "logs_bytes": logs,
                    "rest_bytes": disk - lines - logs,
                }

    result = run(folder, VECTOR.format(rounds=rounds, size=1000), within_s, look)
    seconds = result.pop("round_s")
    tenth = max(1, rounds // 10)
    result |= {
        "rounds": rounds,
        "round_s_median_first_tenth": round(statistics.median(seconds[:tenth]), 3),
        "round_s_median_last_tenth": round(statistics.median(seconds[-tenth:]), 3),
        "after": list(seen.values()),
    }
    return result


def minilm(folder: Path) -> dict[str, Any]:
    """Memory with a real base model: MiniLM, 22 million parameters."""
    folder.mkdir()
    rows = [
        {"text": f"{word} thing number {i}", "label": label, "owner": f"owner-{i % 2}"}
        for i in range(40)
        for word, label in (("a good", "good"), ("a bad", "bad"))
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = TEXT.format(model=MINILM).replace('"rows.jsonl"', json.dumps(str(folder / "rows.jsonl")))
    return run(folder / "run", text, 200)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--long", type=int, default=300)
    parser.add_argument("--skip", nargs="*", default=[], choices=["flower", "large", "memory", "long"])
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "load_before": LOAD_BEFORE}
    result: dict[str, Any] = {"machine": machine}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        result["trivial"] = {
            "headwater": run(folder / "a", VECTOR.format(rounds=options.rounds, size=1000), 120)
        }
        _print("1,000 values, headwater", result["trivial"]["headwater"])
        if "flower" not in options.skip:
            result["trivial"]["flower"] = flower(folder / "b", 4, 1000, 120)
            _print("1,000 values, flower", result["trivial"]["flower"])
        if "large" not in options.skip:
            result["large"] = {"headwater": run(folder / "c", VECTOR.format(rounds=4, size=LARGE), 200)}
            _print("50 MB, headwater", result["large"]["headwater"])
            if "flower" not in options.skip:
                result["large"]["flower"] = flower(folder / "d", 3, LARGE, 150)
                _print("50 MB, flower", result["large"]["flower"])
        if "memory" not in options.skip and MINILM.exists():
            result["minilm"] = minilm(folder / "e")
            _print("MiniLM, headwater", result["minilm"])
        if "long" not in options.skip:
            result["long"] = long(folder / "f", options.long, 330)
            _print(f"{options.long} rounds, headwater", result["long"])
    for kind, faster in (("trivial", "round_s_median"), ("large", "round_s_median")):
        both = result.get(kind, {})
        if "flower" in both:
            both["flower_over_headwater"] = round(both["flower"][faster] / both["headwater"][faster], 1)
            print(f"{kind}: a round of Flower's takes {both['flower_over_headwater']} times as long")
    if not options.no_write:
        _write(result)


def _write(result: Mapping[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "network.json").write_text(json.dumps(result, indent=1) + "\n")
    both = result["trivial"]
    if "flower" in both:
        seconds = {name: both[name]["round_s"] for name in ("headwater", "flower")}
        title = "Two clients without training: seconds of a round"
        (RESULTS / "network.svg").write_text(bars(title, seconds, " s"))


def _print(title: str, row: Mapping[str, Any]) -> None:
    print(title, json.dumps({k: v for k, v in row.items() if k != "round_s" or len(v) <= 10}), flush=True)


if __name__ == "__main__":
    main()
