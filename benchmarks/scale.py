"""What a round costs by how many clients are registered and how many are asked. JSON, pictures and a table.

    python benchmarks/scale.py [--rounds 2] [--small]

Each row is a run of `headwater simulate` in a fresh process, without training: 1,000 values, compeft and
error feedback, so that every client that was asked keeps something. The last rows deal 300,000 rows of a file
to 100,000 clients. CPU seconds are user and system of that process, memory its peak resident set.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from picture import bars

RESULTS = Path(__file__).parent / "results"
SHAPES = ((1_000, 10), (1_000, 1_000), (10_000, 10), (10_000, 1_000), (100_000, 10), (100_000, 1_000))
"""Clients registered and clients asked in a round."""
DEALT = ("iid", "quantity")
FEDERATION = """
[federation]
name = "scale"
rounds = {rounds}
[model]
kind = "vector"
size = 1000
[data]
kind = "none"
clients = {registered}
[cohort]
clients_per_round = {asked}
[training]
kind = "noop"
"""
DEAL = """
import sys
from pathlib import Path
from headwater.config import load_federation
from headwater.data.federated import FederatedData
from headwater.process_memory import status_bytes
from headwater.seeds.keys import Key
data = FederatedData.open(load_federation(Path(sys.argv[1])), None, Key.root(0), check=False)
rows = [sum(data.rows(name)) for name in data.clients]
print(len(rows), min(rows), max(rows), status_bytes("VmHWM"))
"""
DEALING = """
[federation]
name = "deal"
rounds = 1
[model]
kind = "encoder"
path = "none"
[adapter]
kind = "lora"
[data]
kind = "classification"
path = "rows.csv"
labels = ["bad", "good"]
validation_fraction = 0.3
partition = {{ kind = "{kind}", clients = {clients}{more} }}
[training]
kind = "backprop"
"""


def measured(command: list[str]) -> tuple[float, float, str]:
    """Wall and CPU seconds of a command, and what it wrote."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        child = subprocess.Popen(command, stdout=out)
        _, status, used = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"{command}: ended with {os.waitstatus_to_exitcode(status)}")
        out.seek(0)
        return time.perf_counter() - started, used.ru_utime + used.ru_stime, out.read()


def simulated(registered: int, asked: int, rounds: int) -> dict[str, Any]:
    """One run."""
    with tempfile.TemporaryDirectory() as scratch:
        file, out = Path(scratch) / "federation.toml", Path(scratch) / "run"
        file.write_text(FEDERATION.format(registered=registered, asked=asked, rounds=rounds))
        command = [sys.executable, "-m", "headwater", "simulate", str(file), "--out", str(out), "--quiet"]
        wall_s, cpu_s, _ = measured(command)
        summary = json.loads((out / "summary.json").read_text())
        clients = list((out / "state" / "clients").iterdir())
        page = (out / "report.html").stat().st_size
    return {
        "registered": registered,
        "asked": asked,
        "rounds": rounds,
        "wall_s": round(wall_s, 2),
        "cpu_s": round(cpu_s, 2),
        "rounds_s": summary["seconds"],
        "peak_rss_mib": round(summary["peak_rss_bytes"] / 2**20),
        "files_of_clients": len(clients),
        "page_kib": page // 1024,
        "adapter_sha256": summary["adapter_sha256"],
    }


def dealt(kind: str, clients: int, rows: int) -> dict[str, Any]:
    """Rows of a file dealt to clients and split, without a model."""
    more = ", alpha = 100.0, min_examples = 1" if kind == "quantity" else ""
    with tempfile.TemporaryDirectory() as scratch:
        with Path(scratch, "rows.csv").open("w") as file:
            file.write("text,label\n")
            file.writelines(f"the movie number {i},{('bad', 'good')[i % 2]}\n" for i in range(rows))
        Path(scratch, "f.toml").write_text(DEALING.format(kind=kind, clients=clients, more=more))
        wall_s, cpu_s, said = measured([sys.executable, "-c", DEAL, f"{scratch}/f.toml"])
    found, least, most, peak = map(int, said.split())
    return {
        "dealt": kind,
        "rows": rows,
        "clients": found,
        "fewest": least,
        "most": most,
        "wall_s": round(wall_s, 2),
        "cpu_s": round(cpu_s, 2),
        "peak_rss_mib": round(peak / 2**20),
    }


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="a tenth of the clients, to try it")
    options = parser.parse_args()
    part = 10 if options.small else 1
    runs = [simulated(n // part, min(k, n // part), options.rounds) for n, k in SHAPES]
    for row in runs:
        print(
            f"{row['registered']:,} registered, {row['asked']:,} asked, {row['rounds']} rounds: "
            f"CPU {row['cpu_s']} s, process {row['wall_s']} s, rounds {row['rounds_s']} s, "
            f"peak {row['peak_rss_mib']} MiB, {row['files_of_clients']} file, page {row['page_kib']} KiB"
        )
    deals = [dealt(kind, 100_000 // part, 300_000 // part) for kind in DEALT]
    for row in deals:
        print(
            f"{row['rows']:,} rows dealt to {row['clients']:,} clients ({row['dealt']}, {row['fewest']} to "
            f"{row['most']}): CPU {row['cpu_s']} s, peak {row['peak_rss_mib']} MiB"
        )
    if options.small:
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "scale.json").write_text(json.dumps({"runs": runs, "deals": deals}, indent=2) + "\n")
    for name, key, unit in (("cpu", "cpu_s", "s"), ("memory", "peak_rss_mib", "MiB")):
        shown = {f"{r['asked']:,} of {r['registered']:,}": [float(r[key])] for r in runs}
        title = f"{options.rounds} rounds without training, by clients asked and registered: {unit}"
        (RESULTS / f"scale-{name}.svg").write_text(bars(title, shown, f" {unit}"))


if __name__ == "__main__":
    main()
