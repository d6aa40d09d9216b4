"""Reading bytes of a stranger: :class:`Reader`, whose every method checks before it returns; LEB128 integers.

It imports no torch: the files of compressed adapters are read with it too.
"""

from __future__ import annotations

import math
import struct

from headwater.errors import DecodeError

RESEND = "Refuse this message; sender and receiver must run the same version and the same [adapter]."


class Reader:
    """Reads a body from front to back; every failure is a :class:`DecodeError` that names ``who``.

    Args:
        body: the bytes.
        who: whose they are.
        hint: what to do about bytes that are wrong.
    """

    def __init__(self, body: bytes, who: str, hint: str = RESEND) -> None:
        self._body, self._at, self.who, self.hint = body, 0, who, hint

    def fail(self, expected: str, got: str) -> DecodeError:
        """The error to raise when this body is wrong."""
        return DecodeError(self.who, expected=expected, got=got, hint=self.hint)

    def take(self, count: int, what: str) -> bytes:
        """The next ``count`` bytes."""
        left = len(self._body) - self._at
        if left < count:
            raise self.fail(f"{count} bytes of {what} at byte {self._at}", f"{left}")
        self._at += count
        return self._body[self._at - count : self._at]

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.take(len(self._body) - self._at, "rest")

    def length(self, what: str) -> None:
        """A varint that says how many bytes are left, of ``what``."""
        said = self.varint(len(self._body), f"bytes of {what}")
        if said != len(self._body) - self._at:
            raise self.fail(f"{said} bytes of {what}", f"{len(self._body) - self._at}")

    def end(self) -> None:
        """Check that nothing is left."""
        if self._at != len(self._body):
            raise self.fail(f"the end at byte {self._at}", f"{len(self._body) - self._at} more bytes")

    def byte(self, allowed: tuple[int, ...], what: str) -> int:
        """One byte out of ``allowed``."""
        value = self.take(1, what)[0]
        if value not in allowed:
            raise self.fail(f"{what} in {allowed}", str(value))
        return value

    def varint(self, limit: int, what: str) -> int:
        """An unsigned LEB128 integer in its shortest form, at most ``limit``."""
        value = shift = 0
        while True:
            byte = self.take(1, what)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if value > limit or shift > 63:
                raise self.fail(f"{what} of at most {limit}", f"{value} or more")
            if byte < 0x80:
                break
        if byte == 0 and shift > 7:
            raise self.fail(f"{what} in its shortest form", "a padded integer")
        return value

    def scale(self, what: str) -> float:
        """A little-endian fp32 that is finite and ≥ +0; −0 has no place in a canonical format."""
        value: float = struct.unpack("<f", self.take(4, what))[0]
        if not math.isfinite(value) or math.copysign(1.0, value) < 0:
            raise self.fail(f"{what}: a finite fp32 of at least 0", repr(value))
        return value


def varint(value: int) -> bytes:
    """``value`` ≥ 0 as unsigned LEB128: 7 bits a byte, least significant first, high bit = more."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
