"""A running agent whose server, with the right certificate, is not to be trusted.

The server is this process: ``flower.fleet_server.FleetServer`` sends whatever it likes. The agent is
the product's, started in a folder full of traps.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from headwater import __version__
from headwater.flower import unpack
from headwater.proto.v1 import messages_pb2 as pb
from headwater.proto.wire import decode_reply, decode_signed, encode_request
from headwater.protocol.failures import FailureCode
from headwater.protocol.messages import ClientFailure, ClientProfile, ProfileRequest
from headwater.simulation.network import LocalProcess
from tests.attacks.grounds import memory
from tests.attacks.test_local_user import listening
from tests.flower_layer.deployment import running, wait_for

NAME = "owner"
TRAPS = ("headwater", "torch", "flwr", "numpy", "json", "sitecustomize", "usercustomize")
FEDERATION = {
    "federation": {"name": "f", "rounds": 1, "seed": 1},
    "model": {"kind": "vector", "size": 64},
    "data": {"kind": "none", "clients": 1},
    "training": {"kind": "noop"},
}
TEXT = {
    "model": {"kind": "causal-lm", "path": "/etc", "sha256": "0" * 64},
    "adapter": {"kind": "lora"},
    "data": {"kind": "causal-lm", "path": "/etc/passwd", "partition": {"kind": "files"}},
    "training": {"kind": "backprop"},
}


class Touch:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    """(the lying server, the agent's process, its folder); traps where it was started."""
    folder = tmp_path_factory.mktemp("agent")
    with running(folder, max_reply=2**20) as server:
        home, trap = folder / "home", folder / "trap"
        home.mkdir()
        trap.mkdir()
        hit = f"open({str(folder / 'HIT')!r}, 'a').write(__name__)\n"
        for name in TRAPS:
            (trap / f"{name}.py").write_text(hit)
            (trap / name).mkdir()
            (trap / name / "__init__.py").write_text(hit)
        (home / "data.jsonl").write_text('{"text": "the owner\'s own words"}\n')
        (home / "ca.pem").write_bytes(server.ca)
        (home / "agent.toml").write_text(
            f'name = "{NAME}"\nserver = "127.0.0.1:{server.port}"\n[data]\npath = "data.jsonl"\n'
            f'[models]\nfolders = ["{home}"]\n[policy]\nnice = 0\nmemory_mb = 4096\n'
        )
        server.enrol(NAME).save(home / "state" / "keys")
        process = LocalProcess(["client", "run", str(home / "agent.toml")], folder / "agent.out")
        with process.log.open("ab") as log:
            process.process = subprocess.Popen(
                # the command as it is installed: `python -m` would put the folder it starts in first
                [Path(sys.executable).parent / "headwater", *process.command],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=trap,
                start_new_session=True,
            )
        wait_for(lambda: NAME in server.link.online() or not process.alive, 90)
        assert process.alive, process.tail()
        yield server, process, folder
        process.kill(signal.SIGTERM)
        process.end()


def ask(server, *, kind="train", within_s=60, **parts: bytes):
    """Send parts; the reply, whose signature is the agent's."""
    message_id = server.send(NAME, kind=kind, **parts)
    found = []
    wait_for(lambda: bool(found) or bool(found.extend(server.pull(message_id))) or bool(found), within_s)
    (raw,) = unpack(found[0].content, "reply")
    reply, _ = decode_signed(raw, max_bytes=len(raw))
    return decode_reply(reply, max_bytes=len(reply))


def profile_request(run="r", **changes) -> bytes:
    content = {**FEDERATION, **changes}
    request = ProfileRequest(run, json.dumps(content), "0" * 64, __version__)
    return encode_request(request)[0]


def bundle(folder: Path) -> bytes:
    """A zip as Flower's FAB: a package named like ours that would leave a file."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        hit = f"open({str(folder / 'HIT')!r}, 'a').write('bundle')\n"
        archive.writestr("headwater/__init__.py", hit)
        archive.writestr("pyproject.toml", '[tool.flwr.app.components]\nclientapp = "headwater:app"\n')
        archive.writestr("../../evil.py", hit)
    return data.getvalue()


BAD = FailureCode.BAD_REQUEST


def messages(folder: Path):
    """What no honest server sends: (name, parts, the code of the answer)."""
    zipped = bundle(folder)
    pickled = pickle.dumps(Touch(folder / "HIT"))
    yield "a bundle", {"fab": zipped}, BAD
    yield "a bundle as a request", {"envelope": zipped, "state": b""}, BAD
    yield "a bundle as a state", {"envelope": profile_request("zipped"), "state": zipped}, BAD
    yield "pickle as a request", {"envelope": pickled, "state": b""}, BAD
    yield "pickle as both", {"envelope": pickled, "state": pickled}, BAD
    yield "nothing", {"envelope": b"", "state": b""}, BAD
    yield "more parts", {"envelope": profile_request(), "state": b"", "more": b"x"}, BAD
    yield "other parts", {"../envelope": b"", "state": b""}, BAD
    yield "a big envelope", {"envelope": bytes(2**17), "state": b""}, BAD
    for name in ("../../x", "/tmp/x", "..", "a/b", ".hidden", "x\x00y", "con\n"):
        yield f"run {name!r}", {"envelope": profile_request(name), "state": b""}, BAD
    raw = pb.Request(profile=pb.ProfileRequest(run="j", federation="{" * 50_000, model_sha256="0" * 64))
    yield "deep JSON", {"envelope": raw.SerializeToString(), "state": b""}, FailureCode.ANOTHER_VERSION
    yield (
        "unknown keys",
        {"envelope": profile_request(code={"run": "x"}), "state": b""},
        FailureCode.ANOTHER_VERSION,
    )
    for size in (2**31 + 1, -1):
        vector = {"kind": "vector", "size": size}
        yield (
            f"size {size}",
            {"envelope": profile_request(model=vector), "state": b""},
            FailureCode.ANOTHER_VERSION,
        )
    yield (
        "my files as model and data",
        {"envelope": profile_request("t", **TEXT), "state": b""},
        FailureCode.MODEL_MISSING,
    )
    task = pb.TrainRequest(
        run="never-joined", round=1, client=NAME, spec="0" * 64, state_codec="dense.v1",
        state_sha256=bytes(32), plan=json.dumps({"training": {"kind": "noop", "scale": 1.0},
        "codec": {"kind": "dense", "dtype": "fp32"}, "learning_rate_factor": 1.0}),
    )  # fmt: skip
    train = pb.Request(train=task).SerializeToString()
    yield "a task of a run that was never told", {"envelope": train, "state": zipped}, FailureCode.UNKNOWN_RUN
    task.client = "somebody-else"
    train = pb.Request(train=task).SerializeToString()
    yield "another's task", {"envelope": train, "state": b""}, FailureCode.NOT_FOR_THIS_CLIENT


def test_whatever_a_server_sends_is_bytes(agent):
    server, process, folder = agent
    for kind in ("train", "evaluate", "query"):
        for name, parts, code in list(messages(folder))[: 3 if kind != "train" else None]:
            reply = ask(server, kind=kind, **parts)
            if name == "a bundle as a state":  # a profile request's state is not looked at
                assert isinstance(reply, (ClientFailure, ClientProfile))
                continue
            assert isinstance(reply, ClientFailure), (name, reply)
            assert reply.failure.code is code, (name, reply)
            assert reply.reason == reply.failure.sentence(), (name, reply)
    assert process.alive
    assert not (folder / "HIT").exists()
    assert not (folder / "evil.py").exists()
    state = folder / "home" / "state"
    assert sorted(p.name for p in (state / "runs").iterdir()) <= ["t", "zipped"]
    assert not list(folder.rglob("*.zip"))


def test_a_huge_task_costs_the_worker_and_not_the_agent(agent):
    server, process, folder = agent
    before = memory(process.pid, reset=True)[0]
    vector = {"kind": "vector", "size": 2**31}  # 8 GiB: more than the owner's policy gives
    reply = ask(server, kind="query", envelope=profile_request("huge", model=vector), state=b"", within_s=120)
    # a profile has no values yet: where the memory is really asked for, the worker's limit says no
    assert isinstance(reply, (ClientFailure, ClientProfile)), reply
    assert all(memory(pid)[1] < 4096 * 1024 for pid in children(process.pid))
    grown = memory(process.pid)[1] - before
    print("AGENT GROWN", grown, "RSS", memory(process.pid))
    assert grown < 64 * 1024
    # and an honest task after it is done
    reply = ask(server, kind="query", envelope=profile_request("fine"), state=b"", within_s=120)
    assert isinstance(reply, ClientProfile), reply
    assert not (folder / "HIT").exists()


def test_the_agent_has_no_port_and_shows_no_secret(agent):
    _, process, folder = agent
    found = [*children(process.pid), process.pid]
    for pid in found:
        assert listening(pid) == []
        for name in ("cmdline", "environ"):
            assert b"PRIVATE KEY" not in Path(f"/proc/{pid}/{name}").read_bytes()
    key = (folder / "home" / "state" / "keys" / "signing.key").read_bytes().splitlines()[1]
    for path in (folder / "home").rglob("*"):
        if path.is_file() and "keys" not in path.parts:
            assert key not in path.read_bytes()
    assert not (folder / "home" / "state").stat().st_mode & 0o077  # all that the agent writes is in it
    assert key not in (folder / "agent.out").read_bytes()


def children(pid: int) -> list[int]:
    text = "".join(p.read_text() for p in Path(f"/proc/{pid}/task").glob("*/children"))
    return [int(word) for word in text.split()]
