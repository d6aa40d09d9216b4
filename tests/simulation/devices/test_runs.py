"""Whole runs on simulated devices: the same with other workers, after a resume, and in awkward worlds."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.config import load_federation
from headwater.errors import ConfigError, FederationStopped
from headwater.protocol.messages import ClientProfile
from headwater.seeds.keys import Key
from headwater.server.events import RoundEnded
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.devices import clock as virtual_time
from headwater.simulation.devices.at_work import AtWorkFiles
from headwater.simulation.devices.clients import DeviceClients, SimulatedWay
from headwater.simulation.devices.fleet import Fleet
from headwater.simulation.simulate import simulate
from tests.simulation.devices.runs import accepted, run_devices, simulated, told
from tests.support.runs import bare_federation

DEVICES = {
    "tokens_per_s": {"kind": "lognormal", "median": 3.0, "sigma": 0.8},
    "download_bps": 1e5,
    "upload_bps": {"kind": "uniform", "low": 2e3, "high": 2e4},
    "latency_s": 0.05,
    "dropout": 0.1,
    "availability": {"kind": "churn", "online_s": 30.0, "offline_s": 10.0},
    "compute_watts": 4.0,
}
COHORT = {"clients_per_round": 5, "target_clients": 4, "min_clients": 2, "deadline_s": 20.0, "retry_s": 3.0}


def test_two_workers_give_the_same_times_as_one(tmp_path):
    cohort = {**COHORT, "clients_per_round": 8, "target_clients": 3}
    once = run_devices(DEVICES, clients=10, rounds=8, cohort=cohort)
    assert once == simulated(tmp_path, DEVICES, clients=10, rounds=8, cohort=cohort, workers=2)
    assert any(row.get("failed") for record in once for row in record["clients"].values())


def interrupted(path, folder, after):
    """Run until so many rounds are written, then stop; go on to the end. The rounds."""
    loaded = load_federation(path)
    run = RunFolder.create(folder, loaded, {"engine": "inprocess"})
    done = []
    summary = simulate(
        loaded,
        run,
        observer=lambda event: done.append(1) if isinstance(event, RoundEnded) and event.round else None,
        should_stop=lambda: len(done) >= after,
    )
    assert summary["stopped"] == "stopped"
    assert summary["rounds"] == after
    simulate(loaded, run)
    return told(run)


BUFFERED = {"schedule": {"kind": "buffered", "buffer": 3}, "cohort": {"clients_per_round": 6, "retry_s": 3.0}}


@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize("tables", [{"cohort": COHORT}, BUFFERED], ids=["synchronous", "buffered"])
def test_a_resumed_run_has_the_same_bits_and_times(tmp_path, after, tables):
    whole = run_devices(DEVICES, clients=8, rounds=5, **tables)
    path = bare_federation(
        tmp_path,
        size=20,
        simulation={"devices": DEVICES},
        data={"clients": 8},
        federation={"rounds": 5},
        **tables,
    )
    assert interrupted(path, tmp_path / "run", after) == whole


def trace(folder, text):
    (folder / "online.csv").write_text("client,start_s,end_s\n" + text)
    return {"kind": "trace", "path": str(folder / "online.csv")}


def test_the_server_waits_until_clients_come_online(tmp_path):
    online = trace(tmp_path, "client-0000,100,200\nclient-0001,50,90\nclient-0001,130,200\n")
    devices = {"tokens_per_s": 7.0, "availability": online}
    (_, record) = run_devices(devices, clients=2, rounds=1, cohort={"min_clients": 2})
    rows = record["clients"]
    assert [rows[c]["simulated"]["asked_s"] for c in sorted(rows)] == [130.0, 130.0]
    assert record["simulated"]["trained_s"] == 131.0


@pytest.mark.parametrize(
    ("how", "back", "ends", "watt_seconds"),
    [("lost", 5, 12.0, 3 + 7), ("resumes", 5, 9.0, 7), ("lost", 8, 3.0, 3), ("resumes", 8, 12.0, 7)],
)
def test_a_task_whose_client_goes_offline_is_lost_or_goes_on(tmp_path, how, back, ends, watt_seconds):
    online = trace(tmp_path, f"client-0000,0,100\nclient-0001,0,3\nclient-0001,{back},100\n")
    devices = {"tokens_per_s": 1.0, "availability": online, "interrupted": how, "compute_watts": 1.0}
    (_, record) = run_devices(devices, clients=2, rounds=1)
    row = record["clients"]["client-0001"]
    assert row["simulated"]["end_s"] == ends
    assert row["simulated"]["joules"] == watt_seconds
    # lost, it is asked again when it is back while the round is open, which is until the other answers
    assert ("offline in mid-task" in row.get("failed", "")) == (ends == 3.0)
    assert record["simulated"]["trained_s"] == max(7.0, ends)


def test_others_are_asked_in_place_of_those_that_failed_with_the_updates_that_are_in(tmp_path):
    # of the four that are there at first, two are not heard of again; two others come after 15 seconds
    online = trace(
        tmp_path,
        "client-0000,0,900\nclient-0001,0,900\nclient-0002,0,3\nclient-0003,0,3\n"
        "client-0004,15,900\nclient-0005,15,900\n",
    )
    devices = {"tokens_per_s": 1.0, "availability": online, "compute_watts": 1.0}
    cohort = {"clients_per_round": 4, "min_clients": 4, "deadline_s": 20.0, "retry_s": 1000.0}
    (_, record) = run_devices(devices, clients=6, rounds=1, cohort=cohort)
    assert accepted(record) == {f"client-000{i}" for i in (0, 1, 4, 5)}
    rows = record["clients"]
    assert [rows[f"client-000{i}"]["simulated"]["end_s"] for i in (0, 1, 4, 5)] == [7.0, 7.0, 22.0, 22.0]
    assert record["simulated"]["trained_s"] == 22.0
    assert record["simulated"]["joules"] == 4 * 7 + 2 * 3


def test_others_are_asked_in_place_of_those_that_are_late(tmp_path):
    (tmp_path / "speeds.csv").write_text("client,tokens_per_s\nclient-0001,0.1\n")
    devices = {"tokens_per_s": 1.0, "trace": str(tmp_path / "speeds.csv")}
    devices["availability"] = trace(tmp_path, "client-0000,0,900\nclient-0001,0,900\nclient-0002,5,900\n")
    cohort = {"min_clients": 2, "deadline_s": 20.0}
    (_, record) = run_devices(devices, clients=3, rounds=1, cohort=cohort)
    # at 20 seconds only one update is in, and a client is there that was not asked
    assert accepted(record) == {"client-0000", "client-0002"}
    assert record["clients"]["client-0002"]["simulated"]["asked_s"] == 20.0
    assert record["simulated"]["trained_s"] == 40.0
    assert record["clients"]["client-0001"]["failed"].startswith("no answer within 20 s")


def test_nobody_is_asked_who_is_offline(tmp_path):
    online = trace(tmp_path, "client-0000,0,100\nclient-0002,0,100\n")
    (_, record) = run_devices({"tokens_per_s": 7.0, "availability": online}, clients=3, rounds=1)
    assert accepted(record) == set(record["clients"]) == {"client-0000", "client-0002"}


def test_time_passes_while_nobody_asks_who_is_there(tmp_path):
    path = bare_federation(tmp_path, simulation={"devices": {"availability": DEVICES["availability"]}})
    fleet = Fleet(load_federation(path).settings.simulation.devices, Key.root(0), 1, None, {})
    clock, names = virtual_time.VirtualClock(), ("client-0000", "client-0001")
    grid = SimpleNamespace(expect=lambda left: [])
    way = SimulatedWay(clock, fleet, grid, AtWorkFiles(tmp_path), None)
    clients = DeviceClients(None, {n: ClientProfile(n, 7, 0, "", "") for n in names}, way=way)
    changes = sorted({t for n in names for t in changes_of(fleet.times(n), until=200_000_000)})
    for change in changes:  # as while clients evaluate
        clock.sleep(math.inf)
        assert clock.now == change
    assert set(clients.ready()) == {n for n in names if fleet.times(n).online(clock.now)}


def changes_of(times, until):
    now = times.next_change(0)
    while now <= until:
        yield now
        now = times.next_change(now)


def test_a_run_that_would_wait_for_ever_ends(tmp_path):
    online = trace(tmp_path, "client-0000,0,100\n")
    devices = {"tokens_per_s": 7.0, "availability": online}
    with pytest.raises(FederationStopped, match="expected clients that are at work, or come online"):
        run_devices(devices, clients=2, rounds=1, cohort={"min_clients": 2})


def test_a_client_that_always_drops_out_is_not_asked_for_ever():
    with pytest.raises(FederationStopped, match="none to 100 requests"):
        run_devices({"tokens_per_s": 7.0, "dropout": 1.0}, clients=1, rounds=1)


def test_a_deadline_far_below_every_task_is_told_and_not_counted_out(monkeypatch):
    monkeypatch.setattr(virtual_time, "MOST_WAITS", 100)
    run_devices({"latency_s": 50.0}, clients=1, rounds=1, cohort={"deadline_s": 1.0})
    with pytest.raises(FederationStopped, match=r"within 100 deadlines.*Raise cohort.deadline_s"):
        run_devices({"latency_s": 51.0}, clients=1, rounds=1, cohort={"deadline_s": 1.0})


@given(now=st.integers(0, virtual_time.NEVER - 1))
def test_a_file_of_seconds_tells_every_microsecond_apart(now):
    assert virtual_time.micros(json.loads(json.dumps(virtual_time.seconds(now)))) == now


def test_late_updates_are_merged_by_staleness_in_simulated_time(tmp_path):
    (tmp_path / "speeds.csv").write_text("client,tokens_per_s\n" + "".join(
        f"client-000{i},{speed}\n" for i, speed in enumerate((7.0, 7.0, 2.5, 2.5))
    ))  # fmt: skip
    devices = {"trace": str(tmp_path / "speeds.csv")}
    rounds = run_devices(devices, rounds=4, schedule={"kind": "buffered", "buffer": 2})
    # seconds 1 and 2 are the fast ones', the slow ones' first is there at 2.8, the next fast ones' at 3
    wanted = [((0, 1), 0, 1.0), ((0, 1), 0, 2.0), ((2, 3), 2, 2.8), ((0, 1), 1, 3.0)]
    for record, (clients, staleness, ends) in zip(rounds[1:], wanted, strict=True):
        assert accepted(record) == {f"client-000{i}" for i in clients}
        assert {record["clients"][c]["staleness"] for c in accepted(record)} == {staleness}
        assert record["simulated"]["trained_s"] == ends


def test_devices_that_live_in_real_time_are_not_simulated(tmp_path):
    loaded = load_federation(bare_federation(tmp_path, simulation={"devices": {}}))
    folder = RunFolder.create(tmp_path / "run", loaded, {"engine": "network"})
    with pytest.raises(ConfigError, match="simulated clock"):
        simulate(loaded, folder, engine="network")


@pytest.mark.parametrize("devices", [None, {"latency_s": 1.0}])
def test_budgets_by_links_need_links(tmp_path, devices):
    tables = {} if devices is None else {"simulation": {"devices": devices}}
    loaded = load_federation(bare_federation(tmp_path, cohort={"upload_s": 9.0}, **tables))
    folder = RunFolder.create(tmp_path / "run", loaded, {"engine": "inprocess"})
    with pytest.raises(ConfigError, match=r"cohort\.upload_s 9: expected links that are measured"):
        simulate(loaded, folder)


def test_a_changed_trace_is_not_resumed_with(tmp_path):
    online = trace(tmp_path, "client-0000,0,100\nclient-0001,0,100\nclient-0002,0,100\n")
    path = bare_federation(tmp_path, simulation={"devices": {"availability": online}})
    loaded = load_federation(path)
    folder = RunFolder.create(tmp_path / "run", loaded, {"engine": "inprocess"})
    simulate(loaded, folder)
    trace(tmp_path, "client-0000,0,90\n")
    with pytest.raises(ConfigError, match="the devices that the run began with"):
        simulate(loaded, folder)


def test_who_is_not_asked_is_not_looked_at_when_it_comes_and_goes(monkeypatch):
    """What a round costs hangs on who is asked: with 5,000 clients the looks were nine tenths of a run."""
    looks, moves, ready, update = [], [], DeviceClients.ready, DeviceClients._update
    monkeypatch.setattr(DeviceClients, "ready", lambda self: looks.append(1) or ready(self))

    def counted(self):
        before = set(self._moved)
        update(self)
        moves.extend(self._moved - before)

    monkeypatch.setattr(DeviceClients, "_update", counted)
    devices = {
        "seconds_per_1000_tokens": 1e5,
        "availability": {"kind": "churn", "online_s": 40.0, "offline_s": 40.0},
        "interrupted": "resumes",
    }
    run_devices(devices, clients=200, rounds=2, cohort={"clients_per_round": 2})
    assert len(moves) > 1000
    assert len(looks) < len(moves) / 10
