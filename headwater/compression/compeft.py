"""CompeftCodec: sparse ternary values with one scale per tensor, entropy-coded.

Yadav, Choshen, Raffel, Bansal 2023, *ComPEFT* (arXiv 2311.13171): keep the top k of |τ|, send only
signs and one scale. Ours differs in four points, each measured or argued in ``docs/reference/codecs.md``:
density and scale are per tensor (heads move several times as far as A and B of LoRA), the default scale is
the mean kept magnitude (least squares; STC's choice, arXiv 1903.02891), the coder is ANS instead of
Golomb, and the scale is fp32 (fp16 underflows on LoRA deltas).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from headwater.compression.byte_reader import varint
from headwater.compression.codec import Codec
from headwater.compression.entropy import Block, Symbols, pack, unpack
from headwater.compression.reader import Floats, flat_finite, open_payload
from headwater.compression.ternary import MINUS, kept, largest, signs
from headwater.errors import ConfigError
from headwater.protocol.messages import Payload
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec

VERSION = 1
SMALL = 2048
"""Tensors with fewer values share one block: two counts each would cost more than they save."""

_SMALLEST, _LARGEST = 2.0**-149, float(np.finfo(np.float32).max)


class CompeftCodec(Codec):
    """ComPEFT per tensor. Decoding needs neither density nor alpha.

    A tensor that already is what this codec sends (values 0 and ±s, few enough of them) is sent
    exactly: encoding is a projection. An all-zero tensor stays all zero.

    Args:
        density: 0 < k ≤ 1; a tensor keeps max(1, ⌊k·N⌋) values.
        alpha: scale = alpha·std (ddof = 1) as in the paper; the mean kept magnitude if ``None``, and
            wherever std is undefined or 0 (N = 1, a constant tensor).
    """

    id = "compeft.v1"

    def __init__(self, density: float = 0.05, alpha: float | None = None) -> None:
        if not 0 < density <= 1:
            raise ConfigError("codec compeft", expected="0 < density <= 1", got=repr(density))
        if alpha is not None and not 0 < alpha < float("inf"):
            raise ConfigError("codec compeft", expected="alpha > 0", got=repr(alpha))
        self.density, self.alpha = density, alpha

    def encode(self, state: AdapterState, *, key: Key) -> Payload:
        """The payload of ``state``; ``key`` is not used."""
        return self._encode(state)[0]

    def round_trip(self, state: AdapterState, *, key: Key) -> tuple[Payload, AdapterState]:
        """The payload of ``state``, and its values made of the symbols that were coded."""
        payload, sent = self._encode(state)
        return payload, AdapterState(state.spec, {t.name: sent[t.name].values(t) for t in state.spec})

    def _encode(self, state: AdapterState) -> tuple[Payload, dict[str, _Sent]]:
        """The payload, and what it says of each tensor."""
        flat = flat_finite(state, self.id)
        head = bytearray([VERSION])
        blocks: list[tuple[Symbols, Block]] = []
        sent: dict[str, _Sent] = {}
        for group in groups(state.spec):
            symbols = np.zeros(sum(t.numel for t in group), np.int32)
            end = kept_here = minus = 0
            for t in group:
                part = sent[t.name] = self._sent(flat[t.name])
                symbols[end : end + t.numel][part.places] = part.symbols
                end += t.numel
                kept_here += part.places.size
                minus += int(np.count_nonzero(part.symbols == MINUS))
            head += varint(kept_here - minus) + varint(minus)
            if kept_here:
                head += b"".join(struct.pack("<f", sent[t.name].scale) for t in group)
                blocks.append((symbols, Block((end - kept_here, kept_here - minus, minus))))
        return Payload(self.id, bytes(head) + pack(blocks)), sent

    def _sent(self, values: Floats) -> _Sent:
        """What is sent of a tensor."""
        places = largest(values, kept(values.size, self.density))
        chosen = values[places]
        return _Sent(places, signs(chosen), self._scale(values, chosen))

    def _scale(self, values: Floats, kept: Floats) -> float:
        """The magnitude that stands for every kept value; 0 if none is kept."""
        magnitudes = np.abs(kept)
        if not magnitudes.size:
            return 0.0
        mean = float(magnitudes.mean(dtype=np.float64))
        ternary = magnitudes.min() == magnitudes.max() and magnitudes.size == np.count_nonzero(values)
        if self.alpha is None or ternary:
            return mean
        sigma = float(values.std(dtype=np.float64, ddof=1))  # N = 1 is ternary: never here
        return min(max(self.alpha * sigma, _SMALLEST), _LARGEST) if sigma > 0 else mean

    def decode(self, payload: Payload, spec: StateSpec) -> AdapterState:
        """The state; every body but a canonical one for ``spec`` is refused."""
        reader = open_payload(payload, self, spec)
        reader.byte((VERSION,), "version")
        held: list[tuple[tuple[TensorSpec, ...], list[float], Block]] = []
        tensors = {}
        for group in groups(spec):
            numel = sum(t.numel for t in group)
            plus = reader.varint(numel, "positive count")
            minus = reader.varint(numel - plus, "negative count")
            if plus or minus:
                scales = [reader.scale(f"scale of {t.name}") for t in group]
                held.append((group, scales, Block((numel - plus - minus, plus, minus))))
            else:
                tensors.update({t.name: torch.zeros(t.shape) for t in group})
        decoded = unpack(reader, [block for _, _, block in held])
        for (group, scales, _), symbols in zip(held, decoded, strict=True):
            parts = (
                np.split(symbols, np.cumsum([t.numel for t in group])[:-1]) if len(group) > 1 else [symbols]
            )
            for t, scale, part in zip(group, scales, parts, strict=True):
                some = len(group) == 1 or part.any()  # of one tensor the counts say so
                if some != (scale > 0):
                    raise reader.fail(f"tensor {t.name}: scale 0 exactly if all values are 0", f"{scale}")
                tensors[t.name] = torch.from_numpy(_levels(scale).take(part)).reshape(t.shape)
        return AdapterState(spec, tensors)

    def max_bytes(self, spec: StateSpec) -> int:
        """Headers, and 1.6 bits a value (log2 3 and ANS rounding) plus the coder's last state."""
        counts = sum(2 * len(varint(sum(t.numel for t in group))) for group in groups(spec))
        return 1 + counts + 4 * len(spec) + -(-spec.numel // 5) + 12


@dataclass(frozen=True, slots=True)
class _Sent:
    """A tensor as it was coded: where it is not 0, and there the symbols of ``scale``."""

    places: npt.NDArray[np.intp]
    symbols: Symbols
    scale: float

    def values(self, tensor: TensorSpec) -> torch.Tensor:
        """What it decodes to."""
        values = np.zeros(tensor.numel, np.float32)
        values[self.places] = _levels(self.scale)[self.symbols]
        return torch.from_numpy(values).reshape(tensor.shape)


def _levels(scale: float) -> Floats:
    """What the symbols stand for."""
    return np.array([0.0, scale, -scale], dtype=np.float32)


def groups(spec: StateSpec) -> list[tuple[TensorSpec, ...]]:
    """Which tensors share counts: each large one alone, in name order, then all small ones together."""
    large = [(t,) for t in spec if t.numel >= SMALL]
    small = tuple(t for t in spec if t.numel < SMALL)
    return [*large, small] if small else [*large]
