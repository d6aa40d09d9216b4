"""Budgets by what simulated links carry: who is slow sends less, and is in time."""

from __future__ import annotations

import pytest

from headwater.simulation.devices.clock import micros
from headwater.simulation.devices.costs import Link, Power, SimulatedDevice
from headwater.simulation.devices.online import Always
from headwater.simulation.devices.tasks import SimulatedTask
from tests.simulation.devices.runs import accepted, run_devices, simulated
from tests.simulation.devices.test_runs import interrupted
from tests.support.runs import bare_federation

SIZE = 20_000
DEVICES = {"tokens_per_s": 7.0, "latency_s": 0.25}
COHORT = {"deadline_s": 12.0, "upload_s": 8.0}


@pytest.fixture
def devices(tmp_path):
    """Three links: 4 s, 20 s and 40 s for an update of 2,515 bytes, as all are at density 0.2."""
    path = tmp_path / "links.csv"
    path.write_text("client,upload_bps\nclient-0000,5030\nclient-0001,1006\nclient-0002,503\n")
    return {**DEVICES, "trace": str(path)}


def run(devices, rounds=4, **cohort):
    return run_devices(devices, clients=3, rounds=rounds, size=SIZE, cohort={**COHORT, **cohort})[1:]


def test_slow_links_get_budgets_by_the_part_that_came_and_are_then_in_time(devices):
    first, *rounds = run(devices)
    assert accepted(first) == {"client-0000"}
    assert all("budget_bytes" not in row for row in first["clients"].values())
    for record in rounds:
        rows = [record["clients"][f"client-000{i}"] for i in range(3)]
        assert accepted(record) == set(record["clients"])
        assert "budget_bytes" not in rows[0]  # its link carries the codec's own density
        assert rows[0]["bytes_up"] > rows[1]["bytes_up"] > rows[2]["bytes_up"]
        assert rows[2]["budget_bytes"] < rows[1]["budget_bytes"]
        assert all(row["simulated"]["upload_s"] <= COHORT["upload_s"] for row in rows)
    plain = run_devices(devices, clients=3, rounds=4, size=SIZE, cohort={"deadline_s": 12.0})[1:]
    assert all(accepted(record) == {"client-0000"} for record in plain)


def test_a_resumed_run_gives_the_same_budgets(tmp_path, devices):
    tables = {"cohort": COHORT, "data": {"clients": 3}, "federation": {"rounds": 4}}
    path = bare_federation(tmp_path, size=SIZE, simulation={"devices": devices}, **tables)
    assert interrupted(path, tmp_path / "run", 2) == run_devices(
        devices, clients=3, rounds=4, size=SIZE, cohort=COHORT
    )


def test_two_workers_measure_the_same_as_one(tmp_path, devices):
    once = run_devices(devices, clients=3, rounds=3, size=SIZE, cohort=COHORT)
    assert once == simulated(tmp_path, devices, clients=3, rounds=3, workers=2, size=SIZE, cohort=COHORT)
    assert "budget_bytes" in once[-1]["clients"]["client-0002"]


def test_what_was_through_says_how_fast_a_link_is():
    device = SimulatedDevice(0.0, 0.0, Link(None, 8000.0, 1.0), Power(0, 0, 0, 0, 0), Always())
    task = SimulatedTask("ann", "train", device, 0, 10, micros(2))
    task.begin(resumes=False)
    task.finish(3000, resumes=False)  # 1 s of latency and 3 s, from second 3 on
    speeds = [task.spent(micros(s), resumes=False).bytes_per_s for s in (1, 3, 4, 5, 9)]
    assert speeds == [None, None, 750, 750, 750]
