"""1,000 clients x 3 rounds without training: what the machinery costs. JSON, a picture and a table.

    python benchmarks/simulation.py [--clients 1000] [--rounds 3]

Two adapters: 1,000 values sent dense, and MiniLM's LoRA (73,728 values) sent with compeft and error
feedback. Each is a run of `headwater simulate` in a fresh process: time is that process's wall time, and its
CPU time, user and system; memory its peak resident set.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from picture import bars

RESULTS = Path(__file__).parent / "results"
FEDERATION = """
[federation]
name = "noop"
rounds = {rounds}
[model]
kind = "vector"
size = {size}
[data]
kind = "none"
clients = {clients}
[training]
kind = "noop"
[codec.up]
kind = "{codec}"
"""


def cpu_s() -> float:
    """User and system seconds of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(size: int, codec: str, clients: int, rounds: int) -> dict[str, Any]:
    """One run in a fresh process."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "federation.toml"
        file.write_text(FEDERATION.format(size=size, codec=codec, clients=clients, rounds=rounds))
        command = [
            sys.executable,
            "-m",
            "headwater",
            "simulate",
            str(file),
            "--out",
            f"{scratch}/run",
            "--quiet",
        ]
        started, before_s = time.perf_counter(), cpu_s()
        subprocess.run(command, check=True, capture_output=True)
        wall, used_s = time.perf_counter() - started, cpu_s() - before_s
        summary = json.loads(Path(scratch, "run", "summary.json").read_text())
    return {
        "values": size,
        "codec": codec,
        "clients": clients,
        "rounds": rounds,
        "wall_s": round(wall, 2),
        "cpu_s": round(used_s, 2),
        "rounds_s": summary["seconds"],
        "peak_rss_mib": round(summary["peak_rss_bytes"] / 2**20),
        "bytes_up": summary["bytes"]["up"],
        "bytes_up_dense": summary["bytes"]["up_dense"],
        "adapter_sha256": summary["adapter_sha256"],
    }


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    shapes = [(1000, "dense"), (73_728, "compeft")]
    rows = [measure(size, codec, options.clients, options.rounds) for size, codec in shapes]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "simulation.json").write_text(json.dumps(rows, indent=2) + "\n")
    times = {f"{row['values']:,} {row['codec']}": [row["wall_s"]] for row in rows}
    title = f"{options.clients:,} clients x {options.rounds} rounds without training: seconds of the process"
    (RESULTS / "simulation.svg").write_text(bars(title, times, " s"))
    for row in rows:
        print(
            f"{row['clients']} clients x {row['rounds']} rounds, {row['values']:,} values, {row['codec']}: "
            f"process {row['wall_s']} s, CPU {row['cpu_s']} s, rounds {row['rounds_s']} s, "
            f"peak {row['peak_rss_mib']} MiB, up {row['bytes_up']:,} bytes (dense {row['bytes_up_dense']:,})"
        )


if __name__ == "__main__":
    main()
