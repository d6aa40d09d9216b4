"""A device gets the split, the model and the bits that a simulation gives its client."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch

from headwater.client.agent.device_runtime import DeviceRuntimes
from headwater.client.agent.known_runs import KEPT_RUNS, KnownRuns
from headwater.client.agent.models import LocalModels
from headwater.client.execution.answer import answer
from headwater.client.execution.store import DirectoryStore, MemoryStore
from headwater.compression.feedback import FeedbackState
from headwater.errors import DataError, DecodeError, ModelError, StorageError
from headwater.proto.wire import decode_reply
from headwater.protocol.messages import EncodedUpdate
from headwater.state import AdapterState, StateSpec, TensorSpec
from tests.client.agent.devices import RUN, TextDevice, parts, profile_request, vector_federation
from tests.support.runs import rows, write_jsonl


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    folder = tmp_path_factory.mktemp("device")
    return TextDevice(folder / "theirs", folder / "ours")


@pytest.fixture(scope="module")
def simulated(device):
    return device.simulated()


def opened(device, **options):
    devices = DeviceRuntimes("ann", device.settings.data, **options)
    return devices, devices.open(device.joined(), device.theirs / "bert")


def update(request, runtime, store=None) -> EncodedUpdate:
    p = parts(request)
    data = answer(p["envelope"], p["state"], "ann", store or MemoryStore(), runtime)
    reply = decode_reply(data, max_bytes=10**7)
    assert isinstance(reply, EncodedUpdate), reply
    return replace(reply, metrics={k: v for k, v in reply.metrics.items() if not k.endswith("seconds")})


def test_the_device_sends_the_bits_that_the_simulation_sends(device, simulated):
    _, runtime = opened(device)
    assert runtime.profile("ann") == simulated.profile("ann")
    for number in (1, 2):
        request = device.train(simulated.context, round=number)
        assert update(request, runtime) == update(request, simulated)


@pytest.mark.parametrize("count", [1, 3])
def test_an_owner_is_told_whom_to_ask_for_what_only_the_organiser_can_change(tmp_path, count):
    device = TextDevice(tmp_path / "theirs", tmp_path / "ours")
    mine = rows("ann", 12)
    for row in mine[:count]:
        row["label"] = "odd"
    write_jsonl(device.ours / "ann.jsonl", mine)
    with pytest.raises(DataError) as raised:
        opened(device)
    told = "Correct the row, or add the label to data.labels. Only the organiser can change data.labels: ask"
    assert f"{told} for it." in str(raised.value).splitlines()[-1]
    assert str(raised.value).count("Correct the row") == 1
    assert ("3 rows" in str(raised.value)) == (count == 3)


def test_the_base_loads_once_for_all_runs_that_share_it(device, simulated):
    """And a base that was used before gives the bits of a fresh one."""
    devices, first = opened(device)
    assert devices.open(device.joined(), device.theirs / "bert") is first
    update(device.train(simulated.context), first)  # values of the first run are in the model now
    adapter = device.federation.adapter.model_copy(update={"rank": 3})
    head = device.federation.federation.model_copy(update={"seed": 99})
    other = device.federation.model_copy(update={"adapter": adapter, "federation": head})
    joined = KnownRuns(device.settings.state / "runs").join(profile_request(other, device.sha256, "ff" * 16))
    shared = devices.open(joined, device.theirs / "bert")
    assert devices.loads == 1
    fresh_devices = DeviceRuntimes("ann", device.settings.data)
    fresh = fresh_devices.open(joined, device.theirs / "bert")
    assert fresh.context.initial_state().sha256() == shared.context.initial_state().sha256()
    request = device.train(fresh.context, run="ff" * 16)
    assert update(request, shared) == update(request, fresh)
    again = devices.open(device.joined(), device.theirs / "bert")
    assert devices.loads == 1
    request = device.train(simulated.context)
    assert update(request, again) == update(request, simulated)


def test_a_released_base_has_its_bits_and_no_adapter(device):
    _, runtime = opened(device)
    _, untouched = opened(device)
    base = runtime.context.model.release()
    weights = dict(base.model.named_parameters())
    for name, value in untouched.context.model.network.peft.unload().named_parameters():
        assert torch.equal(weights[name], value)
    assert not any("lora" in name for name in weights)


def test_fewer_threads_than_the_federation_asks_for_are_said(device):
    head = device.federation.federation.model_copy(update={"threads": 4})
    federation = device.federation.model_copy(update={"federation": head})
    joined = KnownRuns(device.settings.state / "runs").join(profile_request(federation, device.sha256))
    try:
        devices = DeviceRuntimes("ann", device.settings.data, threads=1)
        runtime = devices.open(joined, device.theirs / "bert")
        assert torch.get_num_threads() == 1
        assert "policy threads 1: the federation asks for 4" in devices.notice
        assert update(device.train(runtime.context), runtime).metrics["threads"] == 1.0
        plenty = DeviceRuntimes("ann", device.settings.data, threads=8)
        assert plenty.open(joined, device.theirs / "bert").metrics == {}
        assert torch.get_num_threads() == 4
        assert plenty.notice == ""
    finally:
        torch.set_num_threads(1)


def test_what_is_worth_a_look_in_the_owner_s_data_is_told_to_the_owner(device, tmp_path):
    rows = device.settings.data.read_text().splitlines()
    (tmp_path / "ann.jsonl").write_text("\n".join([*rows, rows[-1]]) + "\n")
    joined = KnownRuns(device.settings.state / "runs").join(profile_request(device.federation, device.sha256))
    devices = DeviceRuntimes("ann", tmp_path / "ann.jsonl")
    devices.open(joined, device.theirs / "bert")
    assert "1 row is an exact duplicate" in devices.notice


def test_data_that_change_in_a_run_are_told_to_the_owner(device, tmp_path):
    """The run goes on with the rows as they were."""
    own = tmp_path / "ann.jsonl"
    own.write_bytes(device.settings.data.read_bytes())
    devices = DeviceRuntimes("ann", own)
    runtime = devices.open(device.joined(), device.theirs / "bert")
    assert devices.open(device.joined(), device.theirs / "bert") is runtime
    assert "changed" not in devices.notice
    whole = own.read_text()
    own.write_text(whole.replace("movie", "film"))
    assert devices.open(device.joined(), device.theirs / "bert") is runtime
    assert f"run {RUN}: the files of your data have changed since they were read" in devices.notice
    own.write_text(whole)
    assert devices.open(device.joined(), device.theirs / "bert") is runtime
    assert "changed" not in devices.notice, "files that are put back are those that were read"
    kept = tmp_path / "new.jsonl"
    own.rename(kept)
    assert devices.open(device.joined(), device.theirs / "bert") is runtime
    assert "changed" in devices.notice, "absent is changed, too"
    fresh = DeviceRuntimes("ann", kept)
    fresh.open(device.joined(), device.theirs / "bert")
    assert "changed" not in fresh.notice


def test_no_path_of_the_server_is_read(device, tmp_path):
    """The server's data paths stand in the settings; the device reads its owner's."""
    data = device.federation.data.model_copy(update={"path": "/etc/passwd", "test": "/etc/shadow"})
    model = device.federation.model.model_copy(update={"path": "/nowhere", "revision": "main"})
    federation = device.federation.model_copy(update={"data": data, "model": model})
    joined = KnownRuns(tmp_path).join(profile_request(federation, device.sha256))
    runtime = DeviceRuntimes("ann", device.settings.data).open(joined, device.theirs / "bert")
    assert runtime.profile("ann").train_examples > 0
    assert runtime.data.test() is None


# --- runs on disk ---------------------------------------------------------------------------------


def test_a_run_that_is_joined_under_an_older_clock_is_not_the_one_to_forget(tmp_path, monkeypatch):
    runs = KnownRuns(tmp_path)
    for i in range(KEPT_RUNS):
        runs.join(profile_request(vector_federation(), run=f"run-{i}"))
    monkeypatch.setattr("headwater.client.agent.known_runs.time.time_ns", lambda: 1)
    runs.join(profile_request(vector_federation(), run="late"))
    assert runs.get("late") is not None
    assert runs.runs()[0] == "late"


def test_a_run_is_known_after_a_restart_and_old_runs_are_forgotten(tmp_path):
    federation = vector_federation()
    names = [f"run-{i}" for i in range(KEPT_RUNS + 2)]
    for name in names:
        joined = KnownRuns(tmp_path).join(profile_request(federation, run=name))
        (joined.folder / "ann.feedback").write_bytes(b"x")
        KnownRuns(tmp_path).use(KnownRuns(tmp_path).get("run-0") or joined)
    assert sorted(KnownRuns(tmp_path).runs()) == ["run-0", *names[-KEPT_RUNS + 1 :]]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run-0", *names[-KEPT_RUNS + 1 :]]
    assert KnownRuns(tmp_path).get("run-0").settings == federation


@pytest.mark.parametrize("run_id", ["..", "../up", "a/b", ".hidden", "a\\b c", "x" * 65])
def test_a_run_id_that_is_a_path_is_refused(tmp_path, run_id):
    with pytest.raises(DecodeError, match="run id"):
        KnownRuns(tmp_path / "runs").join(profile_request(vector_federation(), run=run_id))
    assert list(tmp_path.iterdir()) == []


def test_settings_of_another_version_are_refused_by_key(tmp_path):
    request = replace(profile_request(vector_federation()), federation='{"federation": {"name": "x"}}')
    with pytest.raises(DecodeError, match="same minor version"):
        KnownRuns(tmp_path).join(request)
    with pytest.raises(DecodeError, match="without them"):
        KnownRuns(tmp_path).join(replace(request, federation=""))


def test_examples_are_remembered_until_the_settings_change(tmp_path):
    runs = KnownRuns(tmp_path)
    runs.learn(runs.join(profile_request(vector_federation())), 7)
    assert KnownRuns(tmp_path).join(profile_request(vector_federation())).examples == 7
    assert runs.join(profile_request(vector_federation(65))).examples is None


# --- base models by hash --------------------------------------------------------------------------


def test_a_base_is_found_by_hash_and_read_once(device, tmp_path):
    cache = tmp_path / "models.json"
    models = LocalModels([device.theirs], None, cache)
    assert models.find(device.sha256) == device.theirs / "bert"
    again = LocalModels([device.theirs / "bert"], [device.sha256], cache)
    assert again.find(device.sha256) == device.theirs / "bert"
    assert (models.hashed, again.hashed) == (1, 0)
    with pytest.raises(ModelError, match="Copy the organiser's base model"):
        models.find("0" * 64)
    with pytest.raises(ModelError, match=r"models\.allow"):
        LocalModels([device.theirs], ["0" * 64], cache).find(device.sha256)


def test_a_changed_base_is_read_again(device, tmp_path):
    shutil.copytree(device.theirs / "bert", tmp_path / "bert")
    models = LocalModels([tmp_path], None, tmp_path / "models.json")
    assert models.find(device.sha256)
    config = tmp_path / "bert" / "config.json"
    config.write_text(config.read_text().replace('"vocab_size"', '"vocab_sized"'))
    with pytest.raises(ModelError, match="they have changed since"):
        models.find(device.sha256)


# --- crash at every write -------------------------------------------------------------------------


def die_at(step: int) -> None:
    """Make this process end as by kill -9 before or after a write's ``step``-th system call."""
    steps = count()

    def around(original):
        def call(*args, **kwargs):
            if next(steps) == step:
                os._exit(9)
            result = original(*args, **kwargs)
            if next(steps) == step:
                os._exit(9)
            return result

        return call

    os.fsync = around(os.fsync)
    Path.open = around(Path.open)
    Path.replace = around(Path.replace)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_kill_at_any_write_leaves_the_old_residual_or_the_new(tmp_path):
    spec = StateSpec((TensorSpec("vector", (3,), "vector"),))
    store, seen = DirectoryStore(tmp_path), []
    for step in range(20):
        store.save("ann", FeedbackState(AdapterState.zeros(spec)))
        child = os.fork()
        if child == 0:
            die_at(step)
            store.save("ann", FeedbackState(AdapterState.from_vector(spec, torch.ones(3))))
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        seen.append((code, float(store.load("ann", spec).residual.norm() ** 2)))
        if code == 0:
            break
    assert [code for code, _ in seen] == [9] * (len(seen) - 1) + [0]
    values = [round(value) for _, value in seen]
    assert set(values) == {0, 3}
    assert values == sorted(values)


def test_a_task_again_after_a_crash_gives_the_same_update(device, simulated, tmp_path, monkeypatch):
    """The write of the residual fails: nothing was sent, the store is as before, and the repeat is equal."""
    _, runtime = opened(device)
    store = DirectoryStore(tmp_path)
    undisturbed = [
        update(device.train(simulated.context, round=n), simulated, DirectoryStore(tmp_path / "u"))
        for n in (1, 2)
    ]
    assert update(device.train(simulated.context, round=1), runtime, store) == undisturbed[0]
    before = {p: p.read_bytes() for p in tmp_path.glob("*.feedback")}

    def full(path, *data, **options):
        raise StorageError(f"writing {path}", got="No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("headwater.client.execution.store.write_atomically", full)
        p = parts(device.train(simulated.context, round=2))
        failure = decode_reply(answer(p["envelope"], p["state"], "ann", store, runtime), max_bytes=10**6)
        assert "No space left" in failure.reason
    assert {p: p.read_bytes() for p in tmp_path.glob("*.feedback")} == before
    assert update(device.train(simulated.context, round=2), runtime, store) == undisturbed[1]
