"""run_sweep: every point of a grid that is not there yet, and what all of them came to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from headwater.adapters.weights import hash_base, resolve_base
from headwater.config.data import NoData
from headwater.config.model import BaseModelSettings
from headwater.data.federated import FederatedData
from headwater.data.files.formats import files_sha256
from headwater.errors import HeadwaterError, InternalError, MissingDependency, ModelError, StorageError
from headwater.files import write_atomically
from headwater.seeds.keys import Key
from headwater.simulation.baselines import check_baselines
from headwater.simulation.devices.world import read_traces, traces_sha256
from headwater.simulation.sweeps.events import (
    PointEnded,
    PointFailed,
    PointStarted,
    PointTold,
    SweepObserver,
    SweepStarted,
)
from headwater.simulation.sweeps.folder import SweepFolder
from headwater.simulation.sweeps.outcome import Outcome, outcome_of, summary_of
from headwater.simulation.sweeps.plan import Point, Sweep
from headwater.simulation.sweeps.problems import PointProblems
from headwater.simulation.sweeps.runner import PointPool, PointRunner, Runner, Task
from headwater.simulation.sweeps.shared import base_key, data_key

_FOR_ALL = (StorageError, InternalError, MissingDependency)
"""What ends a sweep; any other error is its point's own."""


@dataclass
class SweepResult:
    """What a sweep came to so far.

    Args:
        sweep: the grid.
        folder: where its files are.
        outcomes: of the points that are done, by id.
        failed: why others are not.
        strangers: run folders beside them that are of no point of this grid.
        stopped: whether it was asked to stop before its end.
    """

    sweep: Sweep
    folder: Path
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    failed: dict[str, HeadwaterError] = field(default_factory=dict)
    strangers: int = 0
    stopped: bool = False

    @property
    def in_order(self) -> list[Outcome]:
        """The outcomes in grid order."""
        return [self.outcomes[p.id] for p in self.sweep.points if p.id in self.outcomes]

    @property
    def source(self) -> str:
        """Where the metric was measured: ``test``, ``clients``, or both where points differ."""
        return " and ".join(sorted({o.source for o in self.outcomes.values()}))


