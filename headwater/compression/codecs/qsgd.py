"""QsgdCodec: every value rounded at random to one of few levels, right on average.

QSGD (Alistarh et al. 2017, arXiv 1610.02132, eq. 3): of a bucket v, value v_j becomes ‖v‖₂·sgn(v_j)·ξ_j.
With l = ⌊s·|v_j|/‖v‖₂⌋, ξ_j is (l + 1)/s with probability s·|v_j|/‖v‖₂ − l and l/s otherwise. So E[C(v)] = v,
and E‖C(v) − v‖² ≤ min(d/s², √d/s)·‖v‖² for a bucket of d. The norm travels as fp32, rounded up so that no
value is above it; levels are entropy-coded instead of Elias'. The draws are Philox' of the encoding's key.
"""

from __future__ import annotations

import numpy as np
import torch

from headwater.compression.byte_reader import varint
from headwater.compression.codec import Codec
from headwater.compression.codecs import symbols as coding
from headwater.compression.codecs.blockwise import (
    LEAST_BLOCK,
    MOST_BLOCK,
    coded,
    read_scales,
    spread_over,
    units,
)
from headwater.compression.reader import Floats, diverged, flat_finite, open_payload
from headwater.errors import ConfigError
from headwater.protocol.messages import Payload
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec

VERSION = 1
MOST_LEVELS = 127


class QsgdCodec(Codec):
    """One norm a bucket, one level of −s … s a value.

    Args:
        levels: s.
        bucket: values of a bucket. Decoding needs neither.
    """

    id = "qsgd.v1"

    def __init__(self, levels: int = 7, bucket: int = 512) -> None:
        if not (1 <= levels <= MOST_LEVELS and LEAST_BLOCK <= bucket <= MOST_BLOCK):
            expected = f"1 to {MOST_LEVELS} levels, a bucket of {LEAST_BLOCK} to {MOST_BLOCK}"
            raise ConfigError("codec qsgd", expected=expected, got=f"{levels}, {bucket}")
        self._levels, self._bucket = levels, bucket

    def encode(self, state: AdapterState, *, key: Key) -> Payload:
        """The payload of ``state``, rounded by the draws of ``key``."""
        s, draws = self._levels, key.child("qsgd").numpy()
        norms, codes = [np.zeros(0, np.float32)], [np.zeros(0, np.int32)]
        for values in flat_finite(state, self.id).values():
            found = _norms(values, self._bucket)
            spread = spread_over(found, values.size, self._bucket)
            some = spread > 0
            at = s * np.abs(values[some].astype(np.float64)) / spread[some]
            low = np.floor(at)
            level = (low + (draws.random(values.size)[some] < at - low)).astype(np.int32)
            norms.append(found)
            codes.append(np.where(values[some] < 0, -level, level) + np.int32(s))
        head = bytes([VERSION, s]) + varint(self._bucket) + np.concatenate(norms).astype("<f4").tobytes()
        return Payload(self.id, head + coding.write(np.concatenate(codes), 2 * s + 1))

    def decode(self, payload: Payload, spec: StateSpec) -> AdapterState:
        """The state, all values finite, or ``DecodeError``."""
        reader = open_payload(payload, self, spec)
        reader.byte((VERSION,), "version")
        s = reader.byte(tuple(range(1, MOST_LEVELS + 1)), "levels")
        bucket = reader.varint(MOST_BLOCK, "bucket")
        if bucket < LEAST_BLOCK:
            raise reader.fail(f"a bucket of at least {LEAST_BLOCK}", str(bucket))
        norms = [read_scales(reader, -(-t.numel // bucket)) for t in spec]
        count = sum(coded(found, t.numel, bucket) for t, found in zip(spec, norms, strict=True))
        codes, at, tensors = coding.read(reader, count, 2 * s + 1), 0, {}
        table: Floats = np.arange(-s, s + 1, dtype=np.float32) / np.float32(s)
        for t, norm in zip(spec, norms, strict=True):
            found = np.empty(t.numel, np.float32)
            for _, values, part, spread in units(norm, t.numel, bucket, table, codes[at:]):
                np.multiply(part, spread, out=found[values])
            at += coded(norm, t.numel, bucket)
            tensors[t.name] = torch.from_numpy(found).reshape(t.shape)
        return AdapterState(spec, tensors)

    def max_bytes(self, spec: StateSpec) -> int:
        """The smallest buckets, the most levels."""
        norms = 4 * sum(-(-t.numel // LEAST_BLOCK) for t in spec)
        return 2 + len(varint(MOST_BLOCK)) + norms + coding.most_bytes(spec.numel, 2 * MOST_LEVELS + 1)


def _norms(values: Floats, bucket: int) -> Floats:
    """The L2 norm of each bucket: the least fp32 that is not below its fp64 value."""
    if not values.size:
        return np.zeros(0, np.float32)
    starts = np.arange(0, values.size, bucket)
    exact = np.sqrt(np.add.reduceat(np.square(values.astype(np.float64)), starts))
    with np.errstate(over="ignore"):
        norms: Floats = exact.astype(np.float32)
        norms = np.where(norms < exact, np.nextafter(norms, np.float32(np.inf)), norms)
    norms = np.maximum(norms, np.maximum.reduceat(np.abs(values), starts))
    if not np.isfinite(norms).all():
        raise diverged("buckets whose L2 norm is a finite fp32", f"values up to {np.abs(values).max():.4g}")
    return norms
