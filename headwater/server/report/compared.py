"""Run folders side by side: :func:`find_runs` finds them, :func:`compare` reads what they came to.

As for a report, nothing in the files is relied on: a folder whose files are damaged is listed with what is
left of it.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from headwater.config.data import lower_is_better
from headwater.errors import ConfigError, StorageError
from headwater.server.report.data import Run, read_run
from headwater.server.report.svg import Point
from headwater.server.storage.run_folder import RunFolder, in_use
from headwater.text import finite, plain

MOST_DEEP = 4
"""Folders below a given one in which runs are looked for."""
State = Literal["finished", "stopped", "running", "unfinished"]
Order = Literal["time", "value", "name"]
_ALWAYS_OWN = ("federation.name", "federation.rounds")
"""Settings that have a column of their own."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One run.

    Args:
        folder: its run folder.
        name: the federation's.
        state: ``running`` while a process works on it; ``unfinished``: none does, and there is no summary.
        round: the last that is written; -1 where none is.
        rounds: that the file asks for; None where it does not say.
        metric: the deciding one.
        best: its best value.
        best_round: the round of that.
        last: its last value.
        clients: that were ever asked or evaluated.
        failures: trainings that failed.
        bytes_up: of all rounds.
        bytes_down: of all rounds.
        seconds: of all rounds.
        changed: when a round was written last, in seconds since 1970.
        adapter_sha256: of the exported adapter; empty before.
        settings: of the resolved file, by dotted key, as text.
        points: round and value of the deciding metric; None where there is no finite one.
        sent: bytes up until then, and the same value.
    """

    folder: Path
    name: str
    state: State
    round: int
    rounds: int | None
    metric: str
    best: float | None
    best_round: int | None
    last: float | None
    clients: int
    failures: int
    bytes_up: int
    bytes_down: int
    seconds: float
    changed: float
    adapter_sha256: str
    settings: Mapping[str, str]
    points: Sequence[Point]
    sent: Sequence[Point]


def find_runs(places: Iterable[Path]) -> list[Path]:
    """The run folders at or below ``places``, in order of their paths, each once.

    Links below a place are not followed, and nothing is looked for within a run folder.

    Raises:
        ConfigError: a place is no folder, or there is no run folder anywhere.
    """
    found: dict[Path, Path] = {}
    asked = list(places)
    for place in asked:
        if not place.is_dir():
            raise ConfigError(
                f"headwater runs {place}",
                expected="a folder",
                got="none",
                hint="Name a folder with run folders.",
            )
        for path in _below(place, MOST_DEEP):
            found.setdefault(path.resolve(), path)
    if not found:
        raise ConfigError(
            f"headwater runs {', '.join(map(str, asked))}",
            expected=f"run folders, at most {MOST_DEEP} folders down",
            got="none",
            hint="headwater simulate makes one, by default below runs.",
        )
    return sorted(found.values())


def compare(folders: Iterable[Path], *, order: Order = "time") -> list[Compared]:
    """Read the runs.

    Args:
        folders: from :func:`find_runs`.
        order: ``time``: changed last comes last; ``value``: the best of each metric first; ``name``.
    """
    found = [_read(RunFolder(path)) for path in folders]
    if order == "time":
        return sorted(found, key=lambda run: (run.changed, run.folder))
    if order == "name":
        return sorted(found, key=lambda run: (run.name, run.folder))
    return sorted(found, key=_badness)


def differing(runs: Sequence[Compared]) -> list[str]:
    """The settings in which runs differ, by dotted key: first those that most runs have, hashes last."""
    counts = Counter(key for run in runs for key in run.settings)
    keys = [
        key for key in counts if key not in _ALWAYS_OWN and len({run.settings.get(key) for run in runs}) > 1
    ]
    return sorted(keys, key=lambda key: (key.endswith("sha256"), -counts[key]))


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return (folder / "federation.toml").is_file() and (
        (folder / "rounds.jsonl").is_file() or (folder / "state" / "origin.json").is_file()
    )


def _below(folder: Path, deep: int) -> list[Path]:
    if is_run(folder):
        return [folder]
    if not deep:
        return []
    try:
        inner = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and not p.is_symlink())
        return [path for child in inner if child.is_dir() for path in _below(child, deep - 1)]
    except OSError:  # not ours to read
        return []


def _read(folder: RunFolder) -> Compared:
    try:
        run = read_run(folder)
    except StorageError:
        run = Run({}, [], "", tuple)
    rounds, settings = run.rounds, _settings(run.toml)
    values = [(record.round, finite(record.deciding(run.metric))) for record in rounds]
    known = [(number, value) for number, value in values if value is not None]
    best = (min if run.lower_is_better else max)(known, key=lambda point: point[1], default=(None, None))
    up = list(accumulate(record.bytes.up or 0 for record in rounds))
    evaluated = [bool(record.test or record.pooled) for record in rounds]
    asked = settings.get("federation.rounds", "")
    return Compared(
        folder=folder.path,
        name=plain(run.get("name") or settings.get("federation.name") or "unnamed federation", 120),
        state=_state(folder, run),
        round=rounds[-1].round if rounds else -1,
        rounds=int(asked) if asked.isdigit() else None,
        metric=plain(run.metric, 40),
        best=best[1],
        best_round=best[0],
        last=known[-1][1] if known else None,
        clients=len(run.clients),
        failures=run.failure_count,
        bytes_up=up[-1] if up else 0,
        bytes_down=sum(record.bytes.down or 0 for record in rounds),
        seconds=sum(record.seconds or 0.0 for record in rounds),
        changed=_changed(folder),
        adapter_sha256=plain(run.get("adapter_sha256") or "", 64),
        settings=settings,
        points=[point for point, there in zip(values, evaluated, strict=True) if there],
        sent=[
            (float(size), value)
            for size, (_, value), there in zip(up, values, evaluated, strict=True)
            if there and size
        ],
    )


def _badness(run: Compared) -> tuple[str, bool, float, Path]:
    value = run.best if run.best is not None else 0.0
    return run.metric, run.best is None, value if lower_is_better(run.metric) else -value, run.folder


def _state(folder: RunFolder, run: Run) -> State:
    if in_use(folder.path):
        return "running"
    if not run.summary:
        return "unfinished"
    return "stopped" if run.get("stopped") == "stopped" else "finished"


def _changed(folder: RunFolder) -> float:
    for path in (folder.rounds, folder.path / "federation.toml"):
        try:
            return path.stat().st_mtime
        except OSError:
            continue
    return 0.0


def _settings(toml: str) -> dict[str, str]:
    """Settings as text, by dotted key; none of a file that is no TOML."""
    try:
        tables = tomllib.loads(toml)
    except tomllib.TOMLDecodeError:
        return {}
    tables.pop("trackers", None)  # who looks on changes nothing
    return dict(_flat("", tables))


def _flat(start: str, content: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for key, value in content.items():
        name = plain(f"{start}{key}", 120)
        if isinstance(value, Mapping):
            yield from _flat(f"{name}.", value)
        elif isinstance(value, bool):
            yield name, "true" if value else "false"
        elif isinstance(value, list):
            yield name, plain(", ".join(map(str, value)), 200)
        else:
            yield name, plain(value, 200)
