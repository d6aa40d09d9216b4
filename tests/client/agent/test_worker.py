"""A real worker process: its bits, its death, its parent's death, its limits, and what it never imports."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from headwater.client.agent import frames, worker_main
from headwater.client.agent.data_stamp import RowsRead
from headwater.client.agent.known_runs import KnownRuns
from headwater.client.agent.task_handler import TaskHandler
from headwater.client.agent.worker import Worker, WorkerDied, WorkerOptions, clean_environment, describe_end
from headwater.client.execution.answer import answer
from headwater.client.execution.store import MemoryStore
from headwater.errors import DecodeError, StorageError, TrainingError
from headwater.proto.wire import decode_reply
from headwater.protocol.failures import Failure, FailureCode, failure_of
from headwater.protocol.messages import ClientFailure, ClientProfile, EncodedUpdate
from tests.client.agent.devices import (
    TextDevice,
    opened,
    parts,
    profile_request,
    sign,
    vector_federation,
    vector_train,
)


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    folder = tmp_path_factory.mktemp("device")
    return TextDevice(folder / "theirs", folder / "ours")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A folder whose ``headwater`` and ``sitecustomize`` leave a mark when they are imported."""
    folder = tmp_path_factory.mktemp("planted")
    mark = f"from pathlib import Path\nPath({str(folder / 'mark')!r}).write_text(__name__)\n"
    (folder / "headwater").mkdir()
    for name in ("headwater/__init__.py", "sitecustomize.py", "torch.py", "flwr.py"):
        (folder / name).write_text(mark)
    return folder


@pytest.fixture(scope="module")
def worker(device, planted):
    """One real worker for the module, started where and as an attacker would like it."""
    device.settings.state.mkdir(exist_ok=True)
    found = Worker(options(device))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(planted)
        patch.setenv("PYTHONPATH", str(planted))
        assert isinstance(serve(found, device, device.profile()), ClientProfile)
    yield found
    found.close()


def options(device, **limits) -> WorkerOptions:
    return WorkerOptions("ann", str(device.settings.data), str(device.settings.state), nice=0, **limits)


def serve(worker, device, request, **more):
    p = parts(request)
    data = worker.answer(device.joined(), device.theirs / "bert", p["envelope"], p["state"], **more)
    return decode_reply(data, max_bytes=10**9)


def vector_answer(worker, folder, request, size: int = 64, **more):
    joined = KnownRuns(folder / str(size)).join(profile_request(vector_federation(size)))
    p = parts(request)
    return decode_reply(worker.answer(joined, None, p["envelope"], p["state"], **more), max_bytes=10**9)


def timeless(update: EncodedUpdate) -> EncodedUpdate:
    return replace(update, metrics={k: v for k, v in update.metrics.items() if not k.endswith("seconds")})


def test_a_worker_gives_the_bytes_of_execute_and_loads_the_base_once(worker, device, planted):
    runtime = device.simulated()
    store = MemoryStore()
    for number in (1, 2, 3):
        request = device.train(runtime.context, round=number, accepted_round=number - 1)
        p = parts(request)
        expected = decode_reply(answer(p["envelope"], p["state"], "ann", store, runtime), max_bytes=10**6)
        got = serve(worker, device, request)
        assert isinstance(got, EncodedUpdate), got
        assert timeless(got) == timeless(expected)
    assert (worker.starts, worker.loads) == (1, 1)
    assert not (planted / "mark").exists()


def test_what_was_planted_would_have_been_imported(planted):
    """The mark can appear: an unguarded Python takes the planted module."""
    code = "import headwater"
    subprocess.run([sys.executable, "-c", code], cwd=planted, check=True, env={"PATH": os.environ["PATH"]})
    assert (planted / "mark").read_text() == "headwater"
    (planted / "mark").unlink()


