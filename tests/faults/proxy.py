"""Proxy: a line between one device and its server that can be cut, slowed, corrupted. In this process."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass

_PIECE = 16384


@dataclass
class Weather:
    """What the line does.

    Args:
        delay_s: before each piece is passed on.
        bytes_per_s: at most, each way of each connection; 0 for no limit.
        up_per_s: likewise, on the way up only.
        black_hole: what comes in vanishes; the connection seems open.
        closed: nobody listens.
        corrupt_up, corrupt_down: so many pieces to come get a flipped bit.
        reset_after: a connection is reset after so many bytes up.
    """

    delay_s: float = 0.0
    bytes_per_s: float = 0.0
    up_per_s: float = 0.0
    black_hole: bool = False
    closed: bool = False
    corrupt_up: int = 0
    corrupt_down: int = 0
    reset_after: int = 0


class Proxy:
    """Passes on what comes to ``port``.

    Args:
        to: port on loopback.
        host: where it listens.
    """

    def __init__(self, to: int, host: str = "127.0.0.1") -> None:
        self._to = to
        self._listener = socket.create_server((host, 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self.weather = Weather()
        self.up = self.down = self.connections = self.resets = 0
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def clear(self) -> None:
        """Good weather."""
        self.weather = Weather()

    def close(self) -> None:
        self._listener.close()
        self.reset()

    def reset(self) -> int:
        """Reset every connection that is open, both ends; how many those were."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for one in pair:
                _reset(one)
        return len(pairs)

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self._listener.accept()
            except OSError:
                return
            if self.weather.closed:
                _reset(ours)
                continue
            try:
                theirs = socket.create_connection(("127.0.0.1", self._to), 5)
                theirs.settimeout(None)
            except OSError:
                _reset(ours)
                continue
            pair = ours, theirs
            with self._lock:
                self._pairs.add(pair)
            self.connections += 1
            for up in (True, False):
                threading.Thread(target=self._pump, args=(pair, up, self.weather), daemon=True).start()

    def _pump(self, pair: tuple[socket.socket, socket.socket], up: bool, born: Weather) -> None:
        source, target = pair if up else pair[::-1]
        seen = 0
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE):
                weather = self.weather
                if born.black_hole or weather.black_hole:
                    self._swallow(source)
                    return
                seen += len(piece)
                if up:
                    self.up += len(piece)
                else:
                    self.down += len(piece)
                if up and weather.reset_after and seen > weather.reset_after:
                    self.resets += 1
                    break
                piece = self._spoil(piece, up, weather)
                if weather.delay_s:
                    time.sleep(weather.delay_s)
                if speed := (up and weather.up_per_s) or weather.bytes_per_s:
                    time.sleep(len(piece) / speed)
                target.sendall(piece)
        with self._lock:
            self._pairs.discard(pair)
        for one in pair:
            _reset(one)

    def _swallow(self, source: socket.socket) -> None:
        """This direction is dead for good, as on a line whose router forgot the connection."""
        while source.recv(_PIECE):
            pass

    def _spoil(self, piece: bytes, up: bool, weather: Weather) -> bytes:
        left = weather.corrupt_up if up else weather.corrupt_down
        if left <= 0 or len(piece) < 1000:  # a piece of a body
            return piece
        if up:
            weather.corrupt_up -= 1
        else:
            weather.corrupt_down -= 1
        spoiled = bytearray(piece)
        spoiled[len(piece) // 2] ^= 0x10
        return bytes(spoiled)


def _reset(one: socket.socket) -> None:
    """Close with RST: the other end's body breaks off in the middle."""
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.shutdown(socket.SHUT_RD)
    with contextlib.suppress(OSError):
        one.close()
