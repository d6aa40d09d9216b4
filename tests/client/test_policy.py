"""The owner's rules: each refuses by its name and numbers, and only what it should."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.client.policy import Policy
from headwater.client.usage import DayUsage, Usage
from headwater.config.agent import PolicySettings
from headwater.config.federation import Federation
from headwater.config.training import BackpropTraining, DecomflTraining
from headwater.errors import StorageError
from headwater.protocol.failures import Failure, FailureCode
from headwater.protocol.messages import ClientPlan, ProfileRequest
from headwater.seeds.keys import Key
from headwater.tasks.batches import Example
from headwater.training.minibatches import minibatches
from tests.client.agent.devices import RUN, evaluation_of, profile_request, vector_federation, vector_train

NOON = datetime(2026, 3, 1, 12, 0)
TODAY = DayUsage(NOON.date())


def lora(rank: int = 16, **training) -> Federation:
    return Federation.model_validate(
        {
            "federation": {"name": "t", "rounds": 1},
            "model": {"kind": "encoder", "path": "m"},
            "adapter": {"kind": "lora", "rank": rank},
            "data": {
                "kind": "classification",
                "path": "d",
                "labels": ("a", "b"),
                "partition": {"kind": "files"},
            },
            "training": {"kind": "backprop", "batch_size": 8, **training},
        }
    )


def train(federation: Federation):
    plan = ClientPlan(federation.training, federation.codec.up)
    return replace(vector_train(vector_federation()), plan=plan)


def check(policy: dict, request=None, federation=None, usage=TODAY, now=NOON, **more) -> str | None:
    federation = federation or lora()
    request = request or train(federation)
    refusal = Policy(PolicySettings(**policy)).check(
        request, federation, usage, now, **{"examples": 100} | more
    )
    return None if refusal is None else refusal.text


def test_without_rules_everything_is_allowed():
    assert check({}, usage=DayUsage(NOON.date(), 10**15, 1e9)) is None
    assert check({}, evaluation_of(vector_train(vector_federation()))) is None


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ({"max_rank": 8}, "policy max_rank 8: the task wants 16"),
        ({"max_steps": 12}, "policy max_steps 12: the task wants 13"),
        ({"max_examples": 99}, "policy max_examples 99: the task takes all 100 of this device"),
        ({"training": ["noop"]}, "policy training ['noop']: the task wants 'backprop'"),
        ({"hours": "22:00-06:00"}, "policy hours 22:00-06:00: it is 12:00 here"),
    ],
)
def test_a_rule_names_itself_and_the_numbers(policy, says):
    assert check(policy) == says
    assert check(policy, profile_request(lora()), lora()) == says


@pytest.mark.parametrize("request_of", [train, profile_request])
def test_all_rules_that_forbid_a_task_are_named_at_once(request_of):
    """What only the owner ends comes before what passes; the server gets the code of the first."""
    rules = {"max_rank": 8, "max_steps": 12, "max_examples": 99, "training": ["noop"], "hours": "22:00-06:00"}
    policy = Policy(PolicySettings(**rules))
    refusal = policy.check(request_of(lora()), lora(), TODAY, NOON, examples=100)
    assert refusal.text.splitlines() == [
        "policy max_rank 8: the task wants 16",
        "policy training ['noop']: the task wants 'backprop'",
        "policy max_examples 99: the task takes all 100 of this device",
        "policy max_steps 12: the task wants 13",
    ]
    assert refusal.failure == Failure(FailureCode.POLICY_RANK, (8, 16))


@pytest.mark.parametrize(
    "policy", [{"max_rank": 16}, {"max_steps": 13}, {"max_examples": 100}, {"hours": "12:00-12:01"}]
)
def test_a_rule_allows_its_own_number(policy):
    assert check(policy) is None


def test_a_profile_before_examples_are_known_is_not_refused_for_them():
    assert check({"max_steps": 1, "max_examples": 1}, profile_request(lora()), examples=None) is None


def test_a_train_task_of_unknown_length_is_refused():
    assert "does not say" in check({"max_steps": 5}, examples=None)
    assert check({"max_steps": 5}, federation=lora(max_steps=5), examples=None) is None


def test_the_plan_counts_and_not_what_the_run_said_at_first():
    longer = replace(train(lora(max_steps=2)), plan=ClientPlan(lora(epochs=9.0).training, lora().codec.up))
    assert check({"max_steps": 13}, longer, lora(max_steps=2)) == "policy max_steps 13: the task wants 117"


def with_methods(**methods) -> Federation:
    content = lora().model_dump(mode="json") | {
        "methods": methods,
        "assignment": {"kind": "clients", "clients": {"*": next(iter(methods))}},
    }
    return Federation.model_validate_json(json.dumps(content))


def test_a_federation_is_refused_at_first_only_if_none_of_its_methods_is_allowed():
    federation = with_methods(
        light={"training": {"kind": "mezo", "max_steps": 5}},
        small={"training": {"kind": "backprop", "max_steps": 2}, "rank": 4},
    )
    profile = profile_request(federation)
    assert check({"training": ["mezo"]}, profile, federation) is None
    assert check({"training": ["noop"]}, profile, federation).endswith("wants 'backprop'")
    assert check({"max_steps": 2}, profile, federation) is None
    assert check({"max_steps": 4, "training": ["mezo"]}, profile, federation).endswith("wants 5")
    assert check({"max_rank": 4}, profile, federation) is None
    assert check({"max_rank": 3}, profile, federation) == "policy max_rank 3: the task wants 4"
    # a task is what its plan says
    task = train(federation)
    assert check({"max_rank": 4}, task, federation) == "policy max_rank 4: the task wants 16"
    assert check({"max_rank": 4}, replace(task, plan=replace(task.plan, rank=4)), federation) is None
    assert "wants 'backprop'" in check({"training": ["mezo"]}, task, federation)


def test_decomfl_takes_its_steps_whatever_the_examples():
    training = DecomflTraining(kind="decomfl", max_steps=7, epochs=0.1)
    assert [training.steps_of(examples) for examples in (None, 1, 10**6)] == [7, 7, 7]


def test_evaluation():
    task = evaluation_of(vector_train(vector_federation()))
    assert "allow_evaluate" in check({"allow_evaluate": False}, task)
    assert check({"allow_evaluate": False}) is None


def test_bytes_and_work_of_the_day():
    used = DayUsage(NOON.date(), 9_500_000, 100.0)
    assert check({"max_mb_per_day": 10}, usage=used, size=500_000) is None
    assert check({"max_mb_per_day": 10}, usage=used, size=500_001).startswith(
        "policy max_mb_per_day 10: 9.5 MB"
    )
    assert check({"max_work_s_per_day": 100}, usage=used).startswith("policy max_work_s_per_day 100: 100 s")
    assert check({"max_work_s_per_day": 100.5}, usage=used) is None
    assert Policy(PolicySettings(max_mb_per_day=9.5)).exhausted(used)
    assert not Policy(PolicySettings(max_mb_per_day=9.6)).exhausted(used)


def minutes_awake(hours: str, now: datetime) -> bool:
    """The oracle: walk the window minute by minute."""
    (h1, m1), (h2, m2) = ([int(x) for x in part.split(":")] for part in hours.split("-"))
    minute, end, at = h1 * 60 + m1, h2 * 60 + m2, now.hour * 60 + now.minute
    if minute == end:
        return True
    while minute != end:
        if minute == at:
            return True
        minute = (minute + 1) % 1440
    return False


TIMES = st.tuples(st.integers(0, 23), st.integers(0, 59)).map(lambda t: f"{t[0]:02}:{t[1]:02}")


@given(TIMES, TIMES, st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 31)))
def test_hours_may_span_midnight(start, end, now):
    hours = f"{start}-{end}"
    policy = Policy(PolicySettings(hours=hours))
    assert (policy.asleep(now) is None) == minutes_awake(hours, now)
    left, _ = policy.seconds_left(TODAY, now)
    if policy.asleep(now) is None and start != end:
        assert 0 < left <= 86_400
        assert policy.asleep(now + timedelta(seconds=left)) is not None
        assert policy.asleep(now + timedelta(seconds=left) - timedelta(microseconds=1)) is None


def test_what_is_left_of_the_day():
    policy = Policy(PolicySettings(hours="10:00-13:00", max_work_s_per_day=5000))
    assert policy.seconds_left(TODAY, NOON)[0] == 3600
    left, rule = policy.seconds_left(DayUsage(NOON.date(), 0, 4990.0), NOON)
    assert left == 10
    assert "max_work_s_per_day 5000" in rule.text


@given(st.integers(1, 500), st.integers(1, 64), st.floats(0.1, 4), st.none() | st.integers(1, 50))
def test_steps_are_those_that_the_trainer_takes(examples, size, epochs, most):
    training = BackpropTraining(kind="backprop", epochs=epochs, batch_size=size, max_steps=most)
    rows = [Example(np.ones(1, np.int32), np.zeros(1, np.int64))] * examples
    taken = sum(1 for _ in minibatches(rows, training, Key.root(0), pad=0))
    assert training.steps_of(examples) == taken


@pytest.mark.parametrize(("epochs", "examples", "steps"), [(0.07, 100, 7), (0.14, 50, 7), (1.1, 10, 11)])
def test_a_product_of_floats_makes_no_step_too_many(epochs, examples, steps):
    training = BackpropTraining(kind="backprop", epochs=epochs, batch_size=1)
    assert training.steps(examples) == steps


def test_usage_survives_a_restart_and_starts_again_with_the_day(tmp_path):
    path = tmp_path / "usage.json"
    usage = Usage(path)
    usage.add(NOON, bytes=10)
    usage.add(NOON, work_s=2.5)
    again = Usage(path)
    assert again.today(NOON) == DayUsage(NOON.date(), 10, 2.5)
    tomorrow = NOON + timedelta(days=1)
    assert again.today(tomorrow) == DayUsage(date(2026, 3, 2))
    again.add(tomorrow, bytes=1)
    assert Usage(path).today(tomorrow).bytes == 1


DAMAGED = (
    "",
    "{}",
    '{"day": "x"}',
    '{"day": "2026-03-01", "bytes": -1, "work_s": 0}',
    '{"day": "2026-03-01", "bytes": Infinity, "work_s": 0}',
    "[]",
    "[" * 100_000,
    "\0" * 40,
)


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_usage_file_is_an_error_by_name_for_who_only_looks(tmp_path, text):
    (tmp_path / "usage.json").write_text(text)
    with pytest.raises(StorageError, match=r"usage\.json"):
        Usage(tmp_path / "usage.json")
    assert (tmp_path / "usage.json").read_text() == text


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_usage_file_is_set_aside_and_its_day_counts_as_used_up(tmp_path, text):
    path, log = tmp_path / "usage.json", []
    path.write_text(text)
    usage = Usage(path, log.append, now=lambda: NOON)
    assert "until midnight" in "".join(log)
    assert (tmp_path / "usage.json.damaged").read_text() == text
    usage.add(NOON, bytes=10)
    for found in (usage, Usage(path, log.append, now=lambda: NOON)):  # a restart gives nothing back
        for cap in ("max_mb_per_day", "max_work_s_per_day"):
            reason = check({cap: 1000}, usage=found.today(NOON))
            assert reason.startswith(f"policy {cap} 1000: ")
            assert "not known" in reason
        assert check({}, usage=found.today(NOON)) is None, "who caps nothing is not stopped"
        assert found.today(NOON + timedelta(days=1)) == DayUsage(date(2026, 3, 2))
    assert len(log) == 1


def test_a_usage_file_that_cannot_be_set_aside_is_told_and_counts_as_used_up_all_the_same(tmp_path):
    path, log = tmp_path / "usage.json", []
    path.mkdir()  # not even readable
    usage = Usage(path, log.append, now=lambda: NOON)
    assert usage.today(NOON).unknown
    assert "could not be set aside" in log[-1]


def test_a_profile_request_without_training_is_judged_by_the_run():
    request = ProfileRequest(RUN, "", "", "")
    assert "training" in check({"training": ["noop"]}, request, lora())
