"""Which values of a state travel: :class:`Places`, and who chooses them: :class:`Selector`.

Two selectors. :class:`Largest` takes the largest magnitudes of each tensor, or of each chunk of it, and sends
where they are: N·H2(k) bits for N values at density k. :class:`Drawn` draws places from 16 bytes that travel
in their stead, so that places cost nothing; whoever has the same bytes has the same places.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from headwater.compression.byte_reader import Reader, varint
from headwater.compression.compeft import groups
from headwater.compression.entropy import CHUNK, Block, Symbols, pack, unpack_bytes
from headwater.compression.reader import Floats
from headwater.compression.ternary import kept, largest
from headwater.errors import ConfigError
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec

KEY_BYTES = 16
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Places:
    """Some values of each tensor of a spec.

    Args:
        spec: the whole state's.
        at: for each tensor, in the order of their names, the flat indices, ascending.
    """

    spec: StateSpec
    at: Mapping[str, Indices]

    def kept(self) -> StateSpec:
        """The spec of the values that travel: vectors, some of them perhaps empty."""
        return StateSpec.of(TensorSpec(t.name, (self.at[t.name].size,), "vector") for t in self.spec)

    def take(self, flat: Mapping[str, Floats]) -> AdapterState:
        """The values that travel."""
        taken = {name: torch.from_numpy(values[self.at[name]]) for name, values in flat.items()}
        return AdapterState(self.kept(), taken)

    def put(self, values: Mapping[str, Floats]) -> AdapterState:
        """The state that has these values in these places, and zeros elsewhere."""
        tensors = {}
        for t in self.spec:
            found = np.zeros(t.numel, np.float32)
            found[self.at[t.name]] = values[t.name]
            tensors[t.name] = torch.from_numpy(found).reshape(t.shape)
        return AdapterState(self.spec, tensors)


class Selector(ABC):
    """Chooses places and writes them down."""

    @abstractmethod
    def select(self, spec: StateSpec, flat: Mapping[str, Floats], key: Key) -> tuple[bytes, Places]:
        """The places of a state's flat values, and what a reader needs to find them."""

    @abstractmethod
    def read(self, reader: Reader, spec: StateSpec) -> Places:
        """The places that :meth:`select` wrote.

        Raises:
            DecodeError: the bytes hold anything else.
        """

    @abstractmethod
    def most_bytes(self, spec: StateSpec) -> int:
        """No :meth:`select` writes more, whatever its density."""

    @abstractmethod
    def most_kept(self, spec: StateSpec) -> list[int]:
        """Of each tensor, how many values :meth:`select` takes at most."""

    @abstractmethod
    def most_selected(self, spec: StateSpec) -> int:
        """:meth:`select` never writes more at this density."""

    def arrives(self, places: Places, values: Mapping[str, torch.Tensor]) -> dict[str, Floats]:
        """The decoded values of every tensor as they are put in their places; infinite where too large."""
        return {name: value.numpy() for name, value in values.items()}


