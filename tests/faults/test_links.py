"""The line of one device: through a proxy of ours, and through a network namespace where that is allowed."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.faults.fleet import Fleet, Trial, eventually, lines, vector
from tests.faults.namespace import Namespace, in_namespace
from tests.faults.proxy import Proxy

pytestmark = pytest.mark.faults


@pytest.fixture
def line(fleet: Fleet) -> Iterator[Proxy]:
    """The last device's."""
    fleet.proxy.clear()
    yield fleet.proxy
    fleet.proxy.clear()


def test_reset_in_the_middle_of_bodies(fleet, line, note, outcome):
    trial = Trial(fleet, vector(6, codec="dense"))
    trial.reach(1)
    before = line.resets
    line.weather.reset_after = 300_000
    eventually(lambda: line.resets >= before + 3, 60, "three resets")
    line.clear()
    note("a connection is reset after 300 kB, in the middle of an 800 kB update", times=line.resets - before)
    trial.reach(3)
    resets = 0
    for _ in range(6):
        resets += line.reset()
        time.sleep(0.4)
    note("all of a device's connections are reset every 0.4 s", times=resets)
    outcome(trial.ends_right())


def test_corrupted_bytes(fleet, line, note, outcome):
    trial = Trial(fleet, vector(8, codec="dense"))
    trial.reach(1)
    line.weather.corrupt_up = 3
    eventually(lambda: line.weather.corrupt_up == 0, 60, "three corrupted pieces")
    note("a bit flips on the way up; TLS ends the connection", times=3)
    trial.reach(3)
    line.weather.corrupt_down = 3
    eventually(lambda: line.weather.corrupt_down == 0, 60, "three corrupted pieces")
    note("a bit flips on the way down", times=3)
    outcome(trial.ends_right())


def test_nobody_listens(fleet, line, note, outcome):
    trial = Trial(fleet)
    trial.reach(3)
    line.weather.closed = True
    line.reset()
    time.sleep(10)
    held = trial.round
    line.clear()
    note("a device's line is closed for 10 s; the round waits", f"in round {held + 1}")
    assert held < 12
    outcome(trial.ends_right())


def test_half_open_connections(fleet, line, note, outcome):
    """Nothing is told: the device finds out by its own timeout of 60 s."""
    trial = Trial(fleet)
    trial.reach(3)
    line.weather.black_hole = True
    time.sleep(3)
    line.clear()  # new connections work; the old ones stay dead
    begun = time.monotonic()
    note("all of a device's connections go dead without a word (half open)")
    outcome(trial.ends_right() | {"said": f"after {time.monotonic() - begun:.0f} s"})


def test_a_long_way(fleet, line, note, outcome):
    line.weather.delay_s = 0.08
    note("each piece of 16 kB takes 80 ms longer, both ways")
    outcome(Trial(fleet, vector(3)).ends_right())


def test_a_slow_line_delays_its_own_client_only(fleet, line, note, outcome):
    """With a deadline a round closes without it."""
    trial = Trial(fleet, vector(8, least=2, more="deadline_s = 3.0"))
    trial.reach(2)
    line.weather.bytes_per_s = 50_000
    trial.reach(6)
    line.clear()
    trial.end()
    without = [r["round"] for r in lines(trial.folder / "rounds.jsonl")[1:] if len(r["clients"]) == 2]
    note("50 kB/s for one client, and a deadline: rounds close without it", f"rounds {without}")
    assert without
    outcome({"said": "8 rounds, nobody waits"})


def test_a_slow_line_gets_a_budget_and_is_in_time(fleet, line, note, outcome):
    """The update of 43 kB takes longer than the round; what the server saw of it makes the next shorter."""
    trial = Trial(fleet, vector(6, least=2, size=1_000_000, more="deadline_s = 8.0\nupload_s = 2.0"))
    trial.reach(1)
    line.weather.up_per_s = 8000
    trial.end()
    rounds = lines(trial.folder / "rounds.jsonl")[1:]
    slow = fleet.names[-1]
    rows = {r["round"]: r["clients"][slow] for r in rounds if slow in r["clients"]}
    late = [number for number, row in rows.items() if "failed" in row]
    budgets = {number: row.get("budget_bytes") for number, row in rows.items()}
    note("8 kB/s up for one client, a deadline and upload_s", f"late in {late}, budgets {budgets}")
    assert late
    assert "examples" in rows[6]
    assert budgets[6] is not None
    others = [row for r in rounds for name, row in r["clients"].items() if name != slow]
    assert all("budget_bytes" not in row and "examples" in row for row in others)
    outcome({"said": "6 rounds, and it is in time"})


@pytest.fixture
def far(fleet: Fleet, namespace: Namespace) -> Iterator[Namespace]:
    """The second device lives in the namespace."""
    agent = fleet.agents[1]
    with in_namespace(fleet, 1, namespace):
        agent.start()
        yield namespace
    agent.start()


def test_cut_in_a_namespace(fleet, far, note, outcome):
    trial = Trial(fleet, vector(6, codec="dense"))
    trial.reach(1)
    far.limit(400)
    eventually(lambda: trial.open_round > trial.saved and len(trial.spool()) == 2, 60, "the others' updates")
    far.cut()
    time.sleep(10)
    held = trial.round
    far.mend()
    far.clear()
    note("a device's link is down for 10 s in the middle of an upload", f"in round {held + 1}")
    assert held < 6
    outcome(trial.ends_right())


def test_lost_packets_in_a_namespace(fleet, far, note, outcome):
    far.lose()
    trial = Trial(fleet, vector(6, codec="dense"))
    found = trial.ends_right()
    note("every 16th packet is lost, both ways", f"{far.lost()} lost")
    assert far.lost() > 3
    outcome(found)


def test_50_kb_a_second_in_a_namespace(fleet, far, note, outcome):
    far.limit(50)
    trial = Trial(fleet, vector(1))
    found = trial.ends_right()
    note("a link of 50 kB/s: 16 s for the model alone")
    outcome(found)
