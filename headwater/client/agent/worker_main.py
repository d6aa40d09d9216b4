"""worker_main: the process that has model and data. ``python -P -m headwater.client.agent.worker_main FD``.

It imports the installed headwater and nothing else, gets bytes over a socket it inherits, and ends at
once when the agent does: the kernel closes the agent's end, however the agent died. Torch is imported
after the owner's limits are set.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.client.agent import frames
from headwater.client.agent.advice import for_owner
from headwater.client.agent.known_runs import KnownRun
from headwater.config.plugins import AGENT_ALLOWS, allow_only
from headwater.errors import DataError, HeadwaterError, StorageError
from headwater.locks import lock_file, take_within
from headwater.process_memory import importing
from headwater.protocol.failures import failure_of

if TYPE_CHECKING:
    from headwater.client.agent.device_runtime import DeviceRuntimes

LOCK_S = 60.0
"""How long to wait for a dying predecessor to let go of the store."""


def worker_main(arguments: list[str]) -> int:
    """Answer the agent's requests until it is gone."""
    connection = socket.socket(fileno=int(arguments[0]))
    inbox: queue.SimpleQueue[list[bytes]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    options = json.loads(inbox.get()[0])
    limit_process(options)
    allow_only(options["plugins"], AGENT_ALLOWS)
    with hold_store(Path(options["state"])):
        with importing(for_good=True):
            from headwater.client.agent.device_runtime import DeviceRuntimes
            from headwater.client.device.memory import return_freed_memory
            from headwater.client.policy import Policy
            from headwater.config.agent import PolicySettings

        return_freed_memory()
        devices = DeviceRuntimes(
            options["name"],
            Path(options["data"]),
            threads=options["threads"],
            simulated_memory_mb=options["simulated_memory_mb"],
            policy=Policy(PolicySettings.model_validate(options["policy"])),
        )
        frames.send(connection, [b'{"ready": true}'])
        while True:
            head, envelope, state = inbox.get()
            frames.send(connection, _serve(devices, options, json.loads(head), envelope, state))


def _read(connection: socket.socket, inbox: queue.SimpleQueue[list[bytes]]) -> None:
    """Pass frames on; end the process when the agent is gone, in the middle of a training too."""
    with contextlib.suppress(BaseException):  # whatever it is, there is nobody left to work for
        while True:
            inbox.put(frames.receive(connection))
    os._exit(0)


def limit_process(options: dict[str, Any]) -> None:
    """Set the owner's limits on this process.

    Args:
        options: of :class:`headwater.client.agent.worker.WorkerOptions`, as JSON has them.
    """
    with contextlib.suppress(OSError):
        os.nice(options["nice"])
    with contextlib.suppress(OSError):  # where memory ends, this process goes, and not the agent
        Path("/proc/self/oom_score_adj").write_text("500")
    if options["memory_mb"] is not None:
        limit = options["memory_mb"] << 20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


@contextlib.contextmanager
def hold_store(state: Path) -> Iterator[None]:
    """Hold the store: two workers must never write one client's residuals.

    Raises:
        StorageError: another worker has it, and does not let go.
    """
    path = state / "worker.lock"
    with lock_file(path) as handle:
        if not take_within(handle, LOCK_S):
            raise StorageError(
                f"worker lock {path}",
                expected="no other worker",
                got=f"one that has not ended within {LOCK_S:.0f} s",
            )
        yield


def _serve(
    devices: DeviceRuntimes, options: dict[str, Any], head: dict[str, Any], envelope: bytes, state: bytes
) -> list[bytes]:
    """The frame that answers one request."""
    from headwater.client.execution.answer import answer
    from headwater.client.execution.store import DirectoryStore

    try:
        joined = KnownRun(head["run"], head["federation"], head["model_sha256"], Path(head["folder"]))
        runtime = devices.open(joined, None if head["model"] is None else Path(head["model"]))
        runtime.data.client(options["name"])  # what is wrong with the data shows here and nowhere later
        reply = answer(
            envelope, state, options["name"], DirectoryStore(joined.folder, ledgers=joined.ledgers), runtime
        )
    except DataError as error:  # the worker's data are the owner's, whenever what is wrong with them shows
        return [_head(devices, for_owner(error))]
    except HeadwaterError as error:
        return [_head(devices, error)]
    except Exception as error:  # libraries raise what they like; the agent must get an answer
        traceback.print_exc()
        return [_head(devices, error)]
    return [_head(devices), reply]


def _head(devices: DeviceRuntimes, error: Exception | None = None) -> bytes:
    """What the agent is told: the whole text of an error, for the owner, and the code for the server."""
    rows = None if devices.rows is None else devices.rows.list()
    content: dict[str, Any] = {"loads": devices.loads, "notice": devices.notice, "rows": rows, "error": ""}
    if error is not None:
        failure = failure_of(error)
        text = str(error) if isinstance(error, HeadwaterError) else f"{type(error).__name__}: {error}"
        content |= {"error": text or type(error).__name__, "code": failure.code, "numbers": failure.numbers}
    return json.dumps(content).encode()


if __name__ == "__main__":
    raise SystemExit(worker_main(sys.argv[1:]))