class Largest(Selector):
    """The n = max(1, ⌊k·N⌋) largest magnitudes; ties to the lower index, zeros never.

    Args:
        density: 0 < k ≤ 1.
        chunk: values of a tensor among which they are the largest; the whole tensor if None.
    """

    def __init__(self, density: float, chunk: int | None = None) -> None:
        self.density, self.chunk = _density(density), chunk

    def places_of(self, values: Floats) -> Indices:
        """In one flat tensor."""
        step = max(1, values.size) if self.chunk is None else self.chunk
        parts = [
            at + largest(values[at : at + step], kept(min(step, values.size - at), self.density))
            for at in range(0, values.size, step)
        ]
        return np.concatenate([np.zeros(0, np.intp), *parts])

    def select(self, spec: StateSpec, flat: Mapping[str, Floats], key: Key) -> tuple[bytes, Places]:
        """See :class:`Selector`; ``key`` is not used."""
        places = Places(spec, {name: self.places_of(values) for name, values in flat.items()})
        return write_places(places), places

    def read(self, reader: Reader, spec: StateSpec) -> Places:
        """See :class:`Selector`."""
        return read_places(reader, spec)

    def most_bytes(self, spec: StateSpec) -> int:
        """A bit a value where half of them are kept."""
        return most_place_bytes(spec)

    def most_kept(self, spec: StateSpec) -> list[int]:
        """So many of each whole chunk, and of the rest."""
        return [self._most_of(t.numel) for t in spec]

    def _most_of(self, numel: int) -> int:
        whole, rest = divmod(numel, self.chunk or max(1, numel))
        of_rest = kept(rest, self.density) if rest else 0
        return of_rest + (whole * kept(self.chunk or numel, self.density) if whole else 0)

    def most_selected(self, spec: StateSpec) -> int:
        """A group of N values, K of them kept, takes at most N·H2(K/N) bits, for K up to N/2 as for K."""
        most = dict(zip((t.name for t in spec), self.most_kept(spec), strict=True))
        bits, held = 0.0, groups(spec)
        for group in held:
            total = sum(t.numel for t in group)
            some = min(sum(most[t.name] for t in group), total / 2)
            bits += total * 18e-8  # as the coder rounds what is likely (``entropy.weights``)
            bits += (
                some * math.log2(total / some) + (total - some) * math.log2(total / (total - some))
                if some
                else 0
            )
        stream = math.ceil(bits / 8) + 12
        return sum(len(varint(sum(t.numel for t in g))) for g in held) + len(varint(stream)) + stream

    @staticmethod
    def all_of(spec: StateSpec) -> StateSpec:
        """The spec of the values that travel where all do."""
        return StateSpec.of(TensorSpec(t.name, (t.numel,), "vector") for t in spec)


class Drawn(Selector):
    """n = max(1, ⌊k·N⌋) places of each tensor, drawn without looking at the values.

    Values arrive N/n times as large, so that E[decoded] = x (Rand-k; Konečný et al. 2016, arXiv 1610.05492).

    Args:
        density: 0 < k ≤ 1.
        mask: the 16 bytes from which places come; if None, they come from the key of each encoding.
    """

    def __init__(self, density: float, mask: bytes | None = None) -> None:
        self.density, self.mask = _density(density), mask

    def select(self, spec: StateSpec, flat: Mapping[str, Floats], key: Key) -> tuple[bytes, Places]:
        """See :class:`Selector`; the values are not looked at."""
        mask, counts = self.mask or key.child("places").digest[:KEY_BYTES], self._counts(spec)
        return mask + b"".join(map(varint, counts)), _drawn(spec, counts, mask)

    def _counts(self, spec: StateSpec) -> list[int]:
        return [kept(t.numel, self.density) if t.numel else 0 for t in spec]

    def read(self, reader: Reader, spec: StateSpec) -> Places:
        """See :class:`Selector`; other places than those of ``mask``, or more or fewer, are refused."""
        mask = reader.take(KEY_BYTES, "key of places")
        counts = [reader.varint(t.numel, f"kept values of {t.name}") for t in spec]
        if self.mask is not None and (mask, counts) != (self.mask, self._counts(spec)):
            raise reader.fail("the places that all clients of this round send", "others")
        if any(bool(count) != bool(t.numel) for t, count in zip(spec, counts, strict=True)):
            raise reader.fail("a kept value in every tensor", "none")
        return _drawn(spec, counts, mask)

    def most_bytes(self, spec: StateSpec) -> int:
        """The key and the counts."""
        return KEY_BYTES + sum(len(varint(t.numel)) for t in spec)

    def most_kept(self, spec: StateSpec) -> list[int]:
        """Always so many."""
        return self._counts(spec)

    def most_selected(self, spec: StateSpec) -> int:
        """Always so many bytes."""
        return KEY_BYTES + sum(len(varint(count)) for count in self._counts(spec))

    def arrives(self, places: Places, values: Mapping[str, torch.Tensor]) -> dict[str, Floats]:
        """Times N/n."""
        found = super().arrives(places, values)
        with np.errstate(over="ignore"):
            return {
                t.name: found[t.name] * np.float32(t.numel / found[t.name].size) if t.numel else found[t.name]
                for t in places.spec
            }


