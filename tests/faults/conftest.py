"""Fixtures: fleets that live as long as tests pass, and the table of all faults that a run injected."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.fleet import Fleet, tiny_rows
from tests.faults.table import write_table

_ROWS: list[dict[str, Any]] = []
_HERE = Path(__file__).parent


class Fleets:
    """At most one lives: two cores. A fleet that a test failed on is not used again."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._kind, self._fleet = "", None

    def get(self, kind: str) -> Fleet:
        if self._fleet is None or self._kind != kind or not self._fleet.daemon.alive:
            self.end()
            self._count += 1
            folder = self._folder / f"fleet{self._count}"
            rows = tiny_rows(self._folder / f"rows{self._count}") if kind == "tiny" else None
            self._kind, self._fleet = kind, Fleet(folder, rows, 400 if can_mount() else 0)
            self._fleet.start()
        return self._fleet

    def end(self) -> None:
        fleet, self._fleet = self._fleet, None
        if fleet is not None:
            fleet.close()


def can_mount() -> bool:
    return os.geteuid() == 0 and shutil.which("mount") is not None


@pytest.fixture(scope="session")
def fleets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleets]:
    fleets = Fleets(tmp_path_factory.mktemp("faults"))
    yield fleets
    fleets.end()


@pytest.fixture
def fleet(fleets: Fleets, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """Three clients without data."""
    yield from _lend(fleets, "vector", request)


@pytest.fixture
def tiny(fleets: Fleets, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """Three owners who train a tiny BERT."""
    yield from _lend(fleets, "tiny", request)


def _lend(fleets: Fleets, kind: str, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    yield fleets.get(kind)
    report = getattr(request.node, "call_report", None)
    if report is None or not report.passed:
        fleets.end()


Note = Callable[..., None]


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Note:
    """Write a fault down: what it was, and what was seen of it."""

    def add(fault: str, seen: str = "", *, times: int = 1) -> None:
        request.node.user_properties.append(("fault", {"fault": fault, "seen": seen, "times": times}))

    return add


@pytest.fixture
def outcome(request: pytest.FixtureRequest) -> Callable[[dict[str, Any]], None]:
    """Write down what became of the run."""
    return lambda found: request.node.user_properties.append(("outcome", found))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    result = yield
    report = result.get_result()
    if report.when == "call":
        item.call_report = report  # type: ignore[attr-defined]  # pytest's own way to tell a fixture


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    faults = [value for key, value in report.user_properties if key == "fault"]
    if report.when != "call" or not faults:
        return
    outcomes = [value for key, value in report.user_properties if key == "outcome"]
    _ROWS.append(
        {
            "test": report.nodeid.rpartition("/")[2],
            "passed": report.passed,
            "known": getattr(report, "wasxfail", "") if report.skipped else "",
            "seconds": round(report.duration, 1),
            "faults": faults,
            "outcomes": outcomes,
        }
    )


def pytest_sessionfinish() -> None:
    """With HEADWATER_FAULT_TABLE (``make test-faults``) the results become files.

    ``new`` writes them afresh; ``merge`` replaces the rows of the tests that ran.
    """
    mode = os.environ.get("HEADWATER_FAULT_TABLE")
    if not mode or not _ROWS:
        return
    path = _HERE / "results.json"
    ran = {row["test"] for row in _ROWS}
    before = json.loads(path.read_text()) if mode == "merge" and path.exists() else []
    rows = sorted([r for r in before if r["test"] not in ran] + _ROWS, key=lambda r: r["test"].split("::")[0])
    path.write_text(json.dumps(rows, indent=1) + "\n")
    (_HERE.parent.parent / "docs" / "fault-table.md").write_text(write_table(rows, whole=mode == "new"))
