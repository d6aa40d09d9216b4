"""LogQuantCodec: non-negative statistics (a diagonal Fisher) in 8 bits on a logarithmic grid.

A diagonal Fisher spans many orders of magnitude, and Fisher merging divides by its sum coordinate by
coordinate: relative, not absolute, precision is what counts. Hence a logarithmic grid, six levels an
octave, that hangs from each tensor's maximum. A fixed grid below the maximum (rather than one
stretched between minimum and maximum) needs one float a tensor, has one error bound for all inputs,
and maps its own levels to themselves.
"""

from __future__ import annotations

import math
import struct

import numpy as np
import numpy.typing as npt
import torch

from headwater.compression.byte_reader import Reader, varint
from headwater.compression.codec import Codec
from headwater.compression.entropy import Block, Bytes, look_up, pack, unpack_bytes
from headwater.compression.reader import Floats, flat_finite, open_payload
from headwater.errors import TrainingError
from headwater.protocol.messages import Payload
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec

VERSION = 1
PLAIN, CODED = 0, 1

RELATIVE_ERROR = 2 ** (1 / 12) - 1
"""Bound (5.95 %) for values down to FLOOR times the tensor's maximum, that are normal fp32 numbers."""

FLOOR = 2 ** (-509 / 12)
"""Values below FLOOR·max (1.7e-13 of it) become 0."""

# 2^(−i/12), spelled out: exp2 need not round the same on every platform, literals and ldexp do.
_TWELFTHS = (
    1.0, 0.9438743126816935, 0.8908987181403393, 0.8408964152537145, 0.7937005259840998,
    0.7491535384383408, 0.7071067811865476, 0.6674199270850172, 0.6299605249474366, 0.5946035575013605,
    0.5612310241546865, 0.5297315471796477,
)  # fmt: skip


def _power(twelfths: int) -> float:
    octaves, rest = divmod(twelfths, 12)
    return math.ldexp(_TWELFTHS[rest], -octaves)


# level of code c ≥ 1 below the maximum, and the geometric middle between codes c − 1 and c
_LEVELS = np.array([0.0] + [_power(2 * (255 - code)) for code in range(1, 256)])
_EDGES = np.array([_power(2 * (255 - code) + 1) for code in range(1, 256)])

Codes = npt.NDArray[np.int32]


class LogQuantCodec(Codec):
    """Per tensor: its maximum as fp32, and a code a value; code 0 is zero, code 255 the maximum."""

    id = "logquant8.v1"

    def encode(self, state: AdapterState, *, key: Key) -> Payload:
        """The payload of ``state``; ``key`` is not used.

        Raises:
            TrainingError: a value is negative, NaN or infinite.
        """
        scales, codes = bytearray(), [np.zeros(0, dtype=np.int32)]
        for name, values in flat_finite(state, self.id).items():
            if values.size and values.min() < 0:
                raise TrainingError(
                    f"statistic {name}",
                    expected=f"values of at least 0 to encode with {self.id}",
                    got=f"{values.min():.4g}",
                    hint="This codec is for squares, such as a diagonal Fisher; deltas need another.",
                )
            top = float(values.max()) if values.any() else 0.0  # never −0
            scales += struct.pack("<f", top)
            if top:
                codes.append(np.searchsorted(_EDGES * top, values, side="right").astype(np.int32))
        symbols = np.concatenate(codes)
        plain = symbols.astype(np.uint8).tobytes()
        coded = _code(symbols)
        mode, data = (CODED, coded) if len(coded) < len(plain) else (PLAIN, plain)
        return Payload(self.id, bytes([VERSION, mode]) + bytes(scales) + data)

    def decode(self, payload: Payload, spec: StateSpec) -> AdapterState:
        """The state, all values finite and ≥ 0, or ``DecodeError``."""
        reader = open_payload(payload, self, spec)
        reader.byte((VERSION,), "version")
        mode = reader.byte((PLAIN, CODED), "mode")
        tops = {t.name: reader.scale(f"maximum of {t.name}") for t in spec}
        present = [t for t in spec if tops[t.name]]
        total = sum(t.numel for t in present)
        if mode == CODED:
            symbols = _decode(reader, total)
        else:
            symbols = np.frombuffer(reader.take(total, "codes"), np.uint8)
            reader.end()
        tensors = {t.name: torch.zeros(t.shape) for t in spec if not tops[t.name]}
        at = 0
        for t in present:
            tensors[t.name] = _values(symbols[at : at + t.numel], tops[t.name], t, reader)
            at += t.numel
        return AdapterState(spec, tensors)

    def max_bytes(self, spec: StateSpec) -> int:
        """The plain form: the coded one is only sent when it is shorter."""
        return 2 + 4 * len(spec) + spec.numel


def _values(codes: Bytes, top: float, tensor: TensorSpec, reader: Reader) -> torch.Tensor:
    if not (codes == 255).any():
        raise reader.fail(f"tensor {tensor.name}: its maximum (code 255) somewhere", "nowhere")
    table: Floats = (_LEVELS * top).astype(np.float32)
    return torch.from_numpy(look_up(table, codes)).reshape(tensor.shape)


def _code(codes: Codes) -> bytes:
    """First used code ≥ 1, counts of code 0 and of the codes from there to 255, one ANS block."""
    if not codes.size:
        return b"\0"  # longer than the plain form, so never sent
    counts = np.bincount(codes, minlength=256).tolist()
    first = next(code for code in range(1, 256) if counts[code])
    held = Block((counts[0], *counts[first:]))
    symbols = np.where(codes == 0, 0, codes - first + 1).astype(np.int32)
    return bytes([first]) + b"".join(varint(count) for count in held.counts) + pack([(symbols, held)])


def _decode(reader: Reader, total: int) -> Bytes:
    """The inverse of :func:`_code` for ``total`` codes."""
    first = reader.byte(tuple(range(1, 256)), "first code")
    counts, left = [], total
    for _ in range(257 - first):
        counts.append(reader.varint(left, "count of a code"))
        left -= counts[-1]
    if left or not counts[1]:
        raise reader.fail(f"counts of {total} codes that begin with a used one", f"{left} uncounted")
    symbols = unpack_bytes(reader, [Block(tuple(counts))])[0]
    symbols[symbols > 0] += np.uint8(first - 1)
    return symbols
