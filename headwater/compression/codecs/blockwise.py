"""BlockwiseCodec: every value in 8 or 4 bits, in units of the largest magnitude of its block.

Block-wise absmax (Dettmers et al. 2022, arXiv 2110.02861): a = max |x| of each block of a tensor's values in
row-major order, the last block may be shorter; a value travels as the nearest of a fixed table of levels
times a. ``int8`` and ``int4`` have 255 and 15 even levels c/127 and c/7; ``nf4`` (QLoRA, arXiv 2305.14314,
appendix E) has the 16 quantiles of a normal distribution. Zero is a level of each, a and −a too (``nf4`` as
well). So no value's error is above its magnitude, and the largest of each block is exact: contractive.

``nf4``'s codes and absmax are those of bitsandbytes on the CPU, whose arithmetic this repeats: a value times
fp32(1/a) in whole blocks, divided by a in the last shorter one, and upper bounds included. It differs where
bitsandbytes' own floor of a, 1e-38, would move values.

Codes are entropy-coded where that is shorter: even levels are used unevenly, ``nf4``'s nearly evenly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from headwater.compression.byte_reader import Reader, varint
from headwater.compression.codec import Codec
from headwater.compression.codecs import symbols as coding
from headwater.compression.entropy import CHUNK, Bytes, Symbols
from headwater.compression.reader import Floats, flat_finite, open_payload
from headwater.errors import ConfigError
from headwater.protocol.messages import Payload
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec

VERSION = 1
LEAST_BLOCK, MOST_BLOCK = 16, 65_536
BLOCKS = {"int8": 256, "int4": 64, "nf4": 64}
"""Values of a block, by default."""

# fp32 values; bitsandbytes 0.43 … 0.50, functional.get_4bit_type("nf4")
NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
     -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
     0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
     0.7229568362236023, 1.0], np.float32,
)  # fmt: skip
_FLOOR = np.float32(1e-38)
"""Where bitsandbytes stops dividing by absmax."""


class BlockwiseCodec(Codec):
    """One absmax a block, one code a value.

    Args:
        levels: which table.
        block: values of a block; :data:`BLOCKS` if None. Decoding does not need it.
    """

    def __init__(self, levels: Literal["int8", "int4", "nf4"], block: int | None = None) -> None:
        block = BLOCKS[levels] if block is None else block
        if not LEAST_BLOCK <= block <= MOST_BLOCK:
            raise ConfigError(
                f"codec {levels}", expected=f"block {LEAST_BLOCK} to {MOST_BLOCK}", got=str(block)
            )
        self.id, self.block = f"{levels}.v1", block
        most = 127 if levels == "int8" else 7
        self._table: Floats = (
            NF4 if levels == "nf4" else (np.arange(-most, most + 1, dtype=np.float32) / np.float32(most))
        )
        self._even = levels != "nf4"

    def encode(self, state: AdapterState, *, key: Key) -> Payload:
        """The payload of ``state``; ``key`` is not used."""
        scales, codes = [np.zeros(0, np.float32)], [np.zeros(0, np.int32)]
        for values in flat_finite(state, self.id).values():
            absmax = _absmax(values, self.block)
            scales.append(absmax)
            spread = spread_over(absmax, values.size, self.block)
            found = self._codes(values, absmax, spread)
            codes.append(found if absmax.all() else found[spread > 0])
        head = bytes([VERSION]) + varint(self.block) + np.concatenate(scales).astype("<f4").tobytes()
        return Payload(self.id, head + coding.write(np.concatenate(codes), len(self._table)))

    def _codes(self, values: Floats, absmax: Floats, spread: Floats) -> Symbols:
        """The nearest level of every value; of any where absmax is 0."""
        divisor = np.where(spread > 0, spread, np.float32(1))
        scaled: Floats = np.divide(values, divisor, dtype=np.float32)
        if self._even:
            most = len(self._table) // 2
            codes: Symbols = np.rint(scaled * np.float32(most)).astype(np.int32)
            return codes + np.int32(most)
        whole = values.size - values.size % self.block
        inverse = np.float32(1) / np.maximum(divisor[:whole], _FLOOR)
        usual = divisor[:whole] >= _FLOOR
        scaled[:whole][usual] = (values[:whole] * inverse)[usual]
        middles: Floats = (NF4[:-1] + NF4[1:]) / np.float32(2)
        return np.searchsorted(middles, np.clip(scaled, -1, 1), side="left").astype(np.int32)

    def decode(self, payload: Payload, spec: StateSpec) -> AdapterState:
        """The state, or ``DecodeError``: every block that has a scale has a value that reaches it."""
        reader = open_payload(payload, self, spec)
        reader.byte((VERSION,), "version")
        block = reader.varint(MOST_BLOCK, "block")
        if block < LEAST_BLOCK:
            raise reader.fail(f"a block of at least {LEAST_BLOCK}", str(block))
        scales = [read_scales(reader, -(-t.numel // block)) for t in spec]
        count = sum(coded(absmax, t.numel, block) for t, absmax in zip(spec, scales, strict=True))
        codes, at, tensors = coding.read(reader, count, len(self._table)), 0, {}
        for t, absmax in zip(spec, scales, strict=True):
            found = np.empty(t.numel, np.float32)
            for blocks, values, part, spread in units(absmax, t.numel, block, self._table, codes[at:]):
                if (_absmax(part, block) != (absmax[blocks] > 0)).any():
                    expected = f"tensor {t.name}: the largest value of a block at its scale"
                    raise reader.fail(expected, "none there")
                np.multiply(part, spread, out=found[values])
            at += coded(absmax, t.numel, block)
            tensors[t.name] = torch.from_numpy(found).reshape(t.shape)
        return AdapterState(spec, tensors)

    def max_bytes(self, spec: StateSpec) -> int:
        """The smallest blocks, codes packed."""
        scales = 4 * sum(-(-t.numel // LEAST_BLOCK) for t in spec)
        return 1 + len(varint(MOST_BLOCK)) + scales + coding.most_bytes(spec.numel, len(self._table))


def _absmax(values: Floats, block: int) -> Floats:
    """The largest magnitude of each block."""
    if not values.size:
        return np.zeros(0, np.float32)
    found: Floats = np.maximum.reduceat(np.abs(values), np.arange(0, values.size, block))
    return found


def spread_over(absmax: Floats, count: int, block: int) -> Floats:
    """Each value's absmax."""
    return np.repeat(absmax, block)[:count]


