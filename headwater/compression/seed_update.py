"""``scalars.v1``: an update as coefficients of seeds, in a few hundred bytes: :func:`encode_scalars`.

Seeds and coefficients share one ANS stream. The seeds are a multiset, so it is sent as one, not as a list:
a row of n stars (entries) and count − 1 bars (on to the next seed), of which both sides know how many there
are. That costs log2 of the number of multisets, which no code for uniform seeds can beat, and less than one
byte more. Coefficients take the cheapest curve (:mod:`headwater.compression.t_tables`).
"""

from __future__ import annotations

import math

import numpy as np

from headwater.compression import t_tables
from headwater.compression.byte_reader import RESEND, Reader, varint
from headwater.compression.entropy import Block, Symbols, Table, pack, unpack
from headwater.errors import DecodeError
from headwater.protocol.messages import Payload
from headwater.seeds.coefficients import SeedCoefficients, SeedPlan

SCALARS = "scalars.v1"
VERSION = 1
_LARGEST = 32767


def encode_scalars(scalars: SeedCoefficients) -> Payload:
    """The payload of ``scalars``. Entries of one seed may be in any order: they are sorted.

    Raises:
        UpdateRejected: they are not scalars of their own plan.
    """
    plan = scalars.plan
    scalars.require(plan, "encoding")
    order = np.lexsort((scalars.coefficients, scalars.seeds))
    seeds, coefficients = scalars.seeds[order] - plan.first, scalars.coefficients[order]
    n = len(seeds)
    head = bytes([VERSION]) + (b"" if plan.implied else varint(n))
    if not n:
        return Payload(SCALARS, head)
    symbols, table = t_tables.choose_table(coefficients)
    blocks: list[tuple[Symbols, Table]] = [(symbols, table)]
    if not plan.implied:
        row = np.zeros(plan.count - 1 + n, np.int32)
        row[seeds + np.arange(n)] = 1
        blocks.insert(0, (row, _row(plan, n)))
    return Payload(SCALARS, head + table.header() + pack(blocks))


def decode_scalars(payload: Payload, plan: SeedPlan) -> SeedCoefficients:
    """The scalars of ``plan`` in ``payload``, whatever the bytes claim. Memory: as the plan says.

    Raises:
        DecodeError: another codec, too long, out of the plan's bounds, or not the one encoding of its value.
    """
    if payload.codec != SCALARS:
        raise DecodeError("payload", expected=f"codec {SCALARS}", got=repr(payload.codec)[:80], hint=RESEND)
    reader, limit = Reader(payload.body, f"{SCALARS} payload"), scalars_max_bytes(plan)
    if len(payload.body) > limit:
        raise reader.fail(f"at most {limit} bytes", f"{len(payload.body)}")
    reader.byte((VERSION,), "version")
    n = plan.count if plan.implied else reader.varint(plan.entries, "number of coefficients")
    seeds, coefficients = np.zeros(0, np.int64), np.zeros(0, np.int64)
    if n:
        table = t_tables.read_table(reader, n)
        found = unpack(reader, [table] if plan.implied else [_row(plan, n), table])
        coefficients = table.values(found[-1])
        seeds = np.arange(n) if plan.implied else np.flatnonzero(found[0]) - np.arange(n)
    reader.end()
    if n and int(np.abs(coefficients).max()) > _LARGEST:
        raise reader.fail(f"coefficients within ±{_LARGEST}", "a larger one")
    scalars = SeedCoefficients(plan, plan.first + seeds, coefficients)
    if encode_scalars(scalars).body != payload.body:
        raise reader.fail("the one encoding of these scalars", "another one")
    return scalars


def scalars_max_bytes(plan: SeedPlan) -> int:
    """No body for ``plan`` is longer: 16 bits a coefficient, and the entropy of the seeds."""
    n, bars = plan.entries, plan.count - 1
    bits = 16.0 * n
    if not plan.implied:
        bits += sum(k * math.log2((n + bars) / k) for k in (n, bars) if k)
    return math.ceil(bits * 1.001 / 8) + 24


def _row(plan: SeedPlan, n: int) -> Block:
    return Block((plan.count - 1, n))
