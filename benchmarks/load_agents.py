"""Speaks for many agents in one process: the product's agent and connection, without its worker.

    python benchmarks/load_agents.py FOLDER FIRST LAST

Each agent has keys, a TLS connection, a connection keeper and a loop of its own, and polls as in the product;
what it does not have is a process with a base model: this process answers for all with the clients' own code.
For ``bench-load``, which makes FOLDER. Writes JSON to stdout when it is told to end.
"""

from __future__ import annotations

import gc
import json
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from headwater import __version__
from headwater.client.agent.agent import Agent
from headwater.client.agent.known_runs import KnownRun
from headwater.client.execution.answer import answer
from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import MemoryStore
from headwater.data.federated import FederatedData
from headwater.flower.fleet_client import FleetClient
from headwater.proto.wire import decode_request, encode_signed
from headwater.protocol.messages import ProfileRequest
from headwater.security.signing import Identity
from headwater.seeds.keys import Key
from headwater.training.context import TrainingContext

COUNTS: Counter[str] = Counter()
SAID: Counter[str] = Counter()


class Counted(FleetClient):
    """Counts its requests by call."""

    def _call(self, name: str, *rest: Any) -> Any:  # noqa: ANN401 - as the product's, whatever that is
        COUNTS[name] += 1
        return super()._call(name, *rest)


class Runtime:
    """Model and data of all these agents; one answer at a time."""

    def __init__(self) -> None:
        self._runtime: ClientRuntime | None = None
        self._lock, self._store = threading.Lock(), MemoryStore()

    def answer(self, name: str, envelope: bytes, state: bytes) -> bytes:
        with self._lock:
            request = decode_request(envelope, state)
            if isinstance(request, ProfileRequest) and self._runtime is None:
                joined = KnownRun(request.run, request.federation, request.model_sha256, Path("/nowhere"))
                loaded = joined.loaded(None)
                training_context, root = (
                    TrainingContext.open(loaded),
                    Key.root(loaded.settings.federation.seed),
                )
                data = FederatedData.open(loaded, None, root)
                self._runtime = ClientRuntime(request.run, training_context, data, root)
            assert self._runtime is not None
            return answer(envelope, state, name, self._store, self._runtime)


class TaskHandler:
    """What :class:`headwater.client.agent.task_handler.TaskHandler` is to an agent, without a policy."""

    policy = SimpleNamespace(settings=SimpleNamespace(metered=False))

    def __init__(self, identity: Identity, runtime: Runtime, pace_s: float) -> None:
        self._identity, self._runtime, self._pace_s = identity, runtime, pace_s

    def answer(self, parts: dict[str, bytes]) -> bytes:
        time.sleep(self._pace_s)
        reply = self._runtime.answer(self._identity.name, parts["envelope"], parts["state"])
        return encode_signed(reply, self._identity.sign_reply(reply))

    def paused(self) -> None:
        return None

    def rest(self) -> None:
        pass

    def count(self, size: int) -> None:
        COUNTS["bytes_up"] += size


def main() -> None:
    folder, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    facts = json.loads((folder / "load.json").read_text())
    torch.set_num_threads(1)
    threading.stack_size(2**18)
    stop, runtime = threading.Event(), Runtime()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    ca = Path(facts["ca"]).read_bytes()
    status = SimpleNamespace(contact=lambda state: None, note=lambda text: None, doing=lambda what: None)
    pace_s = float(facts.get("pace_s", 0.0))
    gc.freeze()
    threads = []
    for name in facts["names"][first:last]:
        identity = Identity.load(folder / "keys" / name)
        connection = Counted(facts["server"], ca, identity, version=__version__)

        def say(text: str) -> None:
            if "answered" not in text and text != "connected":
                SAID[text.split(";")[0][:160]] += 1

        agent: Any = Agent(connection, TaskHandler(identity, runtime, pace_s), say, stop, status)  # type: ignore[arg-type]  # a stand-in that trains in this process
        threads.append(threading.Thread(target=agent.run, daemon=True))
        threads[-1].start()
        stop.wait(0.005)
    stop.wait()
    for thread in threads:
        thread.join(10)
    print(json.dumps({"calls": COUNTS, "said": SAID.most_common(10), "losses": SAID.total()}))


if __name__ == "__main__":
    main()
