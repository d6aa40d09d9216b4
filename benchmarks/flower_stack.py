"""Flower's own deployment on this machine: a SuperLink, two SuperNodes and ``flwr run``, as its guide says.

In memory and without TLS, which is faster than either with SQLite or with TLS. For ``bench-network``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from processes import Sampler, command, rss_mib, tree, wait_for

APP = Path(__file__).parent / "flower_app"
KINDS = ("flower-superlink", "flower-supernode", "flower-superexec", "flwr-serverapp", "flwr-clientapp")


class FlowerStack:
    """A context in which Flower's processes run.

    Attributes:
        peak_mib: of one process of each kind.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._processes = folder, list[subprocess.Popen[bytes]]()
        self.peak_mib: dict[str, float] = {}
        self._bin = Path(sys.executable).parent
        self._environment = os.environ | {
            "FLWR_HOME": str(folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "PATH": f"{self._bin}{os.pathsep}{os.environ.get('PATH', '')}",
        }

    def __enter__(self) -> FlowerStack:
        port, *others = _free_ports(3)
        home = self._folder / "home"
        home.mkdir(parents=True)
        (home / "config.toml").write_text(
            '[superlink]\ndefault = "here"\n'
            f'[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        link = ["--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation"]
        self._start("flower-superlink", "--insecure", *link)
        wait_for(lambda: _answers(port), 60, "flower-superlink")
        for number, own in enumerate(others):
            address = ["--superlink", f"127.0.0.1:{port}", "--host", "127.0.0.1", "--port", str(own)]
            config = f"partition-id={number} num-partitions={len(others)}"
            self._start("flower-supernode", "--insecure", *address, "--node-config", config)
        self._sampler = Sampler(self._look, 1.0)
        self._sampler.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._sampler.__exit__()
        for process in self._processes:
            with_children = tree(process.pid)
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            for pid in with_children:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()

    def run(self, rounds: int, values: int, within_s: float) -> list[float]:
        """Seconds of each round, by the ServerApp's clock.

        Raises:
            TimeoutError: the run has not ended in time.
        """
        out = self._folder / f"ends-{time.monotonic_ns()}.json"
        config = f"rounds={rounds} values={values} out='{out}'"
        command_line = [str(self._bin / "flwr"), "run", str(APP), "here", "-c", config]
        done = subprocess.run(command_line, env=self._environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        wait_for(out.exists, within_s, "Flower's run")
        time.sleep(0.2)
        ends: list[float] = json.loads(out.read_text())
        return [round(b - a, 3) for a, b in itertools.pairwise(ends)]

    def _start(self, *words: str) -> None:
        log = (self._folder / f"{words[0]}-{len(self._processes)}.log").open("wb")
        self._processes.append(
            subprocess.Popen(
                [str(self._bin / words[0]), *words[1:]],
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )

    def _look(self) -> None:
        for process in self._processes:
            for pid in tree(process.pid):
                line = command(pid)
                kind = next((k for k in reversed(KINDS) if f"/{k} " in f"{line} "), "")
                if kind:
                    self.peak_mib[kind] = max(self.peak_mib.get(kind, 0.0), rss_mib(pid))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _answers(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def rounded(peaks: dict[str, float]) -> dict[str, int]:
    """Whole MiB, in the order of :data:`KINDS`."""
    known: Counter[str] = Counter({k: round(v) for k, v in peaks.items()})
    return {kind: known[kind] for kind in KINDS}