def run_sweep(
    sweep: Sweep,
    out: Path,
    *,
    workers: int = 1,
    observer: SweepObserver = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> SweepResult:
    """Run the points that are not done; every one is checked before the first is run.

    Args:
        sweep: from ``load_sweep``.
        out: its folder: new, empty, or one of a sweep, whose points with the same settings count as done.
        workers: processes that each run one point at a time.
        observer: is told what happens.
        should_stop: asked often; True ends after the open rounds.

    Returns:
        The outcomes, and the errors of points that failed.

    Raises:
        HeadwaterError: what is wrong with points, before any is run; a full disk, a defect, a killed worker.
    """
    folder = SweepFolder(out)
    with folder.locked():
        result = SweepResult(sweep, out)
        left = []
        inputs = _Inputs()
        places, result.strangers = folder.places(sweep.points)
        for point in sweep.points:
            path = places[point.id]
            if (summary := summary_of(point, path)) is None:
                left.append(point)
                continue
            folder.require_inputs(path, inputs.of(point))
            result.outcomes[point.id] = outcome_of(sweep, point, path, summary)
        write_atomically(out / "sweep.toml", sweep.source)
        _check_data(sweep, left)
        points = {places[p.id]: p for p in _by_data(left)}
        with ExitStack() as stack:
            runner: Runner
            if (count := min(workers, len(left))) > 1:
                runner = stack.enter_context(PointPool(count, left[0].loaded.settings.model))
            else:
                runner = PointRunner(lambda task, event: observer(PointTold(points[task.folder], event)))
            _check_models(sweep, points, runner)
            observer(SweepStarted(len(sweep.points), len(result.outcomes)))
            _run(result, points, runner, observer, should_stop)
    return result


def _run(
    result: SweepResult,
    points: Mapping[Path, Point],
    runner: Runner,
    observer: SweepObserver,
    should_stop: Callable[[], bool],
) -> None:
    began: dict[Path, float] = {}

    def tasks() -> Iterable[Task]:
        for path, point in points.items():
            began[path] = monotonic()
            observer(PointStarted(point))
            yield Task(point.loaded, path)

    for done in runner.run(tasks(), should_stop):
        path, point = done.task.folder, points[done.task.folder]
        if done.error is not None:
            if isinstance(done.error, _FOR_ALL):
                raise done.error
            result.failed[point.id] = done.error
            observer(PointFailed(point, done.error))
        elif done.summary is not None and (summary := summary_of(point, path)) is not None:
            outcome = outcome_of(result.sweep, point, path, summary)
            result.outcomes[point.id] = outcome
            observer(PointEnded(point, outcome, monotonic() - began[path]))
    result.stopped = should_stop() and len(result.outcomes) + len(result.failed) < len(result.sweep.points)


def _by_data(points: Iterable[Point]) -> list[Point]:
    """The points in grid order, but those with the same data one after the other."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(data_key(point.loaded), []).append(point)
    return [point for group in groups.values() for point in group]


def _check_data(sweep: Sweep, points: Iterable[Point]) -> None:
    """Read and divide the rows of every point, and read its traces, once for those that have the same.

    Raises:
        HeadwaterError: of all points whose data or traces are wrong or cannot be divided so.
    """
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(data_key(point.loaded), []).append(point)
    problems = PointProblems(f"sweep file {sweep.path}", len(sweep.points))
    problems.know(point.labels for point in sweep.points)
    for group in groups.values():
        for point in group:
            with problems.of(point.labels):
                check_baselines(point.loaded.settings)
        with problems.of(*(p.labels for p in group)):
            loaded = group[0].loaded
            data = FederatedData.open(loaded, None, Key.root(loaded.settings.federation.seed), check=False)
            for traces in _by_traces(group):
                with problems.of(*(p.labels for p in traces)):
                    read_traces(traces[0].loaded, data.clients)
    problems.raise_any()


def _by_traces(points: Iterable[Point]) -> Iterable[list[Point]]:
    """The points that name the same trace files."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        settings = point.loaded.settings.simulation.devices
        key = "" if settings is None else f"{settings.trace} {settings.availability.model_dump_json()}"
        groups.setdefault(key, []).append(point)
    return groups.values()


def _check_models(sweep: Sweep, points: Mapping[Path, Point], runner: Runner) -> None:
    """Try every base with every adapter; of one pair alone its first point shows it as soon.

    Raises:
        HeadwaterError: of all points whose base and adapter do not go together.
    """
    groups: dict[str, dict[Path, Point]] = {}
    for path, point in points.items():
        groups.setdefault(_model_key(point), {})[path] = point
    if len(groups) < 2:
        return
    problems = PointProblems(f"sweep file {sweep.path}", len(sweep.points))
    problems.know(point.labels for point in sweep.points)
    first = {next(iter(group)): list(group.values()) for group in groups.values()}
    for done in runner.check([Task(group[0].loaded, path) for path, group in first.items()]):
        with problems.of(*(p.labels for p in first[done.task.folder])):
            if done.error is not None:
                raise done.error
    problems.raise_any()


def _model_key(point: Point) -> str:
    """What decides whether a base takes an adapter."""
    settings = point.loaded.settings
    adapter = "" if settings.adapter is None else settings.adapter.model_dump_json()
    sources = sorted({training.learns_from for training in settings.trainings.values()})
    longest = getattr(settings.data, "max_tokens", 0)
    key = (base_key(point.loaded), adapter, settings.strategy.space, longest, sources, settings.simulation)
    return repr(key)


class _Inputs:
    """Hashes of bases and data as they are now, each read once."""

    def __init__(self) -> None:
        self._known: dict[str, str | None] = {}

    def of(self, point: Point) -> dict[str, str | None]:
        """By what it is of; None where there is nothing."""
        return {"base": self._base(point), "data": self._data(point), "devices": self._devices(point)}

    def _devices(self, point: Point) -> str | None:
        with suppress(OSError):  # they are no longer there
            return traces_sha256(point.loaded)
        return None

    def _base(self, point: Point) -> str | None:
        settings = point.loaded.settings.model
        if not isinstance(settings, BaseModelSettings):
            return None
        key = f"base {base_key(point.loaded)}"
        if key not in self._known:
            self._known[key] = None
            with suppress(ModelError):  # it is no longer there
                where = resolve_base(settings.path, settings.revision, point.loaded.folder)
                self._known[key] = hash_base(where)
        return self._known[key]

    def _data(self, point: Point) -> str | None:
        settings = point.loaded.settings.data
        if isinstance(settings, NoData):
            return None
        paths = [point.loaded.path(p) for p in (settings.path, settings.test) if p is not None]
        key = f"data {paths}"
        if key not in self._known:
            self._known[key] = None
            with suppress(OSError):  # they are no longer there
                self._known[key] = files_sha256(paths)
        return self._known[key]
