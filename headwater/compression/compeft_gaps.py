"""CompeftGapsCodec: what :class:`headwater.compression.compeft.CompeftCodec` sends, as ``compeft.v2``.

The same values, bit for bit, in fewer bytes and less time. Positions are gaps
(:mod:`headwater.compression.gaps`): a symbol for each value that is kept, none for the others. Signs and
the gaps' lowest bits lie raw below the symbols. Tensors of one size and count share one vector of symbols,
counts are said once where they repeat, scales are offsets from the smallest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from headwater.compression.byte_reader import Reader, varint
from headwater.compression.codec import Codec
from headwater.compression.compeft_selection import CompeftSelection, Sent, sent_state
from headwater.compression.entropy import Bits, Symbols, look_up, pack, unpack_over
from headwater.compression.gaps import GapBlock, GapTable, Places, gap_table, most_gap_bytes
from headwater.compression.reader import Floats, flat_finite, open_payload
from headwater.errors import ConfigError
from headwater.protocol.messages import Payload
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec

LEAST_SCALE_BITS, EXACT = 8, 24
"""Significant bits of a scale. With eight it is off by 1/256 at most: less than a clipped update may be."""
_EXPONENT = 7
"""Bits of a positive fp32 beyond its significant ones: the exponent's eight, less the bit that is implied."""
_NORMAL, _INFINITY = 1 << 23, 0x7F800000
"""Patterns of the least normal fp32, and of the first that is not finite."""


