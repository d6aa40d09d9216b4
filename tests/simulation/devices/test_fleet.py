"""Which device a client gets, from distributions and from traces; and what a wrong trace is told."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from headwater.config import load_federation
from headwater.config.devices import DeviceSettings, Distribution
from headwater.errors import ConfigError, DataError
from headwater.seeds.keys import Key
from headwater.simulation.devices.clock import NEVER
from headwater.simulation.devices.fleet import Fleet, drawn
from headwater.simulation.devices.traces import read_devices, read_intervals
from tests.support.runs import bare_federation

CLIENTS = tuple(f"client-{i:04}" for i in range(40))


def distribution(table):
    return TypeAdapter(Distribution).validate_python(table)


def fleet(*, seed=0, trace=None, intervals=None, parameters=1000, **table):
    settings = DeviceSettings.model_validate(table)
    return Fleet(settings, Key.root(seed), parameters, trace, intervals or {})


DISTRIBUTIONS = st.one_of(
    st.floats(0, 1e6),
    st.builds(lambda low, more: {"kind": "uniform", "low": low, "high": low + more},
              st.floats(0, 1e3), st.floats(0, 1e3)),
    st.builds(lambda median, sigma: {"kind": "lognormal", "median": median, "sigma": sigma},
              st.floats(1e-3, 1e3), st.floats(0, 2)),
    st.builds(lambda values: {"kind": "choice", "values": tuple(values)},
              st.lists(st.floats(0, 1e3), min_size=1, max_size=5)),
)  # fmt: skip


@given(table=DISTRIBUTIONS, seed=st.integers(0, 100))
def test_a_drawn_value_is_one_that_the_distribution_has(table, seed):
    found = distribution(table)
    value = drawn(found, Key.root(seed))
    least, most = found.ends()
    assert least <= value <= most
    if found.kind == "choice":
        assert value in found.values
    assert value == drawn(found, Key.root(seed))


def many(table, count=4000):
    found, root = distribution(table), Key.root(3)
    return [drawn(found, root.child(i)) for i in range(count)]


def test_the_draws_have_the_distribution_that_they_are_named_by():
    values = many({"kind": "lognormal", "median": 5.0, "sigma": 0.5})
    assert statistics.median(values) == pytest.approx(5.0, rel=0.05)
    assert statistics.stdev(map(math.log, values)) == pytest.approx(0.5, rel=0.05)
    assert statistics.mean(many({"kind": "uniform", "low": 2, "high": 4})) == pytest.approx(3, rel=0.02)
    dealt = many({"kind": "choice", "values": (1.0, 2.0, 9.0), "weights": (1.0, 3.0, 0.0)})
    assert set(dealt) == {1.0, 2.0}
    assert dealt.count(2.0) / len(dealt) == pytest.approx(0.75, abs=0.03)


@settings(max_examples=20)
@given(seed=st.integers(0, 9), order=st.permutations(range(6)))
def test_a_clients_device_hangs_on_no_other_client(seed, order):
    table = {
        "tokens_per_s": {"kind": "lognormal", "median": 5, "sigma": 1},
        "upload_bps": {"kind": "uniform", "low": 1, "high": 9},
        "availability": {"kind": "churn", "online_s": 5, "offline_s": 5},
    }
    alone = {i: fleet(seed=seed, **table).device(CLIENTS[i]) for i in order}
    together = fleet(seed=seed, **table)
    for i in order:
        one, other = together.device(CLIENTS[i]), alone[i]
        assert (one.pass_s, one.link) == (other.pass_s, other.link)
        assert one.times.next_change(10**7) == other.times.next_change(10**7)
    assert len({device.pass_s for device in alone.values()}) == len(order)


def test_the_three_ways_to_say_a_speed():
    assert fleet(tokens_per_s=50).device("a").pass_s == 0.02
    assert fleet(seconds_per_1000_tokens=20).device("a").pass_s == 0.02
    assert fleet(flop_per_s=1e6, parameters=10_000).device("a").pass_s == 0.02


def written(folder, text, name="devices.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_trace_overrides_the_table_where_it_has_a_value(tmp_path):
    text = "client,tokens_per_s,upload_bps\nclient-0000,4,\nclient-0001,,800\n"
    trace = read_devices(written(tmp_path, text), CLIENTS)
    found = fleet(trace=trace, seconds_per_1000_tokens=500, upload_bps=100)
    devices = [found.device(c) for c in CLIENTS[:3]]
    assert [d.pass_s for d in devices] == [0.25, 0.5, 0.5]
    assert [d.link.upload_bps for d in devices] == [100, 800, 100]


def test_a_trace_without_names_is_dealt(tmp_path):
    trace = read_devices(written(tmp_path, "tokens_per_s\n1\n2\n4\n"), CLIENTS)
    speeds = [fleet(trace=trace).device(c).pass_s for c in CLIENTS]
    assert set(speeds) == {1.0, 0.5, 0.25}
    assert speeds == [fleet(trace=trace).device(c).pass_s for c in CLIENTS]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("client,token_per_s\nclient-0000,3\n", "header: expected columns of client, tokens_per_s.*"
         "got 'token_per_s'. Did you mean 'tokens_per_s'"),
        ("client,tokens_per_s\nclient-0000,fast\n", ":2, tokens_per_s: expected a number above 0.*'fast'"),
        ("client,tokens_per_s\nclient-0000,0\n", ":2, tokens_per_s: expected a number above 0.*got '0'"),
        ("client,dropout\nclient-0000,1.5\n", ":2, dropout: expected a number of at least 0 and at most 1"),
        ("client,upload_bps\nclient-0000,nan\n", ":2, upload_bps: expected a number above 0"),
        ("client,latency_s\nedge-7,1\n", ":2, client: expected a client of the federation, got 'edge-7'"),
        ("client,latency_s\nclient-0000,1\nclient-0000,1\n", ":3, client: expected one row a client"),
        ("tokens_per_s,flop_per_s\n1,2\n", ":2: expected one speed, got tokens_per_s and flop_per_s"),
        ("client,latency_s\nclient-0000\n", ":2: expected 2 fields, as in the header, got 1"),
        ("client,latency_s\n", "expected a row for each device, got none"),
        ("latency_s, latency_s\n1,2\n", "header: expected a header of unique column names"),
    ],
)  # fmt: skip
def test_a_wrong_device_trace_is_refused_by_file_row_and_column(tmp_path, text, told):
    with pytest.raises(DataError, match=told):
        read_devices(written(tmp_path, text), CLIENTS)


def test_intervals_that_touch_are_one(tmp_path):
    text = "client,start_s,end_s\nclient-0001,5,6\nclient-0000,3,4\nclient-0000,0,1.5\nclient-0000,1,3\n"
    found = read_intervals(written(tmp_path, text), CLIENTS)
    assert found == {"client-0000": (0, 4_000_000), "client-0001": (5_000_000, 6_000_000)}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("client,start_s,end_s\nclient-0000,3,3\n", ":2: expected an end_s after start_s 3, got 3"),
        ("client,start_s\nclient-0000,3\n", "header: expected a column 'end_s'"),
        ("client,start_s,end_s,joules\nclient-0000,3,4,5\n", "got 'joules'"),
        ("client,start_s,end_s\nclient-0000,-3,4\n", ":2, start_s: expected a number of at least 0"),
    ],
)
def test_a_wrong_interval_trace_is_refused(tmp_path, text, told):
    with pytest.raises(DataError, match=told):
        read_intervals(written(tmp_path, text), CLIENTS)


def test_an_interval_that_never_comes_is_refused(tmp_path):
    path = written(tmp_path, "client,start_s,end_s\nclient-0000,3,9\nclient-0001,5,6\n")
    assert len(read_intervals(path, CLIENTS, 6.0)) == 2
    with pytest.raises(DataError, match=r":3: expected a start_s below availability.repeat_s 5,.*got 5"):
        read_intervals(path, CLIENTS, 5.0)


def test_draws_beyond_what_floats_hold_are_slow_devices_and_no_crash():
    least = fleet(tokens_per_s={"kind": "lognormal", "median": 5e-324, "sigma": 20})
    assert {least.device(c).compute(1) for c in CLIENTS} == {NEVER}
    late = fleet(availability={"kind": "daily", "from_h": 1e300, "hours": 1e300})
    assert late.times("client-0000").online(0)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"tokens_per_s": 0}, "tokens_per_s must be a number above 0"),
        ({"memory_mb": 1e19}, r"memory_mb must be a number above 0 and at most 1e\+18"),
        ({"tokens_per_s": 3, "flop_per_s": 1e9}, "tokens_per_s and flop_per_s say the same"),
        ({"dropout": {"kind": "uniform", "low": 0, "high": 2}}, "dropout must be a number of at least 0 and"),
        ({"dropout": {"kind": "lognormal", "median": 0.1, "sigma": 1}}, "dropout must be"),
        ({"upload_bps": {"kind": "choice", "values": [0, 2]}}, "upload_bps must be a number above 0"),
        ({"upload_bps": {"kind": "uniform", "low": 3, "high": 2}}, "high 2 is below low 3"),
        ({"upload_bps": {"kind": "choice", "values": [1, 2], "weights": [1]}}, "one for each of 2 values"),
        ({"upload_bps": {"kind": "normal"}}, "upload_bps"),
        ({"upload_mbps": 3}, "simulation.devices.upload_mbps: expected no such key"),
        ({"availability": {"kind": "trace", "path": "x", "repeat_s": 1e-9}}, "repeat_s: expected a number"),
        ({"availability": {"kind": "churn", "online_s": 0, "offline_s": 3}}, "online_s must be"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path, table, told):
    with pytest.raises(ConfigError, match=told):
        load_federation(bare_federation(tmp_path, simulation={"devices": table}))


def test_a_run_without_devices_is_named_as_before(tmp_path):
    plain = load_federation(bare_federation(tmp_path / "a"))
    batched = load_federation(bare_federation(tmp_path / "b", simulation={"cohort": 3}))
    devices = load_federation(bare_federation(tmp_path / "c", simulation={"devices": {}}))
    assert "simulation" not in plain.settings.model_dump(mode="json")
    assert batched.settings.model_dump(mode="json")["simulation"] == {"cohort": 3}
    assert len({plain.sha256(), batched.sha256(), devices.sha256()}) == 3
