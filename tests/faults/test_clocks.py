"""Clocks that jump: the wall clock of one process; monotonic time goes on, as when somebody sets a clock."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tests.faults.fleet import Trial, eventually, vector

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """``clock.c``, compiled."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    built = tmp_path_factory.mktemp("clock") / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(built), str(source), "-ldl"], check=True)
    return built


class Clock:
    """Of one process, which has ``environment``."""

    def __init__(self, library: Path, file: Path) -> None:
        self._file = file
        file.write_bytes(struct.pack("q", 0))
        self.environment = {"LD_PRELOAD": str(library), "HW_CLOCK": str(file)}

    def jump(self, days: int) -> None:
        """To so many days from now."""
        with self._file.open("r+b") as file:  # in place: it is mapped
            file.write(struct.pack("q", days * 86400))


@pytest.fixture
def clock(library, tmp_path):
    return Clock(library, tmp_path / "clock")


def where(days: int) -> str:
    return f"{days:+d} day" if days else "the right time"


def test_of_the_server(fleet, clock, note, outcome):
    fleet.daemon.end()
    fleet.daemon.environment = clock.environment
    try:
        fleet.network.start_daemon()
        trial = Trial(fleet, vector(14))
        for number, days in ((3, 1), (6, -1), (9, 0)):
            trial.reach(number)
            clock.jump(days)
            note(f"the server's clock jumps to {where(days)} in a round")
        outcome(trial.ends_right())
    finally:
        fleet.daemon.end()
        fleet.daemon.environment = {}
        fleet.network.start_daemon()


def test_of_a_device(fleet, clock, note, outcome):
    agent = fleet.agents[0]
    agent.end()
    agent.environment = clock.environment
    try:
        agent.start()
        trial = Trial(fleet, vector(14))
        for number, days in ((3, 1), (7, 0)):
            trial.reach(number)
            clock.jump(days)
            note(f"a device's clock jumps to {where(days)} in a round")
        trial.reach(9)
        clock.jump(-1)
        note("a device's clock jumps to -1 day in a round: the open connection lives on")
        found = trial.ends_right()
        outcome(found)
    finally:
        agent.end()
        agent.environment = {}
        agent.start()


def test_a_device_that_starts_with_a_wrong_clock(fleet, clock, note, outcome):
    agent = fleet.agents[0]
    agent.end()
    agent.environment = clock.environment
    clock.jump(1)
    try:
        agent.start()
        note("a device starts with a clock that is a day ahead; the server's Date corrects it")
        outcome(Trial(fleet, vector(6)).ends_right())
    finally:
        agent.end()
        agent.environment = {}
        agent.start()


def test_a_device_that_starts_with_a_clock_behind(fleet, clock, note, outcome):
    """The server's certificate is valid from a day before it was made."""
    agent, log = fleet.agents[0], fleet.device(fleet.names[0]) / "state" / "agent.log"
    agent.end()
    agent.environment = clock.environment
    clock.jump(-3)
    try:
        log.unlink(missing_ok=True)
        agent.start()
        trial = Trial(fleet, vector(6), wait=False)
        eventually(
            lambda: log.exists() and b"not yet valid" in log.read_bytes(), 60, "the reason, named", 0.1
        )
        note("a device starts with a clock that is 3 days behind: it names the certificate and the clock")
        assert trial.round < 1
        clock.jump(-1)
        note("… then 1 day behind: it comes in by itself, and the server's Date corrects it")
        outcome(trial.ends_right())
    finally:
        agent.end()
        agent.environment = {}
        agent.start()