def test_the_worker_sees_a_clean_environment(worker):
    environ = Path(f"/proc/{worker.pid}/environ").read_bytes().split(b"\0")
    names = {line.split(b"=")[0] for line in environ if line}
    assert not {b"PYTHONPATH", b"PYTHONSTARTUP", b"HTTPS_PROXY"} & names
    assert b"HF_HUB_OFFLINE=1" in environ
    hostile = {"PYTHONPATH": "x", "PYTHONHOME": "x", "LD_PRELOAD": "x", "https_proxy": "x", "LANG": "C"}
    assert set(clean_environment(hostile)) == {
        "LANG", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "PYTHONSAFEPATH",
    }  # fmt: skip


def test_what_the_worker_cannot_do_is_an_error_and_the_worker_lives(worker, device):
    pid = worker.pid
    settings = device.settings.data
    serve(worker, device, device.profile())
    assert worker.rows == RowsRead.of(device.joined().run, settings, skip=device.settings.state)
    missing = replace(device.joined(), model_sha256="0" * 64)
    p = parts(device.profile())
    with pytest.raises(TrainingError, match="sha256"):
        worker.answer(missing, device.theirs / "bert", p["envelope"], p["state"])
    settings.rename(settings.with_suffix(".away"))
    try:
        other = replace(device.joined(), run="another")
        with pytest.raises(TrainingError) as error:
            worker.answer(other, device.theirs / "bert", p["envelope"], p["state"])
        assert "ann.jsonl" in str(error.value), "the owner sees which file"
        assert failure_of(error.value) == Failure(FailureCode.DATA_REFUSED)
        assert worker.rows is None, "of that run none were read"
    finally:
        settings.with_suffix(".away").rename(settings)
    with pytest.raises(TrainingError, match="request"):
        worker.answer(device.joined(), device.theirs / "bert", b"\xff\xff", b"")
    assert worker.pid == pid
    assert isinstance(serve(worker, device, device.profile()), ClientProfile)


def test_no_row_of_the_data_reaches_the_server_in_an_error(worker, device):
    """A server chooses columns and labels: an error that quotes a value would hand it over."""
    data = device.federation.data.model_copy(update={"label": "text", "labels": ("x", "y")})
    federation = device.federation.model_copy(update={"data": data})
    log: list[str] = []
    handler = TaskHandler(device.settings, worker, sign, log.append)
    signed = handler.answer(parts(profile_request(federation, device.sha256, "probe")))
    assert any("the movie was" in line for line in log)
    assert b"movie" not in signed
    assert opened(signed) == ClientFailure.coded("ann", 0, Failure(FailureCode.DATA_REFUSED), "probe")


def test_a_worker_killed_in_the_middle_of_a_task_is_started_again(worker, tmp_path):
    task = vector_train(vector_federation())
    assert isinstance(vector_answer(worker, tmp_path, task), EncodedUpdate)
    pid, starts = worker.pid, worker.starts
    os.kill(pid, signal.SIGSTOP)  # the task is out, and will not be answered

    def kill():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(WorkerDied, match=r"killed by signal 9 \(SIGKILL\), perhaps out of memory"):
        vector_answer(worker, tmp_path, replace(task, round=2), tick=kill)
    assert worker.pid is None
    assert isinstance(vector_answer(worker, tmp_path, replace(task, round=2)), EncodedUpdate)
    assert worker.starts == starts + 1
    assert worker.pid != pid


def test_what_a_tick_raises_ends_the_child_at_once(worker, tmp_path):
    assert isinstance(vector_answer(worker, tmp_path, vector_train(vector_federation())), EncodedUpdate)
    pid = worker.pid
    os.kill(pid, signal.SIGSTOP)

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # though its child, which is halted, cannot answer
        vector_answer(worker, tmp_path, vector_train(vector_federation(), round=7), tick=stop)
    assert not alive(pid)
    assert worker.pid is None


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


