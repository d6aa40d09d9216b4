"""Clocks that jump: the wall clock of one process, by libfaketime; monotonic time goes on, as it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.fleet import Trial, vector

pytestmark = pytest.mark.faults
_FOUND = [
    *Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"),
    *Path("/usr/lib").glob("faketime/*MT.so.1"),
]
LIBRARY = _FOUND[0] if _FOUND else None


@pytest.fixture
def clock(tmp_path):
    if LIBRARY is None:
        pytest.skip("libfaketime is not installed")
    file = tmp_path / "clock"
    file.write_text("+0\n")
    return file


def faked(file: Path) -> dict[str, str]:
    return {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }


def set_clock(file: Path, offset: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(offset + "\n")
    new.replace(file)


def test_of_the_server(fleet, clock, note, outcome):
    fleet.daemon.end()
    fleet.daemon.environment = faked(clock)
    try:
        fleet.network.start_daemon()
        trial = Trial(fleet, vector(14))
        for number, offset in ((3, "+1d"), (6, "-1d"), (9, "+0")):
            trial.reach(number)
            set_clock(clock, offset)
            note(f"the server's clock jumps to {offset if offset != '+0' else 'the right time'} in a round")
        outcome(trial.ends_right())
    finally:
        fleet.daemon.end()
        fleet.daemon.environment = {}
        fleet.network.start_daemon()


def test_of_a_device(fleet, clock, note, outcome):
    agent = fleet.agents[0]
    agent.end()
    agent.environment = faked(clock)
    try:
        agent.start()
        trial = Trial(fleet, vector(14))
        for number, offset in ((3, "+1d"), (7, "+0")):
            trial.reach(number)
            set_clock(clock, offset)
            note(f"a device's clock jumps to {offset if offset != '+0' else 'the right time'} in a round")
        trial.reach(9)
        set_clock(clock, "-1d")
        note("a device's clock jumps to -1d in a round: the open connection lives on")
        found = trial.ends_right()
        outcome(found)
    finally:
        agent.end()
        agent.environment = {}
        agent.start()


def test_a_device_that_starts_with_a_wrong_clock(fleet, clock, note, outcome):
    agent = fleet.agents[0]
    agent.end()
    agent.environment = faked(clock)
    set_clock(clock, "+1d")
    try:
        agent.start()
        note("a device starts with a clock that is a day ahead; the server's Date corrects it")
        outcome(Trial(fleet, vector(6)).ends_right())
    finally:
        agent.end()
        agent.environment = {}
        agent.start()
