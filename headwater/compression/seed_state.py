"""``seeds.v1``: a global adapter as the coefficients of its seeds that changed: :func:`encode_sums`.

Goes down where every client sends scalars (:class:`~headwater.seeds.seeded_state.SeededState`). Full form:
since all were zero. Incremental form: since a version that the receiver has. Which seeds changed is a row
of bits of known count, the changes take a curve (:mod:`.t_tables`) for their leading bits; the rest is as
good as random and goes as it is.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from headwater.compression import t_tables
from headwater.compression.byte_reader import RESEND, Reader, varint
from headwater.compression.entropy import Block, pack, unpack
from headwater.config.traits import Distribution
from headwater.errors import ConfigError, DecodeError
from headwater.protocol.failures import FailureCode, coded
from headwater.protocol.messages import Payload
from headwater.seeds.directions import Integers

SEEDS = "seeds.v1"
MAX_SUMS = 2**22
"""More coefficients do not travel: the dense state is smaller then, or soon will be."""
VERSION = 1

_DISTRIBUTIONS: tuple[Distribution, ...] = ("rademacher", "gaussian")
_MAX_SHIFT = 47
_LEADING = 8
"""Bits of a mean change that the curve describes."""
_PART = 2**14
"""Values whose bits are laid out at a time; their bits fill whole bytes."""


@dataclass(frozen=True, slots=True)
class SeedsHeader:
    """What a body says of itself.

    Args:
        distribution: of the directions.
        unit_bits: coefficients are integers times 2^-unit_bits.
        count: coefficients, of seeds 0 … count − 1.
        version: what the changes are relative to; 0 is all zero.
        base: :func:`digest` of the coefficients at that version; empty for 0.
    """

    distribution: Distribution
    unit_bits: int
    count: int
    version: int
    base: bytes


def encode_sums(
    sums: Integers, since: Integers | None, *, version: int, distribution: Distribution, unit_bits: int
) -> Payload:
    """The payload that makes ``sums`` out of ``since``.

    Args:
        sums: int64 [n]: the coefficients of seeds 0 … n − 1.
        since: int64 [≤ n]: those that the receiver has; None for none, which is all zero.
        version: whose ``since`` is, at least 1; 0 with None.
        distribution: of the directions.
        unit_bits: coefficients are integers times 2^-unit_bits.

    Raises:
        ConfigError: more than :data:`MAX_SUMS`, changes of 2^55 in the mean, or arguments that disagree.
    """
    n = len(sums)
    if n > MAX_SUMS or (since is None) != (version == 0) or (since is not None and len(since) > n):
        raise ConfigError(
            "seed coefficients",
            expected=f"at most {MAX_SUMS}, no fewer than at the version before, which is 0 without any",
            got=f"{n} since version {version} of {0 if since is None else len(since)}",
        )
    change = sums if since is None else sums - _padded(since, n)
    head = bytearray([VERSION, _DISTRIBUTIONS.index(distribution)]) + struct.pack("<b", unit_bits)
    head += varint(n) + varint(version) + (b"" if since is None else digest(since))
    touched = np.flatnonzero(change)
    head += varint(len(touched))
    if not len(touched):
        return Payload(SEEDS, bytes(head))
    values = change[touched]
    shift = _shift(values)
    symbols, table = t_tables.choose_table(values >> shift)
    head += bytes([shift]) + table.header() + _low_bits(values, shift)
    row = (change != 0).astype(np.int32)
    return Payload(SEEDS, bytes(head) + pack([(row, _row(n, len(touched))), (symbols, table)]))


def decode_sums(payload: Payload, known: Callable[[int], Integers | None], count_limit: int) -> Integers:
    """The coefficients in ``payload``: int64 [n].

    Args:
        payload: from the server.
        known: the coefficients at a version, if the receiver has them.
        count_limit: n may not be more.

    Raises:
        DecodeError: not what :func:`encode_sums` writes; with the code NEEDS_FULL_STATE if the base version
            is not there or was another one.
    """
    reader, header = _open(payload, count_limit)
    n, base = header.count, None
    if header.version:
        base = known(header.version)
        if base is None or len(base) > n or digest(base) != header.base:
            error = DecodeError(
                "seed coefficients",
                expected=f"to have those of version {header.version} with sha256 {header.base.hex()}",
                got="none" if base is None else f"others with sha256 {digest(base).hex()}",
                hint="The server sends all coefficients the next time.",
            )
            raise coded(error, FailureCode.NEEDS_FULL_STATE, header.version)
    touched = reader.varint(n, "number of changes")
    change = np.zeros(n, np.int64)
    if touched:
        shift = reader.byte(tuple(range(_MAX_SHIFT + 1)), "shift")
        table = t_tables.read_table(reader, touched)
        low = reader.take(-(-touched * shift // 8), "low bits")
        row, symbols = unpack(reader, [_row(n, touched), table])
        change[row != 0] = (table.values(symbols) << shift) + _from_low_bits(low, touched, shift)
    reader.end()
    sums = change if base is None else _padded(base, n) + change
    try:
        again = encode_sums(
            sums, base, version=header.version, distribution=header.distribution, unit_bits=header.unit_bits
        )
    except ConfigError as error:
        raise reader.fail("changes that can be encoded", str(error.got)) from None
    if again.body != payload.body:
        raise reader.fail("the one encoding of these coefficients", "another one")
    return sums


def read_header(payload: Payload, count_limit: int) -> SeedsHeader:
    """What ``payload`` says of itself.

    Raises:
        DecodeError: another codec, too long, or fields out of range.
    """
    return _open(payload, count_limit)[1]


def sums_max_bytes(count: int) -> int:
    """No body of ``count`` coefficients is longer: 1 + 16 + 47 bits each, and the header."""
    return 8 * count + 48


def digest(sums: Integers) -> bytes:
    """8 bytes that name coefficients: SHA-256 over them as little-endian int64."""
    return hashlib.sha256(sums.astype("<i8", copy=False).tobytes()).digest()[:8]


def _open(payload: Payload, count_limit: int) -> tuple[Reader, SeedsHeader]:
    if payload.codec != SEEDS:
        raise DecodeError("payload", expected=f"codec {SEEDS}", got=repr(payload.codec)[:80], hint=RESEND)
    reader, limit = Reader(payload.body, f"{SEEDS} payload"), sums_max_bytes(count_limit)
    if len(payload.body) > limit:
        raise reader.fail(f"at most {limit} bytes", f"{len(payload.body)}")
    reader.byte((VERSION,), "version")
    distribution = _DISTRIBUTIONS[reader.byte((0, 1), "distribution")]
    (unit_bits,) = struct.unpack("<b", reader.take(1, "unit"))
    count = reader.varint(min(count_limit, MAX_SUMS), "number of coefficients")
    version = reader.varint(2**32, "base version")
    base = reader.take(8, "hash of the base") if version else b""
    return reader, SeedsHeader(distribution, unit_bits, count, version, base)


def _padded(sums: Integers, count: int) -> Integers:
    return np.concatenate([sums, np.zeros(count - len(sums), np.int64)])


def _shift(values: Integers) -> int:
    """How many bits of each value go as they are: those far below the mean magnitude. Same everywhere."""
    magnitudes = np.abs(values)
    total = (int((magnitudes >> 24).sum()) << 24) + int((magnitudes & 0xFFFFFF).sum())  # cannot overflow
    mean = total // len(values)
    shift = max(0, mean.bit_length() - _LEADING, t_tables.width(values) - t_tables.MAX_BITS)
    if shift > _MAX_SHIFT:
        raise ConfigError(
            "seed coefficients",
            expected=f"changes below 2^{_MAX_SHIFT + _LEADING} in the mean",
            got=f"{mean:.3g}",
        )
    return shift


def _low_bits(values: Integers, shift: int) -> bytes:
    """The last ``shift`` bits of each value, most significant first, zero bits at the end."""
    places = np.arange(shift - 1, -1, -1)
    parts = (values[at : at + _PART, None] >> places & 1 for at in range(0, len(values), _PART))
    return b"".join(np.packbits(part.astype(np.uint8).reshape(-1)).tobytes() for part in parts)


def _from_low_bits(data: bytes, count: int, shift: int) -> Integers:
    low, places = np.zeros(count, np.int64), 1 << np.arange(shift - 1, -1, -1, dtype=np.int64)
    for at in range(0, count, _PART):
        size = min(_PART, count - at)
        bits = np.unpackbits(
            np.frombuffer(data, np.uint8, offset=at * shift // 8) if shift else np.zeros(0, np.uint8),
            count=size * shift,
        )
        low[at : at + size] = bits.reshape(size, shift).astype(np.int64) @ places
    return low


def _row(count: int, touched: int) -> Block:
    return Block((count - touched, touched))
