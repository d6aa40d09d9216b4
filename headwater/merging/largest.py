"""Cut: which values of a vector are its largest, found and applied in few passes over memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headwater.kernels import gate

BLOCK = 1 << 13
"""Values that are worked on at a time: longer arrays leave the core's cache at each step, and fresh ones of
more than 128 KiB come as pages that the system clears first."""
_SAMPLE = 1 << 14

_SAVED, _SAVED_APPLYING = 2.0, 1.0
"""Nanoseconds a value by which NumPy takes longer than a compiled pass: of an edge, and of ``Cut.apply``."""

SAVED = _SAVED + _SAVED_APPLYING
"""Of values whose cut is found and applied."""

Values = npt.NDArray[np.floating[Any]]
Bits = npt.NDArray[np.signedinteger[Any]]


@dataclass(frozen=True, slots=True)
class Cut:
    """Which values are kept: those above a magnitude, and of those that equal it the first.

    Args:
        magnitude: the smallest that is kept.
        last: the position of the last one of that magnitude that is kept.
    """

    magnitude: float
    last: int

    @staticmethod
    def of(values: Values, density: float) -> Cut:
        """To keep a fraction of ``values`` [n], and at least one: the largest; of equal ones the earlier."""
        return Cut.largest(values, max(1, int(density * values.size)))

    @staticmethod
    def largest(values: Values, count: int) -> Cut:
        """To keep the ``count`` largest magnitudes of ``values`` [n]; of equal ones the earlier.

        Args:
            values: float32 or float64, finite.
            count: how many.
        """
        if count >= values.size:
            return Cut(0.0, values.size)
        if count < 1:
            return Cut(float("inf"), -1)
        found = Edge.of(values, count)
        magnitude = float(np.array([found.bits], bits_of(values).dtype).view(values.dtype)[0])
        if not found.spare:
            return Cut(magnitude, values.size)  # all that equal it are kept
        return Cut(magnitude, _place_from_the_end(values, magnitude, found.spare))

    def apply(self, values: Values, at: int = 0) -> Values:
        """Set to zero what is not kept, in place.

        Args:
            values: [n], contiguous float32 or float64.
            at: the position of the first one in the vector.
        """
        whole, edge = values.dtype.type, values.dtype.type(self.magnitude)
        if edge < self.magnitude:  # which is no float32: what is above it begins with the next one
            edge = np.nextafter(edge, whole(np.inf))
        bits = bits_of(values)
        compiled = gate.GATE.after(_SAVED_APPLYING * values.size)
        if compiled is not None and bits.flags.c_contiguous:
            compiled.clear(bits, int(edge.view(bits.dtype)))
            if at + values.size > self.last:
                equal = np.flatnonzero(np.abs(values) == np.float64(self.magnitude))
                values[equal[equal + at > self.last]] = 0
            return values
        sign = 8 * values.itemsize - 1
        # floats of one sign are in the order of their bits: what is smaller becomes 0, the rest -1
        below = edge.view(bits.dtype) - bits.dtype.type(1)
        magnitude_bits, room = 2**sign - 1, np.empty(min(BLOCK, values.size), bits.dtype)
        for start in range(0, values.size, BLOCK):
            part = bits[start : start + BLOCK]
            kept = room[: part.size]
            np.bitwise_and(part, magnitude_bits, out=kept)
            np.subtract(below, kept, out=kept)
            np.right_shift(kept, sign, out=kept)
            if at + start + part.size > self.last:
                equal = np.flatnonzero(np.abs(values[start : start + BLOCK]) == np.float64(self.magnitude))
                part[equal[equal + at + start > self.last]] = 0
            np.bitwise_and(part, kept, out=part)
        return values


@dataclass(frozen=True, slots=True)
class Edge:
    """Where the largest values of a vector begin.

    Args:
        bits: of the smallest magnitude among them, as an integer.
        spare: how many of that magnitude are more than was asked for.
        largest: bits of the largest magnitude of all; None where nobody looked.
    """

    bits: int
    spare: int
    largest: int | None = None

    @staticmethod
    def of(values: Values, count: int) -> Edge:
        """Of the ``count`` largest magnitudes of ``values`` [n], 0 < count < n.

        Args:
            values: float32 or float64; what is not finite is larger than all else.
            count: how many.
        """
        above, near, largest = _around(values, count)
        if not 0 < count - above <= near.size:  # the sample was not like the rest
            above, near = 0, _magnitudes(values)
        edge = near.size - (count - above)
        near.partition(edge)
        spare = int(np.count_nonzero(near[:edge] == near[edge]))
        return Edge(int(near[edge]), spare, largest)


def bits_of(values: Values) -> Bits:
    """As integers, without a copy: those of floats of one sign are in the order of the floats."""
    return values.view(np.int32 if values.itemsize == 4 else np.int64)


def _place_from_the_end(values: Values, magnitude: float, spare: int) -> int:
    """Where the last value of this magnitude is, but for ``spare`` that come after it."""
    rest = values.size
    while rest:  # block by block: what a whole array takes is more than all else here
        start = max(rest - BLOCK, 0)
        equal = np.flatnonzero(np.abs(values[start:rest]) == magnitude)
        if equal.size > spare:
            return start + int(equal[equal.size - spare - 1])
        spare, rest = spare - equal.size, start
    raise AssertionError("an edge says how many values have its magnitude")


def _magnitudes(values: Values) -> Bits:
    return bits_of(np.abs(values))


def _around(values: Values, count: int) -> tuple[int, Bits, int | None]:
    """How many magnitudes are surely among the ``count`` largest, those near the last of them, the largest.

    A sample says between which two magnitudes it lies, so that few values have to be put in order.
    """
    compiled = gate.GATE.after(_SAVED * values.size)
    if compiled is not None and not values.flags.c_contiguous:
        compiled = None
    wanted = _SAMPLE if compiled is None or values.size > 16 * _SAMPLE else _SAMPLE // 4
    low, high, kind = 0, int(np.iinfo(bits_of(values[:1]).dtype).max), bits_of(values[:1]).dtype
    if values.size >= 4 * wanted:
        sample = _magnitudes(values[:: values.size // wanted | 1])  # lengths of rows are even
        at = sample.size * (1 - count / values.size)
        margin = 2 + 5 * np.sqrt(sample.size * count / values.size * (1 - count / values.size))
        first, last = max(int(at - margin), 0), min(int(at + margin), sample.size - 1)
        sample.partition((first, last))
        low = int(sample[first]) if at > margin else 0
        high = int(sample[last]) if at + margin < sample.size else high
    elif compiled is None:
        return 0, _magnitudes(values), None
    if compiled is None:
        return *_near(values, low, high, kind), None
    found, unsigned = np.empty(values.size, kind), np.dtype(f"u{kind}")
    above, held, largest = compiled.near(values.view(unsigned), low, high, found.view(unsigned))
    return above, found[:held], largest


def _near(values: Values, low: int, high: int, kind: np.dtype[np.signedinteger[Any]]) -> tuple[int, Bits]:
    """How many magnitudes are ``high`` or more, and those in [low, high)."""
    above, near = 0, []
    # fresh arrays cost more than what is done with them
    room, larger, inside = (np.empty(BLOCK, of) for of in (values.dtype, np.bool_, np.bool_))
    for start in range(0, values.size, BLOCK):
        part = values[start : start + BLOCK]
        magnitudes = np.abs(part, out=room[: part.size]).view(kind)
        beyond = np.greater_equal(magnitudes, high, out=larger[: part.size])
        above += int(np.count_nonzero(beyond))
        at_least = np.greater_equal(magnitudes, low, out=inside[: part.size])
        near.append(magnitudes[np.bitwise_xor(at_least, beyond, out=at_least)])
    return above, np.concatenate(near)
