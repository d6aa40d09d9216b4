"""Bytes of whole runs, both ways, against dense ones at the same last metric. JSON, two pictures, tables.

    python benchmarks/whole_runs.py [--work DIR] [--workers 2] [--corpora sentiment glosses presidents]
                                    [--codecs "both 0.1" "both 0.05"] [--pareto] [--seeds 1 2 3]

The runs are sweeps (``headwater sweep``) over this repository's examples: three corpora, three seeds, and
codecs up and down. ``--pareto`` adds every codec on glosses dealt by Dirichlet 0.1. A run that is in DIR
already counts, so a stopped benchmark goes on; a row that is not asked for stays in the JSON as it is. Bytes
are those of the bodies that travelled, as in each run's
record; *dense* sends fp32 values both ways. All metrics are of the last round on the held-out test.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from html import escape
from math import log10
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
METRICS = {"sentiment": "accuracy", "glosses": "accuracy", "presidents": "perplexity"}
"""By corpus, what is compared: 0.5 points of accuracy, 1 % of perplexity."""
SEEDS = (1, 2, 3)

Table = dict[str, Any]


def both(up: Table, down: Table | None = None) -> Table:
    """``[codec]`` with the same codec both ways, or another one down."""
    return {"up": up, "down": up if down is None else down}


def compeft(density: float) -> Table:
    """ComPEFT at a density, with error feedback at both ends."""
    return {"kind": "compeft", "density": density}


def once(density: float, alpha: float) -> Table:
    """For clients that take part once: nothing dropped can come later, so what is sent stands for it."""
    return {**compeft(density), "alpha": alpha, "error_feedback": False}


DENSE: Table = {"kind": "dense"}
BYTES: dict[str, Table] = {
    "dense": both(DENSE),
    "up 0.1": both(compeft(0.1), DENSE),
    "both 0.2": both(compeft(0.2)),
    "both 0.15": both(compeft(0.15)),
    "both 0.1": both(compeft(0.1)),
    "both 0.05, by tensor": both({**compeft(0.05), "density_over": "tensor", "scale_bits": 24}),
    "both 0.05": both(compeft(0.05)),
    "both 0.02": both(compeft(0.02)),
    "both 0.01": both(compeft(0.01)),
    "once 0.17": both(once(0.17, 3.0), {**compeft(0.15), "alpha": 2.6}),
    "once 0.05": both(once(0.05, 8.0), {**compeft(0.15), "alpha": 2.6}),
}

PARETO: dict[str, Table] = {
    "dense": both(DENSE),
    **{f"compeft {density:g}": both(compeft(density)) for density in (0.2, 0.05, 0.02)},
    "compeft 0.05, no feedback": both({**compeft(0.05), "error_feedback": False}),
    "stc 0.05": both({"kind": "stc", "density": 0.05}),
    "topk 0.05, 8 bits": both({"kind": "topk", "density": 0.05, "bits": 8}),
    "sparseloco": both({"kind": "sparseloco"}),
    "sign": both({"kind": "sign"}),
    "int8": both({"kind": "int8"}),
    "int4": both({"kind": "int4"}),
    "nf4": both({"kind": "nf4"}),
    "nnadq": both({"kind": "nnadq"}),
    "qsgd": both({"kind": "qsgd"}, compeft(0.05)),
    "randk 0.2": both({"kind": "randk", "density": 0.2}, compeft(0.05)),
    "powersgd": both({"kind": "powersgd"}),
}
"""The same for every codec; where one is unbiased, its updates alone. Not EF21: it needs equal weights."""


def sweep(
    corpus: str, codecs: Mapping[str, Table], seeds: Sequence[int], work: Path, workers: int, **more: str
) -> list[Table]:
    """The points of a grid codec x seed over an example, run where they are not there yet."""
    work.mkdir(parents=True, exist_ok=True)
    levels = [{"name": name, **codec} for name, codec in codecs.items()]
    lines = [f'federation = "{(HERE.parent / "examples" / corpus / "federation.toml").resolve()}"', "[axes]"]
    lines += [f"codec = [{', '.join(toml(level) for level in levels)}]", f'"federation.seed" = {list(seeds)}']
    (work / "sweep.toml").write_text("\n".join(lines) + "\n")
    fixed = {"evaluation": "{every=100000}", "baselines": "{}", **more}
    command = [
        sys.executable,
        "-m",
        "headwater",
        "sweep",
        str(work / "sweep.toml"),
        "--out",
        str(work / "out"),
    ]
    command += ["--workers", str(workers), "--quiet"]
    for key, value in fixed.items():
        command += ["--set", f"{key}={value}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return list(json.loads((work / "out" / "sweep.json").read_text())["done"])


def toml(value: object) -> str:
    """A value as TOML, in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {toml(v)}" for key, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(v) for v in value) + "]"
    return json.dumps(value)


