"""sweep: a grid of federations, from Python."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from headwater.simulation.sweeps.events import SweepObserver
from headwater.simulation.sweeps.plan import load_sweep


def sweep(
    file: str | Path,
    out: str | Path,
    overrides: Iterable[str] = (),
    *,
    workers: int = 1,
    observer: SweepObserver = lambda event: None,
) -> dict[str, Any]:
    """Run the points of a sweep file that are not done, as ``headwater sweep`` does.

    Args:
        file: the sweep file.
        out: its folder; points that are there with the same settings are not run again.
        overrides: ``table.key=value`` strings, for every point.
        workers: points that are run at once, each in a process of its own.
        observer: is told what happens.

    Returns:
        What is in ``sweep.json``: ``table``, ``effects``, ``best``, the points that are ``done``, and those
        that ``failed``, which raise nothing.

    Raises:
        HeadwaterError: what is wrong with points, before any is run; a full disk; a killed worker.
    """
    plan = load_sweep(Path(file), overrides)
    from headwater.simulation.sweeps.files import as_json, write_tables  # torch
    from headwater.simulation.sweeps.run import run_sweep

    result = run_sweep(plan, Path(out), workers=workers, observer=observer)
    return as_json(result, write_tables(result))
