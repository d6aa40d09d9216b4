"""What holds of every run in simulated time, whatever its devices."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulation.devices.runs import accepted, run_devices, took

SPEEDS = st.lists(st.sampled_from([1.0, 2.0, 3.5, 7.0]), min_size=4, max_size=4)
SOMETIMES = settings(max_examples=12, deadline=None)


def choice(values):
    return {"kind": "choice", "values": values}


@st.composite
def fleets(draw):
    """Tables of devices on which no task is lost."""
    return {
        "tokens_per_s": choice(draw(SPEEDS)),
        "download_bps": draw(st.sampled_from([1e3, 5e4])),
        "upload_bps": choice([draw(st.sampled_from([1e3, 8e3])), 2e4]),
        "latency_s": draw(st.sampled_from([0.0, 0.25])),
        "compute_watts": choice([4.0, 9.0]),
        "send_watts": 2.0,
        "receive_watts": 1.0,
        "joules_per_byte": draw(st.sampled_from([0.0, 1e-3])),
        "idle_watts": draw(st.sampled_from([0.0, 0.5])),
        "server_s": draw(st.sampled_from([0.0, 3.0])),
    }


@SOMETIMES
@given(devices=fleets(), seed=st.integers(0, 3))
def test_a_synchronous_round_is_as_long_as_its_slowest_client_and_the_server(devices, seed):
    rounds = run_devices(devices, federation={"rounds": 3, "seed": seed})
    assert rounds[0]["simulated"]["end_s"] == 0.0
    for before, record in pairwise(rounds):
        times = record["simulated"]
        assert times["start_s"] == before["simulated"]["end_s"]
        assert accepted(record) == set(record["clients"])
        assert times["trained_s"] == max(row["simulated"]["end_s"] for row in record["clients"].values())
        assert times["trained_s"] == pytest.approx(times["start_s"] + max(took(record).values()), abs=2e-6)
        assert times["end_s"] == pytest.approx(times["trained_s"] + devices["server_s"], abs=2e-6)


@SOMETIMES
@given(devices=fleets())
def test_a_client_takes_its_download_its_computation_and_its_upload(devices):
    (_, record) = run_devices(devices, rounds=1)
    for row in record["clients"].values():
        times = row["simulated"]
        parts = [times[f"{name}_s"] for name in ("download", "compute", "upload")]
        assert times["end_s"] - times["asked_s"] == pytest.approx(math.fsum(parts), abs=5e-6)
        assert parts[0] == pytest.approx(
            devices["latency_s"] + 8 * row["bytes_down"] / devices["download_bps"], abs=2e-6
        )
        possible = [devices["latency_s"] + 8 * row["bytes_up"] / b for b in devices["upload_bps"]["values"]]
        assert any(parts[2] == pytest.approx(seconds, abs=2e-6) for seconds in possible)
        assert any(
            parts[1] == pytest.approx(row["examples"] / speed, abs=2e-6)
            for speed in devices["tokens_per_s"]["values"]
        )


@SOMETIMES
@given(devices=fleets())
def test_energy_adds_up(devices):
    (_, record) = run_devices(devices | {"compute_watts": 4.0}, rounds=1)
    times, total = record["simulated"], 0.0
    for row in record["clients"].values():
        one = row["simulated"]
        joules = 1.0 * one["download_s"] + 4.0 * one["compute_s"] + 2.0 * one["upload_s"]
        joules += devices["joules_per_byte"] * (row["bytes_down"] + row["bytes_up"])
        joules += devices["idle_watts"] * (times["trained_s"] - one["end_s"])
        assert one["joules"] == pytest.approx(joules)
        total += one["joules"]
    assert times["joules"] == pytest.approx(total + times["evaluation_joules"])


@SOMETIMES
@given(devices=fleets(), share=st.floats(0.2, 1.3))
def test_a_deadline_cuts_exactly_those_after_it(devices, share):
    (_, whole) = run_devices(devices, rounds=1)
    durations = took(whole)
    deadline = round(share * sorted(durations.values())[2], 6)
    (_, record) = run_devices(devices, rounds=1, cohort={"deadline_s": deadline})
    periods = 1
    while not (wanted := {c for c, s in durations.items() if s <= round(periods * deadline, 6)}):
        periods += 1  # too few: the round goes on for as long again
    assert accepted(record) == wanted
    cut = wanted != set(durations)
    ends = periods * deadline if cut else max(durations.values())
    assert record["simulated"]["trained_s"] == pytest.approx(ends, abs=2e-6)
    for client in durations.keys() - wanted:
        assert record["clients"][client]["failed"].startswith("no answer within")
        assert record["clients"][client]["simulated"]["end_s"] == record["simulated"]["trained_s"]


@SOMETIMES
@given(devices=fleets(), target=st.integers(1, 3))
def test_over_selection_takes_the_first_that_arrive_and_of_equals_by_name(devices, target):
    (_, whole) = run_devices(devices, rounds=1)
    durations = took(whole)
    (_, record) = run_devices(devices, rounds=1, cohort={"target_clients": target})
    first = sorted(durations, key=lambda client: (durations[client], client))[:target]
    assert accepted(record) == set(first)
    assert record["simulated"]["trained_s"] == max(durations[client] for client in first)
    assert all(row.get("spared") for c, row in record["clients"].items() if c not in first)


@SOMETIMES
@given(speed=st.floats(0.5, 50), latency=st.floats(0, 2))
def test_with_equal_devices_a_buffer_of_the_cohort_is_a_synchronous_round(speed, latency):
    devices = {"tokens_per_s": speed, "latency_s": latency, "upload_bps": 1e4}
    synchronous = run_devices(devices, codec={"up": {"kind": "dense"}})
    buffered = run_devices(
        devices, codec={"up": {"kind": "dense"}}, schedule={"kind": "buffered", "buffer": 4}
    )
    for one, other in zip(synchronous, buffered, strict=True):
        assert one["state_sha256"] == other["state_sha256"]
        assert one["simulated"] == other["simulated"]
        assert all(row["staleness"] == 0 for row in other["clients"].values())


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 5),
    interrupted=st.sampled_from(["lost", "resumes"]),
    online=st.sampled_from([6.0, 30.0]),
)
def test_with_churn_and_dropout_time_goes_forward_and_whoever_is_offline_is_not_asked(
    seed, interrupted, online
):
    devices = {
        "tokens_per_s": {"kind": "lognormal", "median": 3.0, "sigma": 0.5},
        "upload_bps": 5e3,
        "dropout": 0.2,
        "interrupted": interrupted,
        "availability": {"kind": "churn", "online_s": online, "offline_s": 5.0},
    }
    tables = {"federation": {"rounds": 4, "seed": seed}, "cohort": {"min_clients": 2, "retry_s": 2.0}}
    rounds = run_devices(devices, **tables)
    assert len(rounds) == 5
    for before, record in pairwise(rounds):
        times = record["simulated"]
        assert before["simulated"]["end_s"] == times["start_s"] <= times["trained_s"] <= times["end_s"]
        assert len(accepted(record)) >= 2
        for row in record["clients"].values():
            one = row["simulated"]
            assert times["start_s"] <= one["asked_s"] <= one["end_s"] <= times["trained_s"]
    assert rounds == run_devices(devices, **tables)
