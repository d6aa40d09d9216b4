"""Ports of a deployment on one machine: :func:`free_ports`, :func:`move_to_free_ports` for an earlier one."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from headwater.config.daemon import load_daemon, split_address
from headwater.files import write_atomically


def free_ports() -> tuple[int, int, int]:
    """Three ports of 127.0.0.1 that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        first, second, third = (int(one.getsockname()[1]) for one in sockets)
        return first, second, third


def move_to_free_ports(folder: Path) -> tuple[int, int, int]:
    """Let the server below ``folder`` and its devices use ports that are free now, where theirs are taken.

    Args:
        folder: with ``server/server.toml`` and ``devices/*/agent.toml``.

    Returns:
        The ports of fleet, control and web, as the files now say.

    Raises:
        ConfigError: the files are not what they were.
        StorageError: they cannot be written.
    """
    file = folder / "server" / "server.toml"
    listen = load_daemon(file).listen
    old = tuple(split_address(address)[1] for address in (listen.fleet, listen.control, listen.web))
    new = tuple(port if _is_free(port) else other for port, other in zip(old, free_ports(), strict=True))
    if new != old:
        for path in (file, *(folder / "devices").glob("*/agent.toml")):
            text = path.read_text(encoding="utf-8")
            for before, after in zip(old, new, strict=True):
                text = text.replace(f':{before}"', f':{after}"')
            mode = path.stat().st_mode
            write_atomically(path, text.encode())
            path.chmod(mode)
    first, second, third = new
    return first, second, third


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
