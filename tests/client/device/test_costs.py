"""What a device says of itself: memory, methods that it offers, time."""

from __future__ import annotations

import pytest

from headwater.client.agent.device_runtime import DeviceRuntimes
from headwater.client.device import costs as module
from headwater.client.device.costs import device_profile
from headwater.client.device.memory import group_limits
from headwater.client.policy import Policy
from headwater.config.agent import PolicySettings
from headwater.config.load import load_federation
from headwater.errors import TrainingError
from headwater.training.context import TrainingContext
from tests.client.agent.devices import TextDevice
from tests.support.runs import tiny_federation

METHODS = {
    "wide": {"training": {"kind": "mezo", "batch_size": 64, "epochs": 50.0}},
    "seeds": {"training": {"kind": "kseed", "batch_size": 2, "seeds": 64, "max_steps": 8}},
}
PLANNER = {"kind": "planner"}


def loaded(folder, **assignment):
    return load_federation(tiny_federation(folder, methods=METHODS, assignment={**PLANNER, **assignment}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fed")


def test_costs_are_those_of_the_methods_that_may_be_planned(folder):
    context = TrainingContext.open(loaded(folder))
    assert list(device_profile(context).costs) == ["default", "wide", "seeds"]
    context = TrainingContext.open(loaded(folder, prefer=["seeds", "default"]))
    assert list(device_profile(context).costs) == ["seeds", "default"]


def test_a_method_without_its_library_is_not_offered(folder, monkeypatch):
    methods = {"eight": {"training": {"kind": "backprop", "optimizer": "adamw8bit"}}}
    context = TrainingContext.open(
        load_federation(tiny_federation(folder, methods=methods, assignment=PLANNER))
    )
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert list(device_profile(context).costs) == ["default"]
    assert list(device_profile(context, simulated_memory_mb=9000).costs) == ["default", "eight"]
    monkeypatch.setattr(module, "find_spec", lambda name: name)
    assert list(device_profile(context).costs) == ["default", "eight"]


@pytest.mark.parametrize("error", [MemoryError("none"), TrainingError("default", expected="a library")])
def test_what_cannot_be_done_here_is_not_offered_and_the_rest_is(folder, error):
    def seconds(method, batch_size):
        if method == "default":
            raise error
        return batch_size / 8

    context = TrainingContext.open(loaded(folder, round_s=1.0))
    costs = device_profile(context, measured=seconds).costs
    assert {name: cost.step_s for name, cost in costs.items()} == {"wide": 8.0, "seeds": 0.25}


def test_a_cache_that_is_full_is_not_counted_twice(folder):
    context = TrainingContext.open(loaded(folder))
    before = device_profile(context).costs["seeds"].peak_bytes
    kept = bytearray(b"\1") * (200 << 20)  # resident, as the cache that is said to be kept

    class Kept:
        used_bytes = len(kept)

    context.model._prefix._kept["training"] = 0, Kept
    try:
        assert abs(device_profile(context).costs["seeds"].peak_bytes - before) < 50 << 20
    finally:
        del context.model._prefix._kept["training"], kept


@pytest.mark.parametrize(
    ("policy", "offered"),
    [
        ({}, ["default", "wide", "seeds"]),
        ({"training": ["kseed", "mezo"]}, ["wide", "seeds"]),
        ({"max_steps": 20}, ["default", "seeds"]),
        ({"max_examples": 5}, []),
        ({"max_rank": 1}, []),
    ],
)
def test_the_planner_is_offered_what_the_owners_policy_allows(tmp_path, policy, offered):
    """Else it would plan the same refusal round after round."""
    device = TextDevice(tmp_path / "theirs", tmp_path / "ours", {"methods": METHODS, "assignment": PLANNER})
    allowed = Policy(PolicySettings(**policy))
    devices = DeviceRuntimes("ann", device.settings.data, policy=allowed)
    runtime = devices.open(device.joined(), device.theirs / "bert")
    assert list(runtime.profile("ann").device.costs) == offered


def test_limits_of_all_control_groups_around_count(tmp_path):
    files = {
        "proc/self/cgroup": "0::/system.slice/agent.service\n4:cpu,memory:/batch/job\n7:cpu:/other\n",
        "sys/fs/cgroup/system.slice/agent.service/memory.max": "max\n",
        "sys/fs/cgroup/system.slice/memory.max": "700\n",
        "sys/fs/cgroup/memory/batch/job/memory.limit_in_bytes": "500\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/cpu/other/memory.max": "1\n",
        "memory.max": "2\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert sorted(group_limits(tmp_path)) == [500, 700, 9223372036854771712]
    assert group_limits(tmp_path / "none") == []
