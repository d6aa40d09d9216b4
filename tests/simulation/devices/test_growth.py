"""Rows that come with simulated time, and devices with less memory than a training takes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.client.device.costs import Predictions
from headwater.client.device.memory import nominal_base
from headwater.client.execution.execute import execute
from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import MemoryStore
from headwater.compression.dense import DenseCodec
from headwater.config import load_federation
from headwater.config.codec import DenseCodec as Dense
from headwater.config.training import NoopTraining
from headwater.errors import ConfigError, DecodeError, FederationStopped
from headwater.proto.plan_json import plan_from_json, plan_to_json
from headwater.proto.wire import decode_reply
from headwater.protocol.messages import ClientPlan, TrainRequest
from headwater.seeds.keys import Key
from headwater.server.events import ClientFailed, RoundEnded
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.devices.clock import NEVER
from headwater.simulation.devices.growth import GrowingData, Growth
from headwater.simulation.simulate import simulate
from tests.simulation.devices.runs import accepted, run_devices, simulated, told
from tests.support.runs import bare_federation, run, tiny_federation

HOUR = 3_600_000_000
GROWING = {"tokens_per_s": 1.0, "start_rows": 2, "rows_per_hour": 720.0}  # a row every 5 seconds
MIXED = {
    "tokens_per_s": {"kind": "uniform", "low": 0.5, "high": 3.0},
    "start_rows": {"kind": "choice", "values": [0, 1, 4]},
    "rows_per_hour": {"kind": "lognormal", "median": 2000.0, "sigma": 1.0},
    "availability": {"kind": "churn", "online_s": 30.0, "offline_s": 5.0},
    "dropout": 0.1,
}
BUFFERED = {"schedule": {"kind": "buffered", "buffer": 2}, "cohort": {"clients_per_round": 5, "retry_s": 3.0}}
COHORT = {"cohort": {"clients_per_round": 4, "min_clients": 2, "deadline_s": 60.0, "retry_s": 3.0}}

growths = st.builds(
    Growth,
    st.one_of(st.none(), st.floats(0, 50)),
    st.one_of(st.just(0.0), st.floats(1e-6, 1e9)),
)


@given(growth=growths, most=st.integers(1, 100), times=st.lists(st.integers(0, 100 * HOUR), min_size=2))
def test_rows_only_ever_come_and_the_first_comes_when_it_is_said_to(growth, most, times):
    found = [growth.rows(most, now) for now in sorted(times)]
    assert found == sorted(found)
    assert 0 <= found[0] <= found[-1] <= most
    first = growth.first()
    if first < NEVER:
        assert growth.rows(most, first) >= 1
        assert first == 0 or growth.rows(most, first - 1) == 0 or first > 2**50
    else:
        assert found[-1] == 0


def test_whoever_is_at_work_keeps_its_number():
    growing = GrowingData({"a": Growth(1, 1), "b": Growth(1, 1), "c": Growth()})
    growing.begin({"a": 9, "b": 9, "c": 9}, 0, {"a": 3})
    assert [growing.rows(name) for name in "abc"] == [3, 1, None]
    growing.count(4 * HOUR, {"b"})
    assert [growing.rows(name) for name in "abc"] == [5, 1, None]
    growing.count(40 * HOUR, {"b"})
    assert [growing.rows(name) for name in "abc"] == [None, 1, None]  # all that there are


def test_a_round_trains_on_the_rows_that_were_there_when_the_last_one_ended():
    records = run_devices(GROWING, clients=2, rounds=4)
    # 2 rows take 2 s; at 2 s there are 2, at 4 s 2, at 6 s 3, which take until 9 s
    assert [record["simulated"]["end_s"] for record in records[1:]] == [2.0, 4.0, 6.0, 9.0]
    assert [{row["examples"] for row in record["clients"].values()} for record in records[1:]] == [
        {2},
        {2},
        {2},
        {3},
    ]


def test_a_round_begins_when_enough_clients_have_a_row():
    devices = {"tokens_per_s": 1.0, "start_rows": 0, "rows_per_hour": 360.0}  # a row every 10 seconds
    (_, record) = run_devices(devices, clients=2, rounds=1, cohort={"min_clients": 2})
    assert {row["simulated"]["asked_s"] for row in record["clients"].values()} == {10.0}
    assert {row["examples"] for row in record["clients"].values()} == {1}


def test_nobody_will_ever_have_a_row():
    with pytest.raises(FederationStopped, match="come online"):
        run_devices({"tokens_per_s": 1.0, "start_rows": 0}, clients=2, rounds=1)


def test_a_column_of_the_trace_says_who_has_how_many(tmp_path):
    (tmp_path / "t.csv").write_text(
        "client,start_rows,rows_per_hour\nclient-0000,3,\nclient-0001,1,1e9\nclient-0002,,\n"
    )
    devices = {"tokens_per_s": 1.0, "trace": str(tmp_path / "t.csv")}
    records = run_devices(devices, clients=3, rounds=2)
    assert [row["examples"] for row in records[1]["clients"].values()] == [3, 1, 7]
    assert [row["examples"] for row in records[2]["clients"].values()] == [3, 7, 7]


@pytest.mark.parametrize("tables", [COHORT, BUFFERED], ids=["synchronous", "buffered"])
def test_no_update_is_refused_for_its_rows_and_a_resume_has_the_same_bits(tmp_path, tables):
    tables = {**tables, "data": {"clients": 7, "examples": 40}}
    whole = run_devices(MIXED, clients=7, rounds=6, **tables)
    sizes = [row["examples"] for record in whole for row in record["clients"].values() if "examples" in row]
    assert len(set(sizes)) > 4, "or nothing grows"
    path = bare_federation(
        tmp_path,
        size=20,
        simulation={"devices": MIXED},
        federation={"rounds": 6},
        **tables,
    )
    loaded, done, failures = load_federation(path), [], []

    def watch(event):
        if isinstance(event, RoundEnded) and event.round:
            done.append(1)
        if isinstance(event, ClientFailed):
            failures.append(event.reason)

    folder = RunFolder.create(tmp_path / "run", loaded, {"engine": "inprocess"})
    simulate(loaded, folder, observer=watch, should_stop=lambda: len(done) >= 2)
    simulate(loaded, folder, observer=watch)
    assert told(folder) == whole
    assert all("simulated" in why or "no answer" in why for why in failures)


def test_two_workers_give_the_same_as_one(tmp_path):
    once = run_devices(MIXED, clients=7, rounds=4, **COHORT)
    assert simulated(tmp_path, MIXED, clients=7, rounds=4, workers=2, **COHORT) == once


@pytest.mark.parametrize("where", ["table", "trace"])
def test_scaffold_is_refused(tmp_path, where):
    tables = {"strategy": {"kind": "mean", "control_variates": True}}
    tables["training"] = {"kind": "backprop", "optimizer": "sgd"}
    tables["codec"] = {"up": {"kind": "dense"}}
    (tmp_path / "t.csv").write_text("start_rows\n3\n")
    devices = {"start_rows": 3} if where == "table" else {"trace": "t.csv"}
    file = tiny_federation(tmp_path, simulation={"devices": devices}, **tables)
    with pytest.raises(ConfigError, match="stay as they are"):
        run(file, tmp_path / "run")


# --- what a client does with it ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    return ClientRuntime.open(load_federation(tiny_federation(tmp_path_factory.mktemp("fed"))))


def trained(runtime, rows, **data):
    state, settings = runtime.context.initial_state(), runtime.context.loaded.settings
    request = TrainRequest(
        run=runtime.run,
        round=1,
        client="ann",
        spec=runtime.context.spec.fingerprint(),
        state_sha256=state.sha256(),
        state=DenseCodec("fp32").encode(state, key=Key.root(0)),
        accepted_round=0,
        plan=ClientPlan(settings.training, settings.codec.up, rows=rows),
    )
    (answer,) = execute([request], MemoryStore(), replace(runtime, **data))
    return decode_reply(answer.data, max_bytes=10**6)


def test_a_client_with_so_many_rows_is_one_that_has_no_more(runtime):
    class Shorter:
        def has(self, name):
            return True

        def client(self, name):
            whole = runtime.data.client(name)
            return replace(whole, train=whole.train[:5])

    found, expected = trained(runtime, 5), trained(runtime, None, data=Shorter())
    assert found.examples == expected.examples == 5
    assert found.delta == expected.delta
    assert found.delta != trained(runtime, None).delta


PLAN = ClientPlan(NoopTraining(kind="noop"), Dense(kind="dense"))


@given(rows=st.one_of(st.none(), st.integers(1, 2**32)))
def test_a_plan_travels_with_its_rows(rows):
    plan = replace(PLAN, rows=rows)
    assert plan_from_json(plan_to_json(plan)) == plan
    assert ("rows" in json.loads(plan_to_json(plan))) == (rows is not None)


@pytest.mark.parametrize("rows", [0, -1, True, 1.5, "7"])
def test_a_plan_with_other_rows_is_refused(rows):
    content = json.loads(plan_to_json(PLAN))
    with pytest.raises(DecodeError, match="rows"):
        plan_from_json(json.dumps(content | {"rows": rows}))


# --- memory -----------------------------------------------------------------------------------------


def memory(folder, **tables):
    """A federation whose first client has little memory, in a trace."""
    folder.mkdir(exist_ok=True)
    (folder / "t.csv").write_text("client,memory_mb\nann,1\n")
    devices = {"trace": "t.csv", "memory_mb": 4096}
    return tiny_federation(folder, simulation={"devices": devices}, **tables)


def rows_of(folder, number=1):
    return json.loads((folder / "rounds.jsonl").read_text().splitlines()[number])["clients"]


def test_a_device_without_the_memory_fails_by_name(tmp_path):
    file = memory(tmp_path / "fed", federation={"rounds": 1})
    run(file, tmp_path / "run")
    found = rows_of(tmp_path / "run")
    assert "out of memory (simulated)" in found["ann"]["failed"]
    assert "has 1" in found["ann"]["failed"]
    assert {name for name, row in found.items() if "failed" not in row} == {"ben", "cleo"}


def test_a_planner_gives_each_device_what_fits_it(tmp_path):
    wide = {"training": {"kind": "backprop", "trunk_cache_mb": 200}, "last_layers": 1}
    tables = {
        "federation": {"rounds": 1},
        "methods": {"wide": wide},
        "assignment": {"kind": "planner", "prefer": ["wide", "default"]},
        "evaluation": {"clients": False},
    }
    file = memory(tmp_path / "fed", **tables)
    context = ClientRuntime.open(load_federation(file)).context
    needed = Predictions(context).method("wide", 1) + nominal_base(context)
    (tmp_path / "fed" / "t.csv").write_text(f"client,memory_mb\nann,{needed / 2**20 - 100}\nben,1\n")
    run(file, tmp_path / "run")
    found = rows_of(tmp_path / "run")
    assert found["cleo"]["method"] == "wide"
    assert found["ann"]["method"] == "default"
    assert "a method that fits 1 MiB" in found["ben"]["failed"]
    assert "failed" not in found["ann"]


def test_two_places_that_say_what_devices_have_are_one_too_many(tmp_path):
    planner = {"kind": "planner", "devices": {"phone": {"share": 1.0, "memory_mb": 900}}}
    file = tiny_federation(tmp_path, assignment=planner, simulation={"devices": {"memory_mb": 900}})
    with pytest.raises(ConfigError, match="say the same"):
        load_federation(file)


def test_accepted_is_all_of_a_run_without_limits(tmp_path):
    (_, record) = run_devices({"tokens_per_s": 1.0, "memory_mb": 1.0}, clients=2, rounds=1)
    assert accepted(record) == set(record["clients"])  # a bare vector takes no memory
