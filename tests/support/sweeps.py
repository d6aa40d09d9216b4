"""Sweep files over tiny federations: :func:`sweep_file`, :func:`swept`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from headwater.simulation.sweeps.events import SweepEvent
from headwater.simulation.sweeps.plan import load_sweep
from headwater.simulation.sweeps.run import SweepResult, run_sweep


def sweep_file(federation: Path, axes: Mapping[str, Any], name: str = "sweep.toml", **more: Any) -> Path:
    """Write a sweep file beside ``federation``."""
    path = federation.with_name(name)
    path.write_text(tomli_w.dumps({"federation": federation.name, **more, "axes": axes}))
    return path


def swept(file: Path, out: Path, *overrides: str, **options: Any) -> tuple[SweepResult, list[SweepEvent]]:
    """Run what is left of a sweep: what it came to, and all events."""
    events: list[SweepEvent] = []
    return run_sweep(load_sweep(file, overrides), out, observer=events.append, **options), events
