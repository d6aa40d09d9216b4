"""Many agents against one daemon process, without training: rounds/minute, MB/s, requests/s, memory.

    python benchmarks/load.py [--agents 50 200 500] [--rounds 10] [--speakers 2] [--no-payloads] [--attribute]

Agents speak over TLS with keys and signatures of their own, from a few processes (:mod:`load_agents`). First
the number of agents grows with an adapter of 20,000 values sent with compeft; then a few agents send large
dense ones. JSON, a picture and a table. With ``--attribute`` the daemon's objects and its
nonces are counted after rounds 2 and the last too, which costs time: its timings are not those of a plain
run.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from picture import bars
from processes import Sampler, cpu_s, rss_mib

from headwater.config.load import load_federation
from headwater.files import read_lines
from headwater.security.enrolment import make_request, read_request
from headwater.security.signing import Identity
from headwater.simulation.network import LocalNetwork

LOAD_BEFORE = os.getloadavg()

RESULTS = Path(__file__).parent / "results"
FEDERATION = """
[federation]
name = "load"
rounds = {rounds}
[model]
kind = "vector"
size = {size}
[data]
kind = "none"
clients = {agents}
[training]
kind = "noop"
[codec.up]
kind = "{codec}"
[cohort]
min_clients = {agents}
[baselines]
alone = false
"""
PAYLOADS = {2_500: 16, 250_000: 8, 2_500_000: 4}
"""Values (10 KB, 1 MB, 10 MB dense) and how many agents send them."""
WITHIN_S = 280.0


@contextlib.contextmanager
def spoken_for(
    agents: int, file: str, speakers: int, *, probe: bool = False, pace_s: float = 0.0
) -> Iterator[Speaking]:
    """A fresh daemon with a run submitted, and processes that speak for the agents until the context ends.

    Args:
        agents: how many are enrolled and spoken for.
        file: the federation.
        speakers: processes that share them.
        probe: let the daemon tell what lives in it.
        pace_s: how long an agent waits before it answers.
    """
    with tempfile.TemporaryDirectory() as scratch, LocalNetwork(Path(scratch) / "net") as network:
        folder = network.folder
        names = [f"client-{i:04}" for i in range(agents)]
        registry = network.workspace.registry()
        for name in names:
            identity = Identity.create(name)
            identity.save(folder / "keys" / name)
            registry.accept(read_request(make_request(identity)))
        ca = folder / "ca.pem"
        ca.write_bytes(network.workspace.credentials.ca())
        facts = {"server": f"localhost:{network.ports[0]}", "ca": str(ca), "names": names, "pace_s": pace_s}
        (folder / "load.json").write_text(json.dumps(facts))
        (folder / "federation.toml").write_text(file)
        probe_file = folder / "probe.json" if probe else None
        if probe_file is not None:
            path = str(Path(__file__).with_name("probe"))
            network.daemon.environment = {"PYTHONPATH": path, "HEADWATER_PROBE": str(probe_file)}
        began = time.perf_counter()
        network.start_daemon()
        start_s, start_rss = time.perf_counter() - began, rss_mib(network.daemon.pid)
        run = network.submit(load_federation(folder / "federation.toml"))
        edges = [agents * i // speakers for i in range(speakers + 1)]
        speaker = str(Path(__file__).with_name("load_agents.py"))
        generators = [
            subprocess.Popen([sys.executable, speaker, str(folder), str(a), str(b)], stdout=subprocess.PIPE)
            for a, b in itertools.pairwise(edges)
        ]
        speaking = Speaking(network, run, generators, probe_file, start_s, start_rss)
        try:
            yield speaking
        finally:
            for generator in generators:
                generator.send_signal(signal.SIGTERM)
            speaking.said = [json.loads(g.communicate(timeout=60)[0] or "null") for g in generators]


@dataclass
class Speaking:
    """What :func:`spoken_for` started; ``said`` is there when the speakers have ended."""

    network: LocalNetwork
    run: str
    generators: list[subprocess.Popen[bytes]]
    probe: Path | None
    start_s: float
    start_rss_mib: float
    said: list[dict[str, Any]] = field(default_factory=list)


def measure(
    agents: int, rounds: int, size: int, codec: str, speakers: int, *, attribute: bool = False
) -> dict[str, Any]:
    """One run of a fresh daemon."""
    file = FEDERATION.format(rounds=rounds, size=size, agents=agents, codec=codec)
    with spoken_for(agents, file, speakers, probe=attribute) as speaking:
        network, run = speaking.network, speaking.run
        seen = _follow(network, run, speaking.generators, rounds, speaking.probe)
        with network.control() as control:
            refused = dict(control.status().refused)
        summary = json.loads((network.run_folder(run) / "summary.json").read_text())
    return _row(agents, size, codec, summary, seen, speaking.said, refused) | {
        "daemon_start_s": round(speaking.start_s, 2),
        "daemon_start_rss_mib": round(speaking.start_rss_mib),
    }


def _follow(
    network: LocalNetwork,
    run: str,
    generators: list[subprocess.Popen[bytes]],
    rounds: int,
    probe: Path | None,
) -> dict[str, Any]:
    """Wait for the run's end; when each round ended, and the daemon's memory and CPU at that moment."""
    rounds_file, pid = network.run_folder(run) / "rounds.jsonl", network.daemon.pid
    ends: list[tuple[float, float, float, float]] = []
    peak = [0.0]
    inside: dict[str, Any] = {}

    def look() -> None:
        peak[0] = max(peak[0], rss_mib(pid))
        done = len(read_lines(rounds_file))
        if done > len(ends):
            busy = sum(cpu_s(g.pid) for g in generators)
            now = (time.monotonic(), rss_mib(pid), cpu_s(pid), busy)
            ends.extend([now] * (done - len(ends)))
            if probe is not None:
                for mark in (2, rounds):
                    if len(ends) > mark and str(mark) not in inside:
                        inside[str(mark)] = ask(pid, probe) | {"rss_mib": round(rss_mib(pid), 1)}

    with Sampler(look, 0.1):
        *_, row = network.watch(run, WITHIN_S)
    look()
    if row.state != "finished":
        raise SystemExit(f"{row.state}: {row.reason}\n{network.daemon.tail(30)}")
    records = [json.loads(line) for line in read_lines(rounds_file)]
    return {"ends": ends, "peak": peak[0], "records": records, "inside": inside}


def ask(pid: int, probe: Path) -> dict[str, Any]:
    """What the daemon says lives in it; empty if it does not answer."""
    probe.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR1)
    ends_s = time.monotonic() + 10
    while not probe.exists() and time.monotonic() < ends_s:
        time.sleep(0.05)
    return dict(json.loads(probe.read_text())) if probe.exists() else {}


def _row(
    agents: int,
    size: int,
    codec: str,
    summary: dict[str, Any],
    seen: dict[str, Any],
    said: list[dict[str, Any]],
    refused: dict[str, int],
) -> dict[str, Any]:
    ends, records = seen["ends"], seen["records"][1:]
    rounds = len(records)
    (start, _, cpu0, busy0), (end, _, cpu1, busy1) = ends[0], ends[-1]
    seconds, calls = end - start, sum(n for s in said for k, n in s["calls"].items() if k != "bytes_up")
    data = sum(r["bytes"]["up"] + r["bytes"]["down"] for r in records)
    return {
        "agents": agents,
        "values": size,
        "codec": codec,
        "rounds": rounds,
        "round_s_median": round(statistics.median(r["seconds"] for r in records), 3),
        "round_s": [r["seconds"] for r in records],
        "rounds_per_minute": round(60 * rounds / seconds, 2),
        "updates_per_s": round(agents * rounds / seconds, 1),
        "payload_mb_per_s": round(data / 1e6 / seconds, 2),
        "bytes_per_update": {
            d: round(sum(r["bytes"][d] for r in records) / rounds / agents) for d in ("up", "down")
        },
        "requests_total": calls,
        "requests_per_update": round(calls / (agents * (rounds + 1)), 1),
        "daemon_cores": round((cpu1 - cpu0) / seconds, 2),
        "speaker_cores": round((busy1 - busy0) / seconds, 2),
        "daemon_cpu_ms_per_update": round(1e3 * (cpu1 - cpu0) / (agents * rounds), 2),
        "rss_mib_after_round": {str(n): round(ends[n][1]) for n in (1, 2, rounds) if n < len(ends)},
        "rss_mib_peak": round(seen["peak"]),
        **({"inside_after_round": seen["inside"]} if seen["inside"] else {}),
        "failures": summary["failures_total"],
        "refused": refused,
        "connections_lost": sum(s["losses"] for s in said),
        "said": [line for s in said for line in s["said"]][:6],
        "calls": {
            k: sum(s["calls"].get(k, 0) for s in said) for k in sorted({k for s in said for k in s["calls"]})
        },
    }


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, nargs="*", default=[50, 200, 500])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--speakers", type=int, default=2)
    parser.add_argument("--no-payloads", action="store_true")
    parser.add_argument("--attribute", action="store_true", help="count what lives in the daemon")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    load = [
        measure(n, options.rounds, 20_000, "compeft", options.speakers, attribute=options.attribute)
        for n in options.agents
    ]
    _print(load)
    payloads = (
        []
        if options.no_payloads
        else [measure(agents, 6, size, "dense", 1) for size, agents in PAYLOADS.items()]
    )
    _print(payloads)
    if options.no_write:
        return
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "load_before": LOAD_BEFORE}
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": machine, "load": load, "payloads": payloads}
    (RESULTS / "load.json").write_text(json.dumps(content, indent=1) + "\n")
    rates = {f"{row['agents']} agents": [row["updates_per_s"]] for row in load}
    (RESULTS / "load.svg").write_text(bars("Updates a second, taken and merged by one daemon", rates))


def _print(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        print(
            f"{row['agents']} agents, {row['values']:,} values {row['codec']}: "
            f"round {row['round_s_median']} s, "
            f"{row['rounds_per_minute']} rounds/min, {row['updates_per_s']} updates/s, "
            f"{row['payload_mb_per_s']} MB/s, {row['requests_per_update']} requests/update, "
            f"daemon {row['daemon_cores']} cores ({row['daemon_cpu_ms_per_update']} ms/update), "
            f"speakers {row['speaker_cores']} cores, "
            f"RSS {row['rss_mib_after_round']} peak {row['rss_mib_peak']}, "
            f"failures {row['failures']}, lost {row['connections_lost']}, refused {row['refused']}",
            flush=True,
        )
        for mark, inside in row.get("inside_after_round", {}).items():
            print(f"    after round {mark}: {inside}")
        for text, count in row["said"]:
            print(f"    {count} x {text}")


if __name__ == "__main__":
    main()