class CompeftGapsCodec(Codec):
    """ComPEFT per tensor, positions as gaps. Decoding needs none of the arguments.

    Args:
        density, alpha: see :class:`headwater.compression.compeft.CompeftSelection`.
        scale_bits: significant bits of each tensor's scale, rounded to nearest; 24 leaves all of them as they
            are, and any number those below 2⁻¹²⁶.
        over_all: whether the density is that of all tensors together.
    """

    id = "compeft.v2"

    def __init__(
        self,
        density: float = 0.05,
        alpha: float | None = None,
        scale_bits: int = EXACT,
        *,
        over_all: bool = False,
    ) -> None:
        if not LEAST_SCALE_BITS <= scale_bits <= EXACT:
            expected = f"scale_bits from {LEAST_SCALE_BITS} to {EXACT}"
            raise ConfigError("codec compeft", expected=expected, got=repr(scale_bits))
        self.density, self.alpha, self.scale_bits = density, alpha, scale_bits
        self._selection = CompeftSelection(density, alpha, over_all)

    def encode(self, state: AdapterState, *, key: Key) -> Payload:
        """The payload of ``state``; ``key`` is not used."""
        return self._write(state.spec, self._sent(state))

    def round_trip(self, state: AdapterState, *, key: Key) -> tuple[Payload, AdapterState]:
        """The payload of ``state``, and its values made of what was coded."""
        sent = self._sent(state)
        by_name = {t.name: part for t, part in zip(state.spec, sent, strict=True)}
        return self._write(state.spec, sent), sent_state(state.spec, by_name)

    def _sent(self, state: AdapterState) -> list[Sent]:
        flat = flat_finite(state, self.id)
        found = self._selection.of_all([flat[t.name] for t in state.spec])
        return [self._rounded(sent) for sent in found]

    def _rounded(self, sent: Sent) -> Sent:
        unit = 1 << EXACT - self.scale_bits
        pattern = int(np.float32(sent.scale).view(np.int32))
        if unit == 1 or pattern < _NORMAL:  # a subnormal one has no bits to lose
            return sent
        units = round(pattern / unit)  # Python rounds halves to even; 31 bits are exact in fp64
        units = min(units, (_INFINITY - 1) // unit)
        return Sent(sent.places, sent.minus, float(np.int32(units * unit).view(np.float32)))

    def _write(self, spec: StateSpec, sent: Sequence[Sent]) -> Payload:
        if not any(part.places.size for part in sent):
            return Payload(self.id, b"\0")
        counts = [part.places.size for part in sent]
        precision, least, width, offsets = _shared(
            np.array([s.scale for s in sent if s.places.size], np.float32)
        )
        head = bytearray([precision]) + _counts_to_bytes(spec, counts)
        if offsets.size > 1:
            head.append(width)
        blocks: list[tuple[Symbols, GapBlock]] = []
        below: list[Bits] = []
        for group in _groups(spec, counts):
            below.append(np.concatenate([sent[i].minus for i in group.members]))
            if group.table is not None:
                symbols, bits = group.table.write(np.stack([sent[i].places for i in group.members]))
                below.append(bits)
                blocks.append((symbols, GapBlock(group.table, symbols.size)))
                if group.table.most_escapes(len(group.members)):
                    head += varint(symbols.size - group.kept)
        below += [_bits_of(np.array([least]), precision + _EXPONENT), _bits_of(offsets, width)]
        stream = pack(blocks, np.concatenate(below))
        return Payload(self.id, bytes(head) + varint(len(stream)) + stream)

    def decode(self, payload: Payload, spec: StateSpec) -> AdapterState:
        """The state; every body but a canonical one for ``spec`` is refused."""
        reader = open_payload(payload, self, spec)
        precision = reader.byte(tuple(range(EXACT + 1)), "bits of a scale")
        if not precision:
            reader.end()
            return AdapterState.zeros(spec)
        counts = _read_counts(reader, spec)
        scaled = [index for index, count in enumerate(counts) if count]
        width = reader.byte(tuple(range(32)), "bits of a scale's offset") if len(scaled) > 1 else 0
        groups = _groups(spec, counts)
        blocks = [_block(reader, group) for group in groups if group.table is not None]
        reader.length("stream")
        raw, wide = sum(group.bits for group in groups), precision + _EXPONENT
        symbols, below = unpack_over(reader, blocks, raw + wide + width * len(scaled))
        (least,) = _from_bits(below[raw : raw + wide].reshape(1, wide))
        offsets = below[raw + wide :].reshape(len(scaled), width)
        scale_of = dict(zip(scaled, _scales(reader, precision, int(least), offsets), strict=True))
        few = 4 * sum(counts) <= spec.numel  # else places would take more room than values
        values: dict[int, Floats] = {}
        sent: dict[str, Sent] = {}
        at, coded = 0, iter(symbols)
        for group in groups:
            mine, at = below[at : at + group.bits], at + group.bits
            minus = mine[: group.kept].reshape(-1, group.count)
            places: Iterable[Places | slice] = [slice(None)] * len(group.members)
            if group.table is not None:
                places = group.table.read(next(coded), mine[group.kept :], len(group.members), reader)
            for index, place, sign in zip(group.members, places, minus, strict=True):
                t = spec.tensors[index]
                if few:
                    at_all = np.arange(t.numel) if isinstance(place, slice) else place
                    sent[t.name] = Sent(at_all.astype(np.intp, copy=False), sign, scale_of[index])
                else:
                    entries = look_up(np.array([scale_of[index], -scale_of[index]], np.float32), sign)
                    if isinstance(place, slice):
                        values[index] = entries
                    else:
                        values[index] = np.zeros(t.numel, np.float32)
                        values[index][place] = entries
        if few:
            return sent_state(spec, sent)
        return AdapterState(spec, {t.name: _tensor(values.get(i), t) for i, t in enumerate(spec)})

    def max_bytes(self, spec: StateSpec) -> int:
        """Two bits a value are more than positions and signs take, 25 bytes a tensor more than the rest."""
        return 32 + spec.numel // 4 + 25 * len(spec)

    def most_encoded(self, spec: StateSpec) -> int:
        """At this density. See :func:`headwater.compression.gaps.most_gap_bytes`."""
        return most_gap_bytes(spec, self.density, over_all=self._selection.over_all)


@dataclass(frozen=True, slots=True)
class _Group:
    """Tensors of one size and count, whose gaps are one vector of symbols.

    Args:
        members: their indices in the spec, ascending.
        count: values that each keeps.
        table: of the gaps; None if all values are kept.
    """

    members: tuple[int, ...]
    count: int
    table: GapTable | None

    @property
    def kept(self) -> int:
        """Values that all of them keep."""
        return self.count * len(self.members)

    @property
    def bits(self) -> int:
        """Raw bits: signs, and the lowest bits of gaps."""
        return self.kept * (1 + (self.table.shift if self.table else 0))


def _groups(spec: StateSpec, counts: Sequence[int]) -> list[_Group]:
    """By size, then count; tensors that keep nothing are in none."""
    members: dict[tuple[int, int], list[int]] = {}
    for index, (t, count) in enumerate(zip(spec, counts, strict=True)):
        if count:
            members.setdefault((t.numel, count), []).append(index)
    return [
        _Group(tuple(indices), count, gap_table(numel, count) if count < numel else None)
        for (numel, count), indices in sorted(members.items())
    ]


def _block(reader: Reader, group: _Group) -> GapBlock:
    assert group.table is not None, "only groups with gaps"
    most = group.table.most_escapes(len(group.members))
    return GapBlock(group.table, group.kept + (reader.varint(most, "escapes") if most else 0))


def _counts_to_bytes(spec: StateSpec, counts: Sequence[int]) -> bytes:
    """The first tensor of each size says its count; of the others, each that differs from the last of its."""
    last: dict[int, int] = {}
    first, others, skipped, surprises = b"", b"", 0, 0
    for t, count in zip(spec, counts, strict=True):
        before = last.get(t.numel)
        last[t.numel] = count
        if before is None:
            first += varint(count)
        elif before == count:
            skipped += 1
        else:
            others += varint(skipped) + varint(count)
            skipped, surprises = 0, surprises + 1
    return first + (varint(surprises) + others if len(spec) > len(last) else b"")


def _read_counts(reader: Reader, spec: StateSpec) -> list[int]:
    """The inverse of :func:`_counts_to_bytes`."""
    sizes = [t.numel for t in spec]
    last = {size: reader.varint(size, "count") for size in dict.fromkeys(sizes)}
    repeated = len(sizes) - len(last)
    surprises = reader.varint(repeated, "changes of a count") if repeated else 0
    met: set[int] = set()
    counts = []
    until = reader.varint(repeated, "equal counts") if surprises else -1
    for size in sizes:
        if size not in met:
            met.add(size)
        elif until == 0:
            count = reader.varint(size, "count")
            if count == last[size]:
                raise reader.fail("another count than before", str(count))
            last[size], surprises = count, surprises - 1
            until = reader.varint(repeated, "equal counts") if surprises else -1
        else:
            until -= 1
        counts.append(last[size])
    if surprises:
        raise reader.fail("as many counts as tensors", "more")
    if not any(counts):
        raise reader.fail("a value that is kept", "none")
    return counts


def _shared(scales: Floats) -> tuple[int, int, int, npt.NDArray[np.int64]]:
    """Significant bits of positive ``scales`` [n ≥ 1], the smallest, bits of an offset, the offsets from it.

    Of a positive fp32's 31 bits the upper ones, as an integer: its order is that of the values.
    """
    patterns = scales.view(np.int32).astype(np.int64)
    lowest = int(np.bitwise_or.reduce(patterns))
    dropped = min((lowest & -lowest).bit_length() - 1, EXACT - 1)
    units = patterns >> dropped
    offsets = units - units.min()
    return EXACT - dropped, int(units.min()), int(offsets.max()).bit_length(), offsets


def _scales(reader: Reader, precision: int, least: int, bits: Bits) -> list[float]:
    """The inverse of :func:`_shared`: ``bits`` [tensors, width]."""
    width = bits.shape[1]
    offsets = _from_bits(bits)
    units, dropped = offsets + least, EXACT - precision
    shortest = precision == 1 or (units & 1).any()
    if offsets.min() or int(offsets.max()).bit_length() != width or not shortest or least < 1:
        raise reader.fail("scales and their offsets in the fewest bits", "more")
    if int(units.max()) << dropped >= _INFINITY:
        raise reader.fail("finite scales", "infinity or NaN")
    found: list[float] = (units << dropped).astype(np.int32).view(np.float32).tolist()
    return found


def _bits_of(numbers: npt.NDArray[np.int64], width: int) -> Bits:
    """The ``width`` bits of each, the lowest first."""
    return (numbers[:, None] >> np.arange(width) & 1).astype(np.uint8).reshape(-1)


def _from_bits(bits: Bits) -> npt.NDArray[np.int64]:
    """The inverse: ``bits`` [numbers, width]."""
    powers: npt.NDArray[np.int64] = 1 << np.arange(bits.shape[1], dtype=np.int64)
    return bits.astype(np.int64) @ powers


def _tensor(values: Floats | None, tensor: TensorSpec) -> torch.Tensor:
    return torch.zeros(tensor.shape) if values is None else torch.from_numpy(values).reshape(tensor.shape)