def _drawn(spec: StateSpec, counts: list[int], mask: bytes) -> Places:
    """In each tensor the ``count`` places with the smallest 32-bit words of Philox, lower index first."""
    stream, at = Key(mask).numpy().bit_generator, {}
    for t, count in zip(spec, counts, strict=True):
        raw: npt.NDArray[np.uint64] = stream.random_raw(-(-t.numel // 2))  # drawn for all places, sent or not
        words = raw.astype("<u8", copy=False).view("<u4")[: t.numel]
        if count == t.numel:
            at[t.name] = np.arange(count)
            continue
        most = _smallest(words, count - 1)
        places = np.flatnonzero(words <= most)
        if (extra := places.size - count) > 0:
            places = np.delete(places, np.flatnonzero(words[places] == most)[-extra:])
        at[t.name] = places
    return Places(spec, at)


def _smallest(words: npt.NDArray[np.uint32], rank: int) -> np.uint32:
    """The word that ``rank`` others come before, found by upper halves: no copy of all of them."""
    parts = [words[start : start + CHUNK] for start in range(0, words.size, CHUNK)]
    upto = np.cumsum(sum(np.bincount(part >> 16, minlength=1 << 16) for part in parts))
    half = int(np.searchsorted(upto, rank, side="right"))
    near = np.concatenate([part[part >> 16 == half] for part in parts])
    rank -= int(upto[half - 1]) if half else 0
    found: np.uint32 = np.partition(near, rank)[rank]
    return found


def write_places(places: Places) -> bytes:
    """How many values each group keeps, the length of a stream, and the stream: a block for each group."""
    head, blocks = bytearray(), list[tuple[Symbols, Block]]()
    for group in groups(places.spec):
        numel = sum(t.numel for t in group)
        symbols, begin = np.zeros(numel, np.int32), 0
        for t in group:
            symbols[begin + places.at[t.name]] = 1
            begin += t.numel
        count = int(np.count_nonzero(symbols))
        head += varint(count)
        blocks.append((symbols, Block((numel - count, count))))
    stream = pack(blocks)
    return bytes(head) + varint(len(stream)) + stream


def read_places(reader: Reader, spec: StateSpec) -> Places:
    """The inverse of :func:`write_places`.

    Raises:
        DecodeError: the bytes hold anything else.
    """
    held, blocks = groups(spec), []
    for group in held:
        numel = sum(t.numel for t in group)
        count = reader.varint(numel, "kept values")
        blocks.append(Block((numel - count, count)))
    stream = reader.take(reader.varint(most_place_bytes(spec), "bytes of places"), "places")
    at = {}
    for group, symbols in zip(
        held, unpack_bytes(Reader(stream, reader.who, reader.hint), blocks), strict=True
    ):
        begin = 0
        for t in group:
            at[t.name] = np.flatnonzero(symbols[begin : begin + t.numel])
            begin += t.numel
    return Places(spec, {t.name: at[t.name] for t in spec})


def most_place_bytes(spec: StateSpec) -> int:
    """:func:`write_places` never gives more: a bit and a little a value, and headers."""
    counts = sum(len(varint(sum(t.numel for t in group))) for group in groups(spec))
    stream = spec.numel // 8 + spec.numel // 2**16 + 16
    return counts + len(varint(stream)) + stream


def _density(density: float) -> float:
    if not 0 < density <= 1:
        raise ConfigError("codec", expected="0 < density <= 1", got=repr(density))
    return density
