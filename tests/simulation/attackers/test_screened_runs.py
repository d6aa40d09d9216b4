"""Whole runs of a vector's clients, one of whom shouts: screened, in passes, by workers, after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headwater.config import load_federation
from headwater.server.events import Event, Notice, RoundEnded
from headwater.server.report.data import read_run
from headwater.server.report.page import facts
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.simulate import simulate
from tests.support.runs import bare_federation

LIAR = "client-0002"


def file(folder: Path, strategy: dict[str, Any]) -> Path:
    return bare_federation(
        folder,
        size=40,
        data={"kind": "none", "clients": 6, "examples": 7},
        codec={"up": {"kind": "dense"}},
        cohort={"min_clients": 6},
        strategy=strategy,
        simulation={"attackers": [{"kind": "scale", "clients": [LIAR], "factor": 50.0}]},
    )


def run(
    source: Path, place: Path, *, workers: int = 1, stop_after: int | None = None
) -> tuple[str, list[Event]]:
    """The adapter's hash, and what was told; stopped and resumed after a round where that is asked for."""
    loaded, told = load_federation(source), list[Event]()
    folder = RunFolder.create(place, loaded, {"engine": "inprocess"})

    def stopping() -> bool:
        return sum(isinstance(event, RoundEnded) and event.round > 0 for event in told) == stop_after

    if stop_after is not None:
        simulate(loaded, folder, observer=told.append, should_stop=stopping)
        assert len((place / "rounds.jsonl").read_text().splitlines()) < 4
    simulate(loaded, folder, workers=workers, observer=told.append)
    return json.loads((place / "summary.json").read_text())["adapter_sha256"], told


def rows(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "rounds.jsonl").read_text().splitlines()][1:]


def test_a_screened_round_says_who_stood_out_and_is_merged_without_it(tmp_path: Path) -> None:
    screen = {"kind": "mean", "weighting": "equal", "screen": {"leave_out": True, "cosine": -1.0}}
    _, told = run(file(tmp_path / "fed", screen), tmp_path / "run")
    for record in rows(tmp_path / "run"):
        assert record["merge"]["suspects"] == record["merge"]["left_out"] == 1
        marked = {name: row.get("suspect") for name, row in record["clients"].items()}
        assert marked == {name: "scaled" if name == LIAR else None for name in marked}
        assert record["clients"][LIAR]["left_out"] is True
        norms = {name: row["norm"] for name, row in record["clients"].items()}
        assert norms[LIAR] > 10 * max(norm for name, norm in norms.items() if name != LIAR)
        assert record["merge"]["delta_norm"] < norms[LIAR] / 10
    notices = [event.text for event in told if isinstance(event, Notice)]
    assert f"round 2: the update of client {LIAR} stands out: scaled, left out" in notices
    shown = dict(facts(read_run(RunFolder(tmp_path / "run"))))
    assert shown["updates that stood out"] == f"{LIAR} in 3 of 3 rounds, left out 3x"


def test_a_screen_that_only_tells_changes_no_bit(tmp_path: Path) -> None:
    hashes = set()
    for name, more in (("told", {"screen": {}}), ("plain", {})):
        found, _ = run(file(tmp_path / name / "fed", {"kind": "mean", **more}), tmp_path / name / "run")
        hashes.add(found)
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "strategy",
    [
        {"kind": "mean", "screen": {"leave_out": True}},
        {"kind": "geometric_median", "passes": 3},
        {"kind": "fltrust", "trusted": ["client-0000"]},
    ],
)
def test_workers_and_a_resume_change_no_bit(tmp_path: Path, strategy: dict[str, Any]) -> None:
    source = file(tmp_path / "fed", strategy)
    expected, _ = run(source, tmp_path / "one")
    assert run(source, tmp_path / "two", workers=2)[0] == expected
    assert run(source, tmp_path / "stopped", stop_after=1)[0] == expected
