"""What the machine has: memory, disks, file limits, ports, a clock, caches."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from headwater.cli.doctor.findings import Finding
from headwater.errors import ConfigError, StorageError
from headwater.text import human_bytes

LITTLE_DISK, NO_DISK = 2 * 10**9, 100 * 10**6
"""Free bytes below which a disk is mentioned, and below which it is wrong."""
LITTLE_MEMORY = 2 * 10**9
FEW_FILES = 1024
"""Open files that a process may have: below it many agents or workers do not fit."""


def memory() -> Iterator[Finding]:
    """Processors and memory."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    total = pages * size
    text = f"{human_bytes(total)}, {len(os.sched_getaffinity(0))} processors"
    if total < LITTLE_MEMORY:
        yield Finding("memory", "note", text, "Which method fits: headwater client profile CONFIG")
    else:
        yield Finding("memory", "ok", text)


def disk(what: str, path: Path) -> Iterator[Finding]:
    """Whether there is room, and the right to write, where ``path`` is or will be."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    check = f"disk, {what}"
    code = StorageError.exit_code
    if not os.access(there, os.W_OK):
        yield Finding(check, "bad", f"{there} cannot be written", "Choose another, or mend the rights.", code)
        return
    free = shutil.disk_usage(there).free
    text = f"{human_bytes(free)} free at {there}"
    if free < NO_DISK:
        yield Finding(check, "bad", text, "Free space.", code)
    elif free < LITTLE_DISK:
        yield Finding(check, "note", text, "A model and its adapters may not fit: free space.")
    else:
        yield Finding(check, "ok", text)


def disks() -> Iterator[Finding]:
    """Where runs are written, and what is temporary."""
    yield from disk("runs", Path("runs"))
    yield from disk("temporary", Path(tempfile.gettempdir()))


def file_limit() -> Iterator[Finding]:
    """Open files; headwater itself asks for as many as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = "no limit" if hard == resource.RLIM_INFINITY else f"{hard:,}"
    text = f"{soft:,} open files now, {most} at most"
    if hard != resource.RLIM_INFINITY and hard < FEW_FILES:
        yield Finding(
            "file limit", "note", text, "For many agents raise it: ulimit -Hn, LimitNOFILE= of systemd."
        )
    else:
        yield Finding("file limit", "ok", text)


def clock() -> Iterator[Finding]:
    """Whether the clock is behind the files of the installation; against a server, see :mod:`.member`."""
    written = Path(__file__).stat().st_mtime
    now = time.time()
    if now + 60 < written:
        behind = f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime(now))} UTC is before headwater was installed"
        yield Finding(
            "clock", "bad", behind, "Set the clock: certificates depend on it.", ConfigError.exit_code
        )
    else:
        yield Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)))


def port(what: str, host: str, number: int, *, ours: bool = False) -> Iterator[Finding]:
    """Whether somebody could listen there.

    Args:
        what: who would.
        host: an address or a name of this machine.
        number: 0 asks for any.
        ours: our own daemon runs, and so has it.
    """
    check, place = f"port, {what}", f"{host}:{number}" if number else f"{host}, any"
    try:
        family, _, _, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        if ours:
            yield Finding(check, "ok", f"{place}, the running daemon has it")
            return
        advice = "Choose another in server.toml, [listen]." if number else "Is the loopback interface up?"
        text = f"{place}: {error.strerror or error}"
        yield Finding(check, "bad", text, advice, ConfigError.exit_code)
    else:
        yield Finding(check, "ok", f"{place} is free")


def caches() -> Iterator[Finding]:
    """Where models are kept that have a hub name, and whether a hub is asked at all."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    try:
        models = sum(path.name.startswith("models--") for path in hub.iterdir())
        text = f"{hub}, {models} model{'' if models == 1 else 's'}"
    except OSError:
        text = f"{hub}, nothing there"
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    asked = "never asked (HF_HUB_OFFLINE)" if offline else "asked for names that are not there"
    yield Finding("model cache", "ok", f"{text}; a hub is {asked}")
