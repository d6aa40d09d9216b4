"""Looks at processes from outside, by /proc: memory, CPU time, children."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path


def rss_mib(pid: int) -> float:
    """Resident memory; 0 for a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def cpu_s(pid: int) -> float:
    """Seconds of CPU that it has used, in user and kernel mode; 0 for a process that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def command(pid: int) -> str:
    """Its command line; empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def tree(pid: int) -> list[int]:
    """The process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def disk_bytes(folder: Path) -> int:
    """Bytes of all files below ``folder``."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # removed meanwhile
            continue
    return total


class Sampler:
    """Calls ``look`` a few times a second in a thread; a context."""

    def __init__(self, look: Callable[[], None], every_s: float = 0.5) -> None:
        self._look, self._every_s, self._stop = look, every_s, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self._look()

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


def wait_for(what: Callable[[], bool], within_s: float, name: str) -> None:
    """Look until it is so.

    Raises:
        TimeoutError: it is not in time.
    """
    ends = time.monotonic() + within_s
    while not what():
        if time.monotonic() > ends:
            raise TimeoutError(f"{name} within {within_s:g} s")
        time.sleep(0.1)
