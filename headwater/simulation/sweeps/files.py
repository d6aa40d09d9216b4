"""write_tables: a sweep's tables and picture, as files for people and for programs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from typing import Any

from headwater.files import write_atomically
from headwater.simulation.sweeps.outcome import Outcome
from headwater.simulation.sweeps.page import render
from headwater.simulation.sweeps.picture import picture
from headwater.simulation.sweeps.plan import SEED
from headwater.simulation.sweeps.run import SweepResult
from headwater.simulation.sweeps.tables import Effect, Row, Spread, Tables, tables_of
from headwater.text import json_safe


def write_tables(result: SweepResult) -> Tables:
    """Write ``points.csv``, ``table.csv``, ``sweep.json``, ``sweep.svg`` and ``report.html``.

    Raises:
        StorageError: the folder is not writable.
    """
    tables = tables_of(result.sweep, result.in_order)
    content = json.dumps(json_safe(as_json(result, tables)), indent=2, ensure_ascii=False)
    drawing = picture(result.sweep, tables)
    for name, text in {
        "points.csv": _csv([_point(result, o) for o in result.in_order]),
        "table.csv": _csv([_row(row) for row in tables.rows]),
        "sweep.json": f"{content}\n",
        "report.html": render(result, tables),
        **({"sweep.svg": drawing} if drawing else {}),
    }.items():
        write_atomically(result.folder / name, text.encode())
    return tables


def as_json(result: SweepResult, tables: Tables) -> dict[str, Any]:
    """All that is known, as tables of JSON."""
    sweep = result.sweep
    names = {point.id: point.name for point in sweep.points}
    return {
        "name": sweep.name,
        "metric": {**sweep.compared.model_dump(), "name": sweep.metric, "on": result.source},
        "axes": {
            axis: list(dict.fromkeys(level[at] for level in factor.levels))
            for factor in sweep.factors
            for at, axis in enumerate(factor.axes)
        },
        "zip": [list(f.axes) for f in sweep.factors if len(f.axes) > 1],
        "points": len(sweep.points),
        "done": [_point(result, o) for o in result.in_order],
        "failed": [{"point": names[i], "error": f"{e.code}: {e}"} for i, e in result.failed.items()],
        "table": [_row(row) for row in tables.rows],
        "effects": [
            {"axes": list(factor.axes), "levels": [_effect(e) for e in effects]}
            for factor, effects in tables.effects.items()
        ],
        "best": None if tables.best is None else _row(tables.best),
    }


def _point(result: SweepResult, outcome: Outcome) -> dict[str, Any]:
    target = outcome.target
    return {
        **outcome.labels,
        **({} if SEED in outcome.labels else {"seed": outcome.summary["seed"]}),
        result.sweep.metric: outcome.value,
        "rounds": outcome.rounds,
        "bytes_up": outcome.bytes_up,
        "bytes_down": outcome.bytes_down,
        "seconds": outcome.seconds,
        "simulated_s": outcome.simulated_s,
        "rounds_to_target": None if target is None else target.rounds,
        "bytes_to_target": None if target is None else target.bytes,
        "lost": outcome.lost,
        "adapter_sha256": outcome.summary["adapter_sha256"],
        "folder": f"points/{outcome.folder}",
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        **row.labels,
        **_spread(row.value),
        "rounds": row.mean(lambda o: o.rounds),
        "bytes_up": row.mean(lambda o: o.bytes_up),
        "bytes_down": row.mean(lambda o: o.bytes_down),
        "seconds": row.mean(lambda o: o.seconds),
        "simulated_s": row.mean(lambda o: o.simulated_s),
        "reached_target": row.reached,
        "rounds_to_target": row.mean(lambda o: None if o.target is None else o.target.rounds),
        "bytes_to_target": row.mean(lambda o: None if o.target is None else o.target.bytes),
    }


def _effect(effect: Effect) -> dict[str, Any]:
    return {
        "level": list(effect.level),
        **_spread(effect.value),
        "difference": effect.difference.mean,
        "difference_deviation": effect.difference.deviation,
    }


def _spread(spread: Spread) -> dict[str, Any]:
    return {"n": spread.n, "mean": spread.mean, "deviation": spread.deviation}


def _csv(rows: list[Mapping[str, Any]]) -> str:
    """Comma-separated, a head of names; empty cells for what there is not."""
    if not rows:
        return ""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if v is None or (isinstance(v, float) and not math.isfinite(v)) else v
                         for k, v in row.items()})  # fmt: skip
    return out.getvalue()
