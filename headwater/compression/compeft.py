"""CompeftCodec: sparse ternary values with one scale per tensor, entropy-coded: ``compeft.v1``.

Yadav, Choshen, Raffel, Bansal 2023, *ComPEFT* (arXiv 2311.13171): keep the top k of |τ|, send only
signs and one scale. Ours differs in four points, each measured or argued in ``docs/reference/codecs.md``:
density and scale are per tensor (heads move several times as far as A and B of LoRA), the default scale is
the mean kept magnitude (least squares; STC's choice, arXiv 1903.02891), the coder is ANS instead of
Golomb, and the scale is fp32 (fp16 underflows on LoRA deltas).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from headwater.compression.byte_reader import Reader, varint
from headwater.compression.codec import Codec
from headwater.compression.compeft_selection import CompeftSelection, Sent, sent_state
from headwater.compression.entropy import Block, Bytes, Symbols, look_up, pack, unpack_bytes
from headwater.compression.reader import flat_finite, open_payload
from headwater.compression.ternary import PLUS, ZERO, kept
from headwater.protocol.messages import Payload
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec

VERSION = 1
SMALL = 2048
"""Tensors with fewer values share one block: two counts each would cost more than they save."""


class CompeftCodec(Codec):
    """ComPEFT per tensor. Decoding needs neither density nor alpha.

    A tensor that already is what this codec sends (values 0 and ±s, few enough of them) is sent
    exactly: encoding is a projection. An all-zero tensor stays all zero.

    Args:
        density, alpha: see :class:`headwater.compression.compeft_selection.CompeftSelection`.
    """

    id = "compeft.v1"

    def __init__(self, density: float = 0.05, alpha: float | None = None) -> None:
        self.density, self.alpha = density, alpha
        self._selection = CompeftSelection(density, alpha)

    def encode(self, state: AdapterState, *, key: Key) -> Payload:
        """The payload of ``state``; ``key`` is not used."""
        return self._encode(state)[0]

    def round_trip(self, state: AdapterState, *, key: Key) -> tuple[Payload, AdapterState]:
        """The payload of ``state``, and its values made of the symbols that were coded."""
        payload, sent = self._encode(state)
        return payload, sent_state(state.spec, sent)

    def _encode(self, state: AdapterState) -> tuple[Payload, dict[str, Sent]]:
        """The payload, and what it says of each tensor."""
        flat = flat_finite(state, self.id)
        head = bytearray([VERSION])
        blocks: list[tuple[Symbols, Block]] = []
        sent: dict[str, Sent] = {}
        for group in groups(state.spec):
            symbols = np.zeros(sum(t.numel for t in group), np.int32)
            end = kept_here = minus = 0
            for t in group:
                part = sent[t.name] = self._selection.of(flat[t.name])
                symbols[end : end + t.numel][part.places] = part.minus + np.int32(PLUS)
                end += t.numel
                kept_here += part.places.size
                minus += int(np.count_nonzero(part.minus))
            head += varint(kept_here - minus) + varint(minus)
            if kept_here:
                head += b"".join(struct.pack("<f", sent[t.name].scale) for t in group)
                blocks.append((symbols, Block((end - kept_here, kept_here - minus, minus))))
        return Payload(self.id, bytes(head) + pack(blocks)), sent

    def decode(self, payload: Payload, spec: StateSpec) -> AdapterState:
        """The state; every body but a canonical one for ``spec`` is refused."""
        reader = open_payload(payload, self, spec)
        reader.byte((VERSION,), "version")
        held: list[tuple[tuple[TensorSpec, ...], list[float], Block]] = []
        for group in groups(spec):
            numel = sum(t.numel for t in group)
            plus = reader.varint(numel, "positive count")
            minus = reader.varint(numel - plus, "negative count")
            if plus or minus:
                scales = [reader.scale(f"scale of {t.name}") for t in group]
                held.append((group, scales, Block((numel - plus - minus, plus, minus))))
        decoded = unpack_bytes(reader, [block for _, _, block in held])
        if 4 * sum(block.length - block.counts[ZERO] for _, _, block in held) > spec.numel:
            tensors = {}
            for t, scale, part in _each(held, decoded, reader):
                levels = np.array([0.0, scale, -scale], np.float32)
                tensors[t.name] = torch.from_numpy(look_up(levels, part)).reshape(t.shape)
            rest = {t.name: torch.zeros(t.shape) for t in spec if t.name not in tensors}
            return AdapterState(spec, tensors | rest)
        sent: dict[str, Sent] = {}
        for t, scale, part in _each(held, decoded, reader):
            places = np.flatnonzero(part != ZERO)
            sent[t.name] = Sent(places, part[places] - np.uint8(PLUS), scale)
        return sent_state(spec, sent)

    def max_bytes(self, spec: StateSpec) -> int:
        """Headers, and 1.6 bits a value (log2 3 and ANS rounding) plus the coder's last state."""
        counts = sum(2 * len(varint(sum(t.numel for t in group))) for group in groups(spec))
        return 1 + counts + 4 * len(spec) + -(-spec.numel // 5) + 12

    def most_encoded(self, spec: StateSpec) -> int:
        """At this density, signs in equal parts: the worst case.

        A block of N symbols, K of them not zero, codes in at most z·log2(N/z) + K·log2(2N/K) bits, z = N − K.
        The coder adds 9e-8 bits a symbol for each of three symbols of the alphabet (``entropy.weights``) and
        its last state.
        """
        size, bits = 1 + 4 * len(spec) + 12, 0.0
        for group in groups(spec):
            total = sum(t.numel for t in group)
            count = sum(kept(t.numel, self._selection.density) for t in group)
            some = min(count, 2 * total / 3)  # beyond it, 1.585 bits each
            size += 2 * len(varint(total))
            bits += total * 27e-8 + (total - some) * math.log2(total / (total - some))
            bits += some * math.log2(2 * total / some)
        return size + math.ceil(bits / 8)


def _each(
    held: Sequence[tuple[tuple[TensorSpec, ...], list[float], Block]],
    decoded: Sequence[Bytes],
    reader: Reader,
) -> Iterator[tuple[TensorSpec, float, Bytes]]:
    """Every tensor with its scale and symbols."""
    for (group, scales, _), symbols in zip(held, decoded, strict=True):
        begin = 0
        for t, scale in zip(group, scales, strict=True):
            part = symbols[begin : begin + t.numel]
            begin += t.numel
            some = len(group) == 1 or part.any()  # of one tensor the counts say so
            if some != (scale > 0):
                raise reader.fail(f"tensor {t.name}: scale 0 exactly if all values are 0", f"{scale}")
            yield t, scale, part


def groups(spec: StateSpec) -> list[tuple[TensorSpec, ...]]:
    """Which tensors share counts: each large one alone, in name order, then all small ones together."""
    large = [(t,) for t in spec if t.numel >= SMALL]
    small = tuple(t for t in spec if t.numel < SMALL)
    return [*large, small] if small else [*large]
