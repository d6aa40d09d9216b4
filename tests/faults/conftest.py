"""Fixtures: fleets that live as long as tests pass, and the table of all faults that a run injected."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.fleet import Fleet, tiny_rows
from tests.faults.namespace import Namespace, allowed
from tests.faults.table import write_table

_ROWS: list[dict[str, Any]] = []
_STARTED: dict[str, Any] = {}
_ENDED: set[str] = set()
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


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    if not allowed():
        pytest.skip("no network namespaces here")
    with Namespace() as made:
        yield made


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
    if report.when == "teardown":
        _ENDED.add(report.nodeid)
    if (
        report.when == "teardown"
        or not (faults or report.failed)
        or (report.when == "setup" and report.passed)
    ):
        return
    outcomes = [value for key, value in report.user_properties if key == "outcome"]
    _ROWS.append(
        {
            "test": report.nodeid.rpartition("/")[2],
            "passed": report.passed,
            "known": getattr(report, "wasxfail", "") if report.skipped else "",
            "seconds": round(report.duration, 1),
            "faults": faults or [{"fault": "before any was made", "seen": report.when, "times": 0}],
            "outcomes": outcomes,
        }
    )


def _is_whole(config: pytest.Config) -> bool:
    """Whether this session was told to run all of this folder."""
    told = [Path(config.invocation_params.dir, word).resolve() for word in config.args]
    return told == [_HERE] and not config.option.keyword and config.option.markexpr == "faults"


def commit() -> str:
    """What is checked out, and whether it was changed since."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=_HERE, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "../../headwater", ".", ":!results.json")
    return f"`{git('rev-parse', '--short', 'HEAD') or 'unknown'}`" + (", changed since," if changed else "")


def pytest_collection_finish(session: pytest.Session) -> None:
    _STARTED.update(commit=commit(), tests=len(session.items))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table; with HEADWATER_FAULT_TABLE (``make test-faults``) write it to results/faults.md.

    A run of every test replaces the page, and names the commit it began on. A run of some, or one that was
    broken off, replaces the rows of the tests that ran.
    """
    if not _ROWS:
        return
    whole = _is_whole(config) and len(_ENDED) == _STARTED["tests"]
    path = _HERE / "results.json"
    ran = {row["test"] for row in _ROWS}
    before = [] if whole or not path.exists() else json.loads(path.read_text())
    rows = sorted([r for r in before if r["test"] not in ran] + _ROWS, key=lambda r: r["test"].split("::")[0])
    name = _STARTED["commit"] if whole else ""
    terminalreporter.write_line("\n" + write_table(_ROWS, commit=name))
    if os.environ.get("HEADWATER_FAULT_TABLE"):
        path.write_text(json.dumps(rows, indent=1) + "\n")
        (_HERE.parent.parent / "results" / "faults.md").write_text(write_table(rows, commit=name))