PARENT = """
import json, sys, threading
from pathlib import Path
from headwater.client.agent.worker import Worker, WorkerOptions
from headwater.client.agent.known_runs import KnownRuns
from tests.client.agent.devices import parts, profile_request, vector_federation, vector_train
state = Path(sys.argv[1])
state.mkdir(exist_ok=True)
federation = vector_federation(6_000_000)
joined = KnownRuns(state / "runs").join(profile_request(federation))
worker = Worker(WorkerOptions("ann", "none", str(state), nice=0))
p = parts(profile_request(federation))
worker.answer(joined, None, p["envelope"], p["state"])
p = parts(vector_train(federation))
said = []
def tick():
    if not said:
        said.append(print(worker.pid, flush=True))
worker.answer(joined, None, p["envelope"], p["state"], tick)
"""


def test_the_worker_ends_with_its_parent_in_the_middle_of_a_task(tmp_path):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "state")], stdout=subprocess.PIPE, text=True
    )
    with parent:
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
        while alive(pid):  # until the test's own limit
            time.sleep(0.02)


def test_a_worker_waits_for_a_dying_predecessor_and_not_for_a_living_one(tmp_path, monkeypatch):
    with (tmp_path / "worker.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        monkeypatch.setattr(worker_main, "LOCK_S", 0.1)
        with pytest.raises(StorageError, match="expected no other worker"), worker_main.hold_store(tmp_path):
            pass
        monkeypatch.setattr(worker_main, "LOCK_S", 60.0)
        freed = threading.Event()

        def free():
            freed.set()
            fcntl.flock(other, fcntl.LOCK_UN)

        threading.Timer(0.3, free).start()
        with worker_main.hold_store(tmp_path):
            assert freed.is_set()


def test_the_cap_on_memory_is_a_refusal_and_not_a_death(tmp_path):
    (tmp_path / "state").mkdir()
    worker = Worker(WorkerOptions("ann", "none", str(tmp_path / "state"), memory_mb=500, nice=0))
    try:
        small = vector_answer(worker, tmp_path, vector_train(vector_federation()))
        assert isinstance(small, EncodedUpdate), small
        pid = worker.pid
        size = 28_000_000
        try:
            refused = vector_answer(worker, tmp_path, vector_train(vector_federation(size)), size)
            assert isinstance(refused, ClientFailure)
            failure = refused.failure
        except TrainingError as error:
            failure = failure_of(error)
        assert failure.code is FailureCode.OUT_OF_MEMORY
        assert worker.pid == pid
        again = vector_answer(worker, tmp_path, vector_train(vector_federation(), round=2))
        assert isinstance(again, EncodedUpdate), again
    finally:
        worker.close()


def test_ends_are_described():
    assert describe_end(1) == "worker died: exit code 1"
    assert describe_end(-9) == "worker died: killed by signal 9 (SIGKILL), perhaps out of memory"
    hungry = "perhaps out of memory (policy memory_mb 700)"
    assert describe_end(-6, 700) == f"worker died: killed by signal 6 (SIGABRT), {hungry}"
    assert describe_end(-15) == "worker died: killed by signal 15 (SIGTERM)"


@pytest.mark.parametrize("head", [b"\0\0\0\0", b"\0\0\0\x05", b"\0\0\0\1" + b"\xff" * 8])
def test_frames_are_bounded(head):
    import socket

    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(head)
        with pytest.raises(DecodeError):
            frames.receive(ours)
        theirs.close()
        with pytest.raises(EOFError):
            frames.receive(ours)


def test_agent_and_worker_say_only_bytes_and_json():
    """No pickle between them, none of the network's bytes as code."""
    folder = Path(frames.__file__).parent
    for name in ("frames", "worker", "worker_main", "task_handler", "agent", "outbox", "known_runs"):
        text = (folder / f"{name}.py").read_text()
        for word in ("pickle", "marshal", "eval(", "exec(", "multiprocessing", "sys.path.", "__import__"):
            assert word not in text.replace("unpickled", ""), (name, word)
    assert json.loads(b'{"ready": true}')


def test_the_agent_imports_no_torch():
    code = (
        "import sys, headwater.client.agent.agent, headwater.client.agent.task_handler\n"
        "import headwater.cli.client.verbs\n"
        "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
