"""A stock Flower deployment on this machine, as processes: :class:`FlowerDeployment`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

SCRIPTS = (
    "flwr", "flower-superlink", "flower-supernode", "flower-superexec", "flwr-serverapp", "flwr-clientapp",
)  # fmt: skip


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class FlowerDeployment:
    """One SuperLink and a SuperNode for each node config. Use it as a context: it ends every process.

    Args:
        folder: new; logs and Flower's home.
        python: whose flwr it is.
        nodes: texts of ``--node-config``.
    """

    def __init__(self, folder: Path, python: str, nodes: Sequence[str]) -> None:
        self.folder, self._nodes = folder, nodes
        self._processes: list[subprocess.Popen[bytes]] = []
        scripts = folder / "bin"
        scripts.mkdir(parents=True)
        for name in SCRIPTS:
            (point,) = entry_points(group="console_scripts", name=name)
            text = (
                f"#!{python}\nimport sys\nfrom {point.module} import {point.attr}\nsys.exit({point.attr}())\n"
            )
            (scripts / name).write_text(text)
            (scripts / name).chmod(0o755)
        home = folder / "home"
        home.mkdir()
        self.port = free_port()
        (home / "config.toml").write_text(
            '[superlink]\ndefault = "here"\n'
            f'[superlink.here]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        self.environment = {
            **os.environ,
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_OFFLINE": "1",
        }

    def __enter__(self) -> FlowerDeployment:
        self._start(
            "superlink", "--insecure", "--host", "127.0.0.1", "--port", str(self.port),
            "--disable-runtime-dependency-installation",
        )  # fmt: skip
        self._wait_for(self.port)
        for config in self._nodes:
            self._start(
                "supernode", "--insecure", "--superlink", f"127.0.0.1:{self.port}", "--host", "127.0.0.1",
                "--port", str(free_port()), "--node-config", config,
            )  # fmt: skip
        return self

    def __exit__(self, *error: object) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in reversed(self._processes):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _start(self, name: str, *arguments: str) -> None:
        log = (self.folder / f"{name}-{len(self._processes)}.log").open("wb")
        with log:
            process = subprocess.Popen(
                [f"{self.folder}/bin/flower-{name}", *arguments],
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=self.environment, start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)

    def _wait_for(self, port: int, within_s: float = 60.0) -> None:
        ends_s = time.monotonic() + within_s
        while time.monotonic() < ends_s:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(0.2)
        raise AssertionError(self.logs())

    def flwr(self, *arguments: str, cwd: Path) -> str:
        """What ``flwr`` prints."""
        found = subprocess.run(
            [f"{self.folder}/bin/flwr", *arguments], cwd=cwd, env=self.environment, capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip
        assert found.returncode == 0, found.stdout + found.stderr + self.logs()
        return found.stdout

    def run(self, app: Path, out: Path, *, config: str = "", within_s: float = 300.0) -> Mapping[str, Any]:
        """Run the app to its end; the summary that its ServerApp writes into ``out``."""
        told = f"out='{out}' {config}"
        number = str(
            json.loads(self.flwr("run", ".", "here", "--format", "json", "-c", told, cwd=app))["run-id"]
        )
        ends_s = time.monotonic() + within_s
        asked_s = time.monotonic()
        while time.monotonic() < ends_s:
            if (out / "summary.json").exists():
                return dict(json.loads((out / "summary.json").read_text()))
            if time.monotonic() > asked_s + 20:  # a process of seconds: the summary is looked for more often
                listed = self.flwr("list", "here", "--run-id", number, "--format", "json", cwd=app)
                assert "failed" not in json.loads(listed)["runs"][0]["status"], self.logs()
                asked_s = time.monotonic()
            time.sleep(0.5)
        raise AssertionError(self.logs())

    def logs(self) -> str:
        """The end of every log."""
        parts = [
            f"{p.name}\n{p.read_text(errors='replace')[-4000:]}" for p in sorted(self.folder.glob("*.log"))
        ]
        return "\n".join(parts)