def coded(absmax: Floats, count: int, block: int) -> int:
    """How many of a tensor's ``count`` values are in blocks whose scale is not 0."""
    short = absmax.size * block - count if absmax.size and absmax[-1] else 0
    return int(np.count_nonzero(absmax)) * block - short


def units(
    absmax: Floats, count: int, block: int, levels: Floats, codes: Bytes
) -> Iterator[tuple[slice, slice, Floats, Floats]]:
    """A tensor's values in units of their scales, some whole blocks at a time.

    Args:
        absmax: the blocks' scales; of those that are 0 no value has a code.
        count: values of the tensor.
        block: values of a block.
        levels: what codes stand for.
        codes: of this tensor, and perhaps more.

    Yields:
        Which blocks, which values, these, and each value's scale.
    """
    step, at = max(1, CHUNK // block), 0
    for first in range(0, absmax.size, step):
        blocks, values = slice(first, first + step), slice(first * block, (first + step) * block)
        spread = spread_over(absmax[blocks], count - first * block, block)
        some = spread > 0
        found = np.zeros(spread.size, np.float32)
        used = int(np.count_nonzero(some))
        found[some] = levels[codes[at : at + used]]
        at += used
        yield blocks, values, found, spread


def read_scales(reader: Reader, count: int) -> Floats:
    """``count`` scales: finite, ≥ 0, not −0."""
    found: npt.NDArray[np.float32] = np.frombuffer(reader.take(4 * count, "scales"), "<f4").astype(np.float32)
    if not np.isfinite(found).all() or np.signbit(found).any():
        raise reader.fail("scales: finite fp32 of at least 0", "others")
    return found
