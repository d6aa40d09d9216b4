"""TopkCodec and SparseLocoCodec: the largest values of each tensor, or of each chunk, in 16, 8 or 2 bits.

*Top-k* (Aji & Heafield 2017, arXiv 1704.05021; contractive with δ = n/N, Stich et al. 2018, arXiv
1809.07599): C(x) = x at the n largest magnitudes, 0 elsewhere.

*SparseLoCo* (Sarfi et al. 2025, arXiv 2508.15706): the n largest of each chunk of 4096 values, in 2 bits,
with an error feedback that decays (e ← β·e + Δ; Δ̂ = C(e); e ← e − Δ̂), which takes the place of an outer
momentum. The codec is the C of it; the client's feedback does the rest, with its setting ``decay``.

A tensor's kept values in 16 bits are bf16; in 8 bits c/127 of their largest; in 2 bits a sign and one of two
magnitudes, the means of those above and of those below the mean magnitude (the reference's bins of equal
width put nearly all of a top-k's values into two of four).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from headwater.compression.byte_reader import Reader
from headwater.compression.codec import Codec
from headwater.compression.codecs import symbols as coding
from headwater.compression.codecs.places import (
    Indices,
    Largest,
    Places,
    most_place_bytes,
    read_places,
    write_places,
)
from headwater.compression.dense import DenseCodec
from headwater.compression.entropy import Symbols, look_up
from headwater.compression.reader import Floats, flat_finite, open_payload
from headwater.protocol.messages import Payload
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec

VERSION = 1
Bits = Literal[16, 8, 2]
ALPHABET = {8: 255, 2: 4}
_SCALES = {16: 0, 8: 1, 2: 2}
"""Scales of a tensor that keeps a value."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is sent of one tensor.

    Args:
        places: where.
        scales: none, the largest magnitude, or the lower and the upper magnitude.
        codes: of :data:`ALPHABET`; empty for 16 bits.
        values: what arrives.
    """

    places: Indices
    scales: Floats
    codes: Symbols
    values: Floats


class TopkCodec(Codec):
    """Places by entropy coding, then kept values. What would arrive as 0 is not sent.

    Args:
        density: 0 < k ≤ 1, of each tensor or chunk.
        bits: of a kept value. Decoding needs neither.
        chunk: values among which the largest are sought; a whole tensor if None.
    """

    id = "topk.v1"

    def __init__(self, density: float = 0.05, bits: Bits = 8, chunk: int | None = None) -> None:
        self._largest, self._bits, self._values = Largest(density, chunk), bits, DenseCodec("bf16")

    def encode(self, state: AdapterState, *, key: Key) -> Payload:
        """The payload of ``state``; ``key`` is not used."""
        return self._encode(state, key)[0]

    def round_trip(self, state: AdapterState, *, key: Key) -> tuple[Payload, AdapterState]:
        """The payload of ``state``, and its values as they were coded."""
        payload, places, sent = self._encode(state, key)
        return payload, places.put({name: kept.values for name, kept in sent.items()})

    def _encode(self, state: AdapterState, key: Key) -> tuple[Payload, Places, dict[str, _Kept]]:
        flat = flat_finite(state, self.id)
        chosen = {name: self._largest.places_of(values) for name, values in flat.items()}
        if self._bits == 16:
            taken = Places(state.spec, chosen).take(flat)
            rounded = self._values.round_trip(taken, key=key)[1]
            sent = {n: _Kept(chosen[n], _none(), _codes(), rounded[n].numpy()) for n in flat}
        else:
            sent = {n: _quantised(flat[n], at, self._bits) for n, at in chosen.items()}
        sent = {name: _without_zeros(kept) for name, kept in sent.items()}
        places = Places(state.spec, {name: kept.places for name, kept in sent.items()})
        head = bytes([VERSION, self._bits]) + write_places(places)
        scales = b"".join(kept.scales.astype("<f4").tobytes() for kept in sent.values() if kept.places.size)
        if self._bits == 16:
            left = {name: torch.from_numpy(kept.values) for name, kept in sent.items()}
            rest = self._values.encode(AdapterState(places.kept(), left), key=key).body
        else:
            codes = np.concatenate([_codes(), *(kept.codes for kept in sent.values())])
            rest = coding.write(codes, ALPHABET[self._bits])
        return Payload(self.id, head + scales + rest), places, sent

    def decode(self, payload: Payload, spec: StateSpec) -> AdapterState:
        """The state; every kept value arrives as one that is not 0, or ``DecodeError``."""
        reader = open_payload(payload, self, spec)
        reader.byte((VERSION,), "version")
        bits = reader.byte(tuple(_SCALES), "bits of a value")
        places = read_places(reader, spec)
        sizes = {name: at.size for name, at in places.at.items()}
        scales = {name: _read_scales(reader, _SCALES[bits]) for name, size in sizes.items() if size}
        if bits == 16:
            found = self._values.decode(Payload(self._values.id, reader.rest()), places.kept())
            values = {name: found[name].numpy() for name in sizes}
        else:
            codes, begin, values = coding.read(reader, sum(sizes.values()), ALPHABET[bits]), 0, {}
            for name, size in sizes.items():
                part = codes[begin : begin + size]
                values[name] = look_up(_levels(scales[name], bits), part) if size else _none()
                begin += size
        if not all(part.all() for part in values.values()):
            raise reader.fail("kept values other than 0", "0")
        return places.put(values)

    def max_bytes(self, spec: StateSpec) -> int:
        """All values kept in 16 bits, or the longest scales."""
        return 3 + most_place_bytes(spec) + 8 * len(spec) + 2 * spec.numel

    def most_encoded(self, spec: StateSpec) -> int:
        """At this density and with values of so many bits."""
        count = sum(self._largest.most_kept(spec))
        values = 2 * count if self._bits == 16 else coding.most_bytes(count, ALPHABET[self._bits])
        return 2 + self._largest.most_selected(spec) + 4 * _SCALES[self._bits] * len(spec) + values


class SparseLocoCodec(TopkCodec):
    """``topk.v1`` by chunks, always in 2 bits.

    Args:
        density: 0 < k ≤ 1, of each chunk; the paper's 64 of 4096 by default.
        chunk: values of a chunk.
    """

    id = "sparseloco.v1"

    def __init__(self, density: float = 1 / 64, chunk: int = 4096) -> None:
        super().__init__(density, 2, chunk)


def _quantised(values: Floats, places: Indices, bits: Bits) -> _Kept:
    """The chosen values of one tensor in 8 or 2 bits."""
    chosen = values[places]
    if not chosen.size:
        return _Kept(places, _none(), _codes(), _none())
    size = np.abs(chosen)
    if bits == 8:
        scales: Floats = np.array([size.max()], np.float32)
        codes = np.rint(chosen / scales[0] * np.float32(127)).astype(np.int32) + 127
    else:
        high = size > size.mean(dtype=np.float64)
        low = np.float32(size[~high].mean(dtype=np.float64))
        scales = np.array([low, size[high].mean(dtype=np.float64) if high.any() else low], np.float32)
        high &= scales[0] < scales[1]
        codes = 2 * high.astype(np.int32) + (chosen < 0)
    return _Kept(places, scales, codes, _levels(scales, bits)[codes])


def _levels(scales: Floats, bits: int) -> Floats:
    """What the codes stand for."""
    if bits == 8:
        levels: Floats = np.arange(-127, 128, dtype=np.float32) / np.float32(127) * scales[0]
        return levels
    return np.array([scales[0], -scales[0], scales[1], -scales[1]], np.float32)


def _without_zeros(kept: _Kept) -> _Kept:
    some = kept.values != 0
    if some.all():
        return kept
    codes = kept.codes[some] if kept.codes.size else kept.codes
    return replace(kept, places=kept.places[some], codes=codes, values=kept.values[some])


def _read_scales(reader: Reader, count: int) -> Floats:
    """Ascending, above 0."""
    scales = np.array([reader.scale("scale") for _ in range(count)], np.float32)
    if not scales.all() or (np.diff(scales) < 0).any():
        raise reader.fail("scales above 0, the lower one first", f"{scales.tolist()}")
    return scales


def _none() -> Floats:
    return np.zeros(0, np.float32)


def _codes() -> Symbols:
    return np.zeros(0, np.int32)
