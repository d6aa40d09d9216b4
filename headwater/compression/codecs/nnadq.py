"""NnadqCodec: as many levels for each tensor as its range is worth, and the least changed blocks left out.

FedOBD (Chen et al. 2022, arXiv 2208.05174). *Adaptive deterministic quantisation*: of a tensor with range R,
s = ⌈max(1, √(R·b·ln 4/σ))⌉ with b = 32 bits of an element and σ the trade-off; ⌈log2 s⌉ bits, so 2^bits − 1
steps of R/(2^bits − 1). *Opportunistic block dropout*: of the blocks (here a pair of factors, or a tensor)
those with the smallest mean magnitude are left out, so that at most (1 − λ) of all values travel, or one
block.

Ours differs in three points. At least 2 bits: NVFlare's ``ada_quant.py`` (f3b7c1b) has 0 levels for ranges up
to 2.25e-4, where LoRA's changes are, and divides by them. The range holds 0 and 0 is a level, so that zeros
stay zeros and no value's error is above its magnitude. And codes are entropy-coded, not bzip2's.
"""

from __future__ import annotations

import math
import struct

import numpy as np
import torch

from headwater.compression.byte_reader import Reader, varint
from headwater.compression.codec import Codec
from headwater.compression.codecs import symbols as coding
from headwater.compression.entropy import Symbols, look_up
from headwater.compression.reader import Floats, diverged, flat_finite, open_payload
from headwater.errors import ConfigError
from headwater.protocol.messages import Payload
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec

VERSION = 1
LEAST_BITS, MOST_BITS = 2, 8
_LN4 = 1.3862943611198906
_MOST_WORTH = 4.0**MOST_BITS
"""s², from which on there are as many levels as bits allow."""
_SMALLEST = np.float32(2.0**-149)


class NnadqCodec(Codec):
    """For each tensor its bits, step, zero point and codes; nothing but a 0 for what is left out.

    Args:
        sigma: σ > 0: the smaller, the more levels.
        dropout: λ, 0 ≤ λ < 1. Decoding needs neither.
    """

    id = "nnadq.v1"

    def __init__(self, sigma: float = 0.01, dropout: float = 0.0) -> None:
        if not (0 < sigma < math.inf and 0 <= dropout < 1):
            raise ConfigError(
                "codec nnadq", expected="sigma > 0, 0 <= dropout < 1", got=f"{sigma}, {dropout}"
            )
        self._sigma, self._dropout = sigma, dropout

    def encode(self, state: AdapterState, *, key: Key) -> Payload:
        """The payload of ``state``; ``key`` is not used."""
        flat = flat_finite(state, self.id)
        sent = self._sent(state.spec, flat)
        body = bytearray([VERSION])
        for name, values in flat.items():
            body += self._tensor(values) if name in sent and values.any() else b"\0"
        return Payload(self.id, bytes(body))

    def _sent(self, spec: StateSpec, flat: dict[str, Floats]) -> set[str]:
        """The tensors of the blocks that are not left out: the largest mean magnitudes, ties by name."""
        if not self._dropout:
            return set(flat)
        blocks: dict[str, list[str]] = {}
        for t in spec:
            blocks.setdefault(t.pair or t.name, []).append(t.name)
        sizes = {block: sum(flat[n].size for n in names) for block, names in blocks.items()}
        changes = {
            block: math.fsum(float(np.abs(flat[n]).sum(dtype=np.float64)) for n in names)
            / max(1, sizes[block])
            for block, names in blocks.items()
        }
        room, sent = (1 - self._dropout) * spec.numel, set[str]()
        for place, block in enumerate(sorted(blocks, key=lambda b: (-changes[b], b))):
            room -= sizes[block]
            if place and room < 0:
                break
            sent.update(blocks[block])
        return sent

    def _tensor(self, values: Floats) -> bytes:
        """Of a tensor that is not all 0."""
        low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
        worth = min((high - low) * 32 * _LN4 / self._sigma, _MOST_WORTH)  # infinite for the smallest σ
        s = math.ceil(max(1.0, math.sqrt(worth)))
        bits = min(max((s - 1).bit_length(), LEAST_BITS), MOST_BITS)
        most = (1 << bits) - 1
        step = max(np.float32((high - low) / most), _SMALLEST)
        zero = min(
            round(-low / float(step)), most
        )  # a step may be rounded down by a third, where it is subnormal
        codes: Symbols = (
            (np.rint(values.astype(np.float64) / float(step)) + zero).clip(0, most).astype(np.int32)
        )
        if not np.isfinite(_levels(step, zero, most)).all():
            raise diverged(f"a range of which {self.id} has levels", f"{low:.4g} to {high:.4g}")
        coded = coding.write(codes, most + 1)
        return bytes([bits]) + struct.pack("<f", step) + bytes([zero]) + varint(len(coded)) + coded

    def decode(self, payload: Payload, spec: StateSpec) -> AdapterState:
        """The state, all values finite, or ``DecodeError``."""
        reader = open_payload(payload, self, spec)
        reader.byte((VERSION,), "version")
        state = AdapterState(spec, {t.name: self._read(reader, t) for t in spec})
        reader.end()
        return state

    def _read(self, reader: Reader, t: TensorSpec) -> torch.Tensor:
        bits = reader.byte((0, *range(LEAST_BITS, MOST_BITS + 1)), f"bits of {t.name}")
        if not bits:
            return torch.zeros(t.shape)
        most, step = (1 << bits) - 1, np.float32(reader.scale(f"step of {t.name}"))
        if not step:
            raise reader.fail(f"tensor {t.name}: a step above 0", "0")
        levels = _levels(step, reader.byte(tuple(range(most + 1)), f"zero of {t.name}"), most)
        if not np.isfinite(levels).all():
            raise reader.fail(f"tensor {t.name}: finite levels", "others")
        length = reader.varint(coding.most_bytes(t.numel, most + 1), f"bytes of {t.name}")
        part = Reader(reader.take(length, f"codes of {t.name}"), reader.who, reader.hint)
        return torch.from_numpy(look_up(levels, coding.read(part, t.numel, most + 1))).reshape(t.shape)

    def max_bytes(self, spec: StateSpec) -> int:
        """Every tensor in 8 bits."""
        sizes = [coding.most_bytes(t.numel, 1 << MOST_BITS) for t in spec]
        return 1 + sum(6 + len(varint(size)) + size for size in sizes)


def _levels(step: np.float32, zero: int, most: int) -> Floats:
    """What the codes stand for."""
    with np.errstate(over="ignore"):
        return np.arange(-zero, most - zero + 1).astype(np.float32) * step
