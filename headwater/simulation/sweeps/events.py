"""What a running sweep tells those who watch it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headwater.errors import HeadwaterError
from headwater.server.events import Event
from headwater.simulation.sweeps.outcome import Outcome
from headwater.simulation.sweeps.plan import Point


@dataclass(frozen=True, slots=True)
class SweepStarted:
    """Every point was checked; ``done`` of ``points`` were there already, with these settings."""

    points: int
    done: int


@dataclass(frozen=True, slots=True)
class PointStarted:
    """A point is run, or goes on."""

    point: Point


@dataclass(frozen=True, slots=True)
class PointTold:
    """A point's run tells something, where it is run in this process."""

    point: Point
    event: Event


@dataclass(frozen=True, slots=True)
class PointEnded:
    """A point has its outcome, after so many seconds of this session."""

    point: Point
    outcome: Outcome
    seconds: float


@dataclass(frozen=True, slots=True)
class PointFailed:
    """A point has none; the others are run all the same."""

    point: Point
    error: HeadwaterError


SweepEvent = SweepStarted | PointStarted | PointTold | PointEnded | PointFailed
SweepObserver = Callable[[SweepEvent], None]
