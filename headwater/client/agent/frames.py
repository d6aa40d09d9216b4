"""Frames: lists of byte strings over a socket between agent and worker. Nothing is unpickled.

A frame is its number of parts (uint32), their lengths (uint64 each), and the parts, big-endian.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

from headwater.errors import DecodeError

MAX_PARTS = 4
MAX_BYTES = 2**32
"""Of a frame: above the largest message that Flower carries."""
TICK_S = 0.2


def _nothing() -> None:
    pass


def send(connection: socket.socket, parts: list[bytes], tick: Callable[[], None] = _nothing) -> None:
    """Write one frame. ``tick`` is called while the other side does not read; what it raises ends it.

    Raises:
        OSError: the other side is gone.
    """
    head = struct.pack(f">I{len(parts)}Q", len(parts), *(len(p) for p in parts))
    for part in (head, *parts):
        view = memoryview(part)
        while view:
            try:
                view = view[connection.send(view) :]
            except TimeoutError:
                tick()


def receive(connection: socket.socket, tick: Callable[[], None] = _nothing) -> list[bytes]:
    """Read one frame.

    Raises:
        EOFError: the other side is gone.
        DecodeError: not a frame.
    """
    (count,) = struct.unpack(">I", _exactly(connection, 4, tick))
    if not 0 < count <= MAX_PARTS:
        raise DecodeError("worker frame", expected=f"1 to {MAX_PARTS} parts", got=str(count))
    sizes = struct.unpack(f">{count}Q", _exactly(connection, 8 * count, tick))
    if sum(sizes) > MAX_BYTES:
        raise DecodeError("worker frame", expected=f"at most {MAX_BYTES} bytes", got=str(sum(sizes)))
    return [_exactly(connection, size, tick) for size in sizes]


def _exactly(connection: socket.socket, size: int, tick: Callable[[], None]) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        try:
            count = connection.recv_into(view)
        except TimeoutError:
            tick()
            continue
        except ConnectionError:
            raise EOFError from None
        if not count:
            raise EOFError
        view = view[count:]
    del view
    return bytes(data)