def rows_of(points: list[Table], metric: str) -> list[Table]:
    """By codec, over seeds: metric, difference to dense at the same seed, bytes, how many times fewer."""
    dense = {p["federation.seed"]: p for p in points if p["codec"] == "dense"}
    rows = []
    for name in dict.fromkeys(p["codec"] for p in points):
        mine = [p for p in points if p["codec"] == name]
        pairs = [(p, dense[p["federation.seed"]]) for p in mine]
        relative = metric == "perplexity"
        apart = [(p[metric] - d[metric]) / (d[metric] if relative else 1.0) for p, d in pairs]
        rows.append(
            {
                "codec": name,
                "seeds": [p["federation.seed"] for p in mine],
                "metric": [p[metric] for p in mine],
                "apart": apart,
                "bytes_up": [p["bytes_up"] for p in mine],
                "bytes_down": [p["bytes_down"] for p in mine],
                "times": [total(d) / total(p) for p, d in pairs],
            }
        )
    return rows


def total(point: Table) -> int:
    """Bytes of both directions."""
    return int(point["bytes_up"]) + int(point["bytes_down"])


def table(corpus: str, rows: list[Table]) -> str:
    """As Markdown: mean ± standard deviation over seeds."""
    unit = "relative" if METRICS[corpus] == "perplexity" else "points"
    lines = [
        f"| {corpus} | {METRICS[corpus]} | against dense, {unit} | MB up | MB down | times fewer bytes |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        up, down = statistics.mean(row["bytes_up"]) / 1e6, statistics.mean(row["bytes_down"]) / 1e6
        apart = 100 * statistics.mean(row["apart"])
        spread = 100 * statistics.stdev(row["apart"]) if len(row["apart"]) > 1 else 0.0
        lines.append(
            f"| {row['codec']} | {statistics.mean(row['metric']):.4g} | {apart:+.2f} ± {spread:.2f} "
            f"| {up:.3f} | {down:.3f} | {statistics.mean(row['times']):.1f} |"
        )
    return "\n".join(lines)


def frontier(rows: list[Table], lower_is_better: bool = False) -> set[str]:
    """The codecs that no other beats in both bytes and metric (means)."""
    sign = -1 if lower_is_better else 1
    at = {
        r["codec"]: (
            statistics.mean(r["bytes_up"]) + statistics.mean(r["bytes_down"]),
            sign * statistics.mean(r["metric"]),
        )
        for r in rows
    }
    return {
        name
        for name, (size, value) in at.items()
        if not any(s <= size and v >= value and (s, v) != (size, value) for s, v in at.values())
    }


def pareto_picture(title: str, rows: list[Table]) -> str:
    """Metric against bytes (logarithmic); the frontier's codecs are dark."""
    left, top, width, height = 60, 40, 560, 320
    sizes = {r["codec"]: statistics.mean(r["bytes_up"]) + statistics.mean(r["bytes_down"]) for r in rows}
    values = {r["codec"]: statistics.mean(r["metric"]) for r in rows}
    spreads = {r["codec"]: statistics.stdev(r["metric"]) if len(r["metric"]) > 1 else 0.0 for r in rows}
    low, high = log10(min(sizes.values())) - 0.1, log10(max(sizes.values())) + 0.2
    bottom = min(v - spreads[n] for n, v in values.items())
    span = (max(v + spreads[n] for n, v in values.items()) - bottom) or 1.0
    best = frontier(rows)

    def x(size: float) -> float:
        return left + width * (log10(size) - low) / (high - low)

    def y(value: float) -> float:
        return top + height * (1 - (value - bottom) / span)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 90} {top + height + 50}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#333">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="8" y="20" font-weight="600" font-size="13">{escape(title)}</text>',
        f'<path d="M{left},{top} V{top + height} H{left + width}" fill="none" stroke="#999"/>',
    ]
    parts += [
        f'<text x="{x(10**power):.0f}" y="{top + height + 18}" text-anchor="middle">'
        f"{10**power / 1e6:g} MB</text>"
        for power in range(int(low), int(high) + 1)
        if low <= power <= high
    ]
    parts += [
        f'<text x="{left - 6}" y="{y(value) + 4:.0f}" text-anchor="end">{value:.3f}</text>'
        for value in (bottom, bottom + span)
    ]
    for name, size in sizes.items():
        px, py, spread = x(size), y(values[name]), height * spreads[name] / span
        colour = "#1f4e79" if name in best else "#9db8cc"
        parts += [
            f'<path d="M{px:.1f},{py - spread:.1f} V{py + spread:.1f}" stroke="{colour}"/>',
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="{colour}"/>',
            f'<text x="{px + 6:.1f}" y="{py - 5:.1f}">{escape(name)}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, default=RESULTS / "whole-runs", help="where the runs go")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--corpora", nargs="*", choices=list(METRICS), default=list(METRICS))
    parser.add_argument("--codecs", nargs="*", choices=[*BYTES, *PARETO], help="besides dense; all if absent")
    parser.add_argument("--pareto", action="store_true", help="every codec on glosses, Dirichlet 0.1")
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    chosen = {name: c for name, c in BYTES.items() if name in ["dense", *(options.codecs or BYTES)]}
    for corpus in options.corpora:
        points = sweep(corpus, chosen, options.seeds, options.work / corpus, options.workers)
        rows = rows_of(points, METRICS[corpus])
        print(table(corpus, rows), "\n", flush=True)
        write("whole-runs", corpus, rows, f"{corpus}: last metric against bytes of the whole run")
    if options.pareto:
        unlike = {"data.partition": "{kind='dirichlet', clients=6, alpha=0.1, min_examples=64}"}
        chosen = {name: c for name, c in PARETO.items() if name in ["dense", *(options.codecs or PARETO)]}
        points = sweep("glosses", chosen, options.seeds, options.work / "pareto", options.workers, **unlike)
        rows = rows_of(points, "accuracy")
        print(table("glosses", rows))
        write("pareto", "glosses", rows, "glosses, Dirichlet 0.1: accuracy against bytes up + down")


def write(name: str, corpus: str, rows: list[Table], title: str) -> None:
    """JSON of these rows and those of earlier runs, and a picture of this corpus."""
    path = RESULTS / f"{name}.json"
    known: dict[str, list[Table]] = json.loads(path.read_text()) if path.exists() else {}
    newer = {row["codec"] for row in rows}
    known[corpus] = [row for row in known.get(corpus, []) if row["codec"] not in newer] + rows
    path.write_text(json.dumps(known, indent=2) + "\n")
    picture = f"{name}.svg" if name == "pareto" else f"{name}-{corpus}.svg"
    (RESULTS / picture).write_text(pareto_picture(title, known[corpus]))


if __name__ == "__main__":
    main()
