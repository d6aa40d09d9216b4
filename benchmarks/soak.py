"""Whether a daemon's memory under load ends growing: resident memory over time, in one run.

    python benchmarks/soak.py [--agents 50] [--minutes 30] [--pace 2]

Agents as in ``load.py`` (:mod:`load_agents`), each answering after ``--pace`` seconds, so that the daemon is
neither idle nor saturated. Every quarter of a minute its resident memory, rounds and files are read, and
every two minutes it counts what lives in it. What is bounded by time must have reached its bound: the request
authenticator remembers nonces for ten minutes, and agents open a second connection with their first
heartbeat. So the slope is fitted from minute 12 on. JSON and a picture.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

from load import FEDERATION, ask, spoken_for
from picture import curve
from processes import cpu_s, rss_mib

from headwater.files import read_lines

RESULTS = Path(__file__).parent / "results"
EVERY_S, COUNT_EVERY = 15.0, 8
SETTLED_MIN = 12.0


def soak(agents: int, minutes: float, pace_s: float) -> dict[str, Any]:
    """One run."""
    file = FEDERATION.format(rounds=100_000, size=20_000, agents=agents, codec="compeft")
    rows: list[dict[str, Any]] = []
    with spoken_for(agents, file, 1, probe=True, pace_s=pace_s) as speaking:
        network, pid, probe = speaking.network, speaking.network.daemon.pid, speaking.probe
        rounds = network.run_folder(speaking.run) / "rounds.jsonl"
        began = time.monotonic()
        while (passed := time.monotonic() - began) < 60 * minutes:
            time.sleep(EVERY_S - passed % EVERY_S)
            row: dict[str, Any] = {
                "minute": round((time.monotonic() - began) / 60, 2),
                "round": len(read_lines(rounds)) if rounds.exists() else 0,
                "rss_mib": round(rss_mib(pid), 1),
                "files": sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
                "threads": sum(1 for _ in Path(f"/proc/{pid}/task").iterdir()),
            }
            if len(rows) % COUNT_EVERY == COUNT_EVERY - 1 and probe is not None:
                inside = ask(pid, probe)
                row |= {k: inside[k] for k in ("gc_objects", "nonces", "nonces_bytes") if k in inside}
            rows.append(row)
            print(json.dumps(row), flush=True)
        used_s = cpu_s(pid)
        with network.control() as control:
            status = control.status()
    settled = [r for r in rows if r["minute"] >= SETTLED_MIN]
    slope = None
    if len(settled) > 2:
        fit = statistics.linear_regression([r["round"] for r in settled], [r["rss_mib"] for r in settled])
        slope = round(1000 * fit.slope, 2)
    return {
        "agents": agents,
        "minutes": minutes,
        "pace_s": pace_s,
        "rounds": rows[-1]["round"],
        "daemon_cores": round(used_s / (60 * minutes), 2),
        "settled_from_minute": SETTLED_MIN,
        "settled_rss_mib": {
            "first": settled[0]["rss_mib"],
            "least": min(r["rss_mib"] for r in settled),
            "most": max(r["rss_mib"] for r in settled),
            "last": settled[-1]["rss_mib"],
        }
        if settled
        else None,
        "settled_mib_per_1000_rounds": slope,
        "refused": dict(status.refused),
        "failed": sum(client.failed_rounds for client in status.clients),
        "rows": rows,
    }


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--pace", type=float, default=2.0, help="seconds before an agent answers")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    result = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        **soak(options.agents, options.minutes, options.pace),
    }
    print(json.dumps({k: v for k, v in result.items() if k != "rows"}, indent=1))
    if options.no_write:
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "soak.json").write_text(json.dumps(result, indent=1) + "\n")
    points = [(r["minute"], r["rss_mib"]) for r in result["rows"]]
    title = f"{options.agents} agents, {result['rounds']} rounds: the daemon's resident memory, MiB"
    (RESULTS / "soak.svg").write_text(curve(title, points, "minutes"))


if __name__ == "__main__":
    main()
