"""Worker: the agent's side of its one child, which has model and data. No torch here.

The child is a fresh Python in safe-path mode with a cleaned environment: neither the folder the agent
was started in nor ``PYTHONPATH`` nor anything the server sends can stand in for the installed headwater.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from headwater import bits
from headwater.client.agent import frames
from headwater.client.agent.data_stamp import RowsRead
from headwater.client.agent.known_runs import KnownRun
from headwater.errors import DecodeError, TrainingError
from headwater.protocol.failures import FailureCode, coded, how_ended, read_failure

_KEPT = (
    "PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH",
    "LC_", "CUDA_", "CUBLAS_", "NVIDIA_", "HIP_", "ROCR_", "OMP_", "MKL_",
)  # fmt: skip
"""What of the environment the child sees: names, and prefixes that end in an underscore."""


class WorkerDied(TrainingError):
    """The child ended in the middle of a task."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What the child must know before its first task; see :class:`PolicySettings` for the limits.

    ``plugins`` are the kinds of packages that it may import.
    """

    name: str
    data: str
    state: str
    threads: int | None = None
    nice: int = 10
    memory_mb: int | None = None
    simulated_memory_mb: int | None = None
    policy: Mapping[str, Any] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()


class Worker:
    """Starts the child when it is needed and answers requests through it.

    Attributes:
        starts: children started so far.
        loads: base models that the current child has read from files.
        notice: what the owner should know of the current run, or nothing.
        rows: those of the owner that the child has in memory; None without.
    """

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._said: deque[str] = deque(maxlen=20)
        self.starts, self.loads, self.notice = 0, 0, ""
        self.rows: RowsRead | None = None
        self._bits = "machine"

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        return None if self._process is None else self._process.pid

    def answer(
        self,
        joined: KnownRun,
        model: Path | None,
        envelope: bytes,
        state: bytes,
        tick: Callable[[], None] = lambda: None,
    ) -> bytes:
        """The encoded reply to a request.

        Args:
            joined: the run.
            model: folder of its base model.
            envelope: the request.
            state: the state beside it.
            tick: called a few times a second meanwhile; what it raises ends the child and is raised on.

        Raises:
            WorkerDied: the child ended; the next call starts another.
            TrainingError: it could not answer; with the whole text, and the code for the server.
        """
        request = asdict(joined) | {
            "folder": str(joined.folder),
            "model": None if model is None else str(model),
        }
        try:
            if self._bits != joined.bits:
                self.close()  # a process cannot change what its libraries were told
            connection = self._connection or self._start(joined.bits, tick)
            frames.send(connection, [json.dumps(request).encode(), envelope, state], tick)
            head, *rest = frames.receive(connection, tick)
        except (EOFError, OSError, DecodeError):
            raise self._end() from None
        except BaseException:
            self.close()  # whatever it was working on, nobody waits for it
            raise
        content = json.loads(head)
        self.loads, self.notice = content["loads"], content["notice"]
        self.rows = RowsRead.read(content["rows"])
        if content["error"]:
            failure = read_failure(content["code"], tuple(content["numbers"]))
            raise coded(TrainingError(content["error"]), failure.code, *failure.numbers)
        return rest[0]

    def close(self) -> None:
        """End the child, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._end()

    def _start(self, mode: str, tick: Callable[[], None]) -> socket.socket:
        self._bits = mode
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "headwater.client.agent.worker_main", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd="/",
                env=bits.environment(mode, clean_environment(os.environ)),
                process_group=0,  # a Ctrl-C is for the agent
            )
        threading.Thread(target=_listen, args=(self._process.stderr, self._said), daemon=True).start()
        self.starts, self.loads, self.notice = self.starts + 1, 0, ""
        ours.settimeout(frames.TICK_S)
        self._connection = ours
        frames.send(ours, [json.dumps(asdict(self._options)).encode()], tick)
        frames.receive(ours, tick)  # ready
        return ours

    def _end(self) -> WorkerDied:
        """Clear away a child that ended or must; how it ended."""
        process, self._process = self._process, None
        connection, self._connection = self._connection, None
        self.rows = None
        if connection is not None:
            connection.close()
        if process is None:
            return coded(WorkerDied("worker could not be started"), FailureCode.WORKER_DIED)
        with contextlib.suppress(subprocess.TimeoutExpired):  # its end of the socket closed: it is ending
            process.wait(5)
        process.kill()
        code = process.wait()
        died = WorkerDied(describe_end(code, self._options.memory_mb))
        return coded(died, FailureCode.WORKER_DIED, max(0, -code), max(0, code))

    @property
    def last_words(self) -> tuple[str, ...]:
        """The last lines that children wrote to stderr: for the owner's log only."""
        return tuple(self._said)


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What the child sees: no ``PYTHON*``, no proxies, no hub."""
    kept = {
        name: value
        for name, value in environment.items()
        if any(name == k or (k.endswith("_") and name.startswith(k)) for k in _KEPT)
    }
    return kept | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONSAFEPATH": "1"}


def describe_end(code: int, memory_mb: int | None = None) -> str:
    """How a child ended, for the owner."""
    cap = f" (policy memory_mb {memory_mb})" if memory_mb is not None else ""
    hungry = code in (-signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS)
    return f"worker died: {how_ended(code)}" + (f", perhaps out of memory{cap}" if hungry else "")


def _listen(stream: IO[bytes] | None, said: deque[str]) -> None:
    """Keep the last lines; a child that writes much must not stop, nor fill a disk."""
    if stream is None:
        return
    with stream:
        while line := stream.readline(2000):
            said.append(line.decode(errors="replace").rstrip()[:300])
