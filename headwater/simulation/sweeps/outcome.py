"""What a point came to, from its run folder: :func:`summary_of` if it is done, then :func:`outcome_of`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater.config.data import lower_is_better
from headwater.errors import StorageError
from headwater.server.round_record import RoundRecord
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.sweeps.plan import Point, Sweep

_ENDED = ("rounds", "patience")


@dataclass(frozen=True)
class Target:
    """When the metric had first reached its target: rounds, and bytes of both directions up to there."""

    rounds: int
    bytes: int


@dataclass(frozen=True)
class Outcome:
    """A point that ran to its end.

    Args:
        labels: by axis, which level.
        folder: its run folder's name.
        value: the metric after the last evaluation, or the best one, as ``[metric]`` says; NaN without any.
        source: ``test``, or ``clients`` where it is measured on their validation splits.
        target: where it was reached; None where it was not, or none is set.
        summary: the run's.
    """

    labels: Mapping[str, str]
    folder: str
    value: float
    source: str
    target: Target | None
    summary: Mapping[str, Any]

    @property
    def rounds(self) -> int:
        """That were run."""
        return int(self.summary["rounds"])

    @property
    def seconds(self) -> float:
        """Of all rounds together, on this machine."""
        return float(self.summary["seconds"])

    @property
    def simulated_s(self) -> float | None:
        """The same on simulated devices; None without any."""
        found = self.summary.get("simulated")
        return None if found is None else float(found["seconds"])

    @property
    def bytes_up(self) -> int:
        """From all clients."""
        return int(self.summary["bytes"]["up"])

    @property
    def bytes_down(self) -> int:
        """To all clients."""
        return int(self.summary["bytes"]["down"])

    @property
    def lost(self) -> int:
        """Owners who were no longer in the run at its end."""
        return len(self.summary.get("lost", ()))


def summary_of(point: Point, folder: Path) -> dict[str, Any] | None:
    """The summary of a point that is done; None where something of it is left to do."""
    settings = point.loaded.settings
    wanted = any(value for _, value in settings.baselines if isinstance(value, bool))
    path = folder / "summary.json"
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        ended = summary["stopped"] in _ENDED and (bool(summary["baselines"]) or not wanted)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = f"Remove {folder}: the point is run again."
        raise StorageError(str(path), expected="the summary of a run", got=repr(error), hint=hint) from error
    return summary if ended and (folder / "report.html").exists() else None


def outcome_of(sweep: Sweep, point: Point, folder: Path, summary: Mapping[str, Any]) -> Outcome:
    """What a point that is done came to."""
    rounds = RunFolder(folder).read_rounds()
    values = [(r.round, v) for r in rounds if math.isfinite(v := r.deciding(sweep.metric))]
    lower = lower_is_better(sweep.metric)
    value = math.nan
    if values:
        known = [v for _, v in values]
        value = known[-1] if sweep.compared.of == "last" else min(known) if lower else max(known)
    source = "test" if any(r.tested for r in rounds) else "clients"
    reached = _reached(values, sweep.compared.target, lower)
    target = None if reached is None else Target(reached, _bytes_until(rounds, reached))
    return Outcome(point.labels, folder.name, value, source, target, summary)


def _reached(values: Sequence[tuple[int, float]], target: float | None, lower: bool) -> int | None:
    if target is None:
        return None
    return next((number for number, v in values if (v <= target if lower else v >= target)), None)


def _bytes_until(rounds: Sequence[RoundRecord], last: int) -> int:
    return sum((r.bytes.up or 0) + (r.bytes.down or 0) for r in rounds if r.round <= last)
