"""A device in a folder for tests: its agent file, its data, and the requests that a server would send."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w

from headwater.adapters.weights import hash_base
from headwater.client.agent.known_runs import KnownRuns
from headwater.client.agent.task_handler import TaskHandler
from headwater.client.execution.runtime import ClientRuntime
from headwater.compression.dense import DenseCodec
from headwater.config import Federation, load_federation
from headwater.config.agent import AgentSettings, load_agent
from headwater.proto.wire import decode_reply, decode_signed, encode_request
from headwater.protocol.messages import (
    ClientPlan,
    EvaluateRequest,
    ProfileRequest,
    Reply,
    Request,
    TrainRequest,
)
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.training.context import TrainingContext
from tests.support.runs import OWNERS, rows, tiny_federation, write_jsonl

RUN = "0123456789abcdef0123456789abcdef"
VECTOR_SHA256 = hashlib.sha256(b"vector").hexdigest()


def agent_file(folder: Path, policy: dict[str, Any] | None = None, **changes: Any) -> AgentSettings:
    """Write ``folder/agent.toml`` for owner ann, whose data and model lie in the folder."""
    content = {
        "name": "ann",
        "server": "127.0.0.1:1",
        "data": {"path": "ann.jsonl"},
        "models": {"folders": ["."]},
        "policy": {"nice": 0, **(policy or {})},  # beside busy processes another worker would starve
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "agent.toml"
    path.write_text(tomli_w.dumps(content))
    return load_agent(path)


def vector_federation(size: int = 64, **tables: Any) -> Federation:
    content: dict[str, Any] = {
        "federation": {"name": "noop", "rounds": 3, "seed": 5},
        "model": {"kind": "vector", "size": size},
        "data": {"kind": "none", "clients": 3, "examples": 7},
        "training": {"kind": "noop"},
    }
    return Federation.model_validate(content | tables)


def profile_request(federation: Federation, sha256: str = VECTOR_SHA256, run: str = RUN) -> ProfileRequest:
    return ProfileRequest(run, federation.model_dump_json(), sha256, "0.1.0")


def vector_train(federation: Federation, **changes: Any) -> TrainRequest:
    spec = StateSpec((TensorSpec("vector", (federation.model.size,), "vector"),))
    return _train(federation, AdapterState.zeros(spec), **changes)


def _train(federation: Federation, state: AdapterState, **changes: Any) -> TrainRequest:
    whole = TrainRequest(
        run=RUN,
        round=1,
        client="ann",
        spec=state.spec.fingerprint(),
        state_sha256=state.sha256(),
        state=DenseCodec("fp32").encode(state, key=Key.root(0)),
        accepted_round=0,
        plan=ClientPlan(federation.training, federation.codec.up),
    )
    return replace(whole, **changes)


def evaluation_of(train: TrainRequest) -> EvaluateRequest:
    return EvaluateRequest(train.run, train.round, train.client, train.spec, train.state_sha256, train.state)


@dataclass
class TextDevice:
    """Owner ann of the tiny federation: the whole data in a simulation, her rows on her device.

    ``theirs`` is the organiser's folder with everyone's data, ``ours`` hers.
    """

    theirs: Path
    ours: Path
    tables: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.loaded = load_federation(tiny_federation(self.theirs, **self.tables))
        self.federation = self.loaded.settings
        self.sha256 = hash_base(self.theirs / "bert")
        self.ours.mkdir(parents=True, exist_ok=True)
        write_jsonl(self.ours / "ann.jsonl", rows("ann", OWNERS["ann"]))
        self.settings = agent_file(self.ours, models={"folders": [str(self.theirs)]})

    def simulated(self) -> ClientRuntime:
        """The runtime of a simulation of the same file, with this run's id."""
        return replace(ClientRuntime.open(self.loaded), run=RUN)

    def profile(self, run: str = RUN) -> ProfileRequest:
        return profile_request(self.federation, self.sha256, run)

    def train(self, context: TrainingContext, **changes: Any) -> TrainRequest:
        return _train(self.federation, context.initial_state(), **changes)

    def joined(self):
        return KnownRuns(self.settings.state / "runs").join(self.profile())


def parts(request: Request) -> dict[str, bytes]:
    envelope, state = encode_request(request)
    return {"envelope": envelope, "state": state}


def opened(signed: bytes) -> Reply:
    """What a signed reply says."""
    data, _ = decode_signed(signed, max_bytes=10**9)
    return decode_reply(data, max_bytes=10**9)


def ask(handler: TaskHandler, request: Request) -> Reply:
    return opened(handler.answer(parts(request)))


def sign(data: bytes) -> bytes:
    """Stands in for a device's key."""
    return b"s" * 64
