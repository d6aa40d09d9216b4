"""The loops, compiled by numba as this module is imported, which :mod:`headwater.kernels.gate` does.

Each gives the bits of the NumPy code where it is called. There is no fast math: a product and a sum are
rounded one after the other, and sums of floats keep their order. Integers as wide as the floats stand for
them, since the bits of floats of one sign are in the order of their values. Every result of an operation on
narrow integers is made narrow again: numba widens to 64 bits, and then half as many fit a register.

Machine code is kept beside this file, or in the user's cache where that is not writable. Where neither is,
``KEPT`` is False, and each process compiles anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Singles = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Function = TypeVar("Function", bound=Callable[..., Any])

_PART = 512
"""Values that are checked, then added: they stay in the core's first cache."""
_EXACT = 1 << 29
"""Below it, a weight times a whole float32 is exact in float64, whose product is the faster one."""

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set: loops would run a hundred times as long as NumPy")

log = logging.getLogger(__name__)
KEPT = True
_IN = {
    name: numba.types.Array(getattr(numba.types, name), 1, "C", readonly=True)
    for name in ("int32", "int64", "uint32", "uint64", "float32", "float64")
}
_OUT = {name: getattr(numba.types, name)[::1] for name in _IN}


def _compiled(*signatures: object) -> Callable[[Function], Function]:
    def compile_it(function: Function) -> Function:
        global KEPT
        settings = {"nogil": True, "error_model": "numpy"}
        try:
            made: Function = numba.njit(list(signatures), cache=True, **settings)(function)
        except Exception as error:  # no place to keep it; or what unpickling what a power cut left raises
            if "cannot cache" not in str(error):
                log.warning(
                    "machine code kept of %s cannot be read (%r), and is made anew in each process: "
                    "remove it, in __pycache__ beside %s or where NUMBA_CACHE_DIR says",
                    function.__name__, error, __file__,
                )  # fmt: skip
            KEPT = False
            made = numba.njit(list(signatures), **settings)(
                function
            )  # raises again if it was no file's fault
        return made

    return compile_it


@_compiled(numba.int64(_OUT["int64"], _IN["float32"], _IN["int32"], numba.int64, numba.float64, numba.int64))
def add_units(
    sums: Integers, values: Singles, bits: npt.NDArray[np.int32], limit: int, scale: float, weight: int
) -> int:
    """Add weight·round(values·scale) to ``sums``, up to the first stretch with a value beyond the limit.

    Args:
        sums: [n].
        values: [n].
        bits: the same as integers.
        limit: the bits of the largest magnitude that is allowed.
        scale: a power of two.
        weight: may be negative.

    Returns:
        To how many values it added: n, or fewer.
    """
    step, most, share = np.float32(scale), np.int32(limit), np.float64(weight)
    exact = -_EXACT < weight < _EXACT
    for start in range(0, values.size, _PART):
        own, part = sums[start : start + _PART], values[start : start + _PART]
        raw, largest = bits[start : start + _PART], np.int32(0)
        for i in range(raw.size):
            largest = max(largest, np.int32(raw[i] & np.int32(0x7FFFFFFF)))
        if largest > most:
            return start
        if exact:
            for i in range(part.size):
                own[i] += np.int64(np.float64(np.rint(part[i] * step)) * share)
        else:
            for i in range(part.size):
                own[i] += np.int64(np.rint(part[i] * step)) * weight
    return values.size


@_compiled(
    *(
        numba.types.UniTuple(numba.int64, 3)(_IN[kind], numba.int64, numba.int64, _OUT[kind])
        for kind in ("uint32", "uint64")
    )
)
def near(bits: npt.NDArray[Any], low: int, high: int, found: npt.NDArray[Any]) -> tuple[int, int, int]:
    """The magnitudes in [low, high), in their order.

    Args:
        bits: of floats [n], as unsigned integers of their width.
        low: bits of a magnitude.
        high: of one that is as large or larger.
        found: [n]; the first are written, those behind may be.

    Returns:
        How many magnitudes are ``high`` or more, how many were found, and the largest of all.
    """
    whole = bits.dtype.type
    # a sign's place is 31 or 63
    magnitude, least, most = whole((1 << (8 * bits.itemsize - 1)) - 1), whole(low), whole(high)
    wide = whole(most - least)
    above, count, largest = 0, np.uintp(0), whole(0)
    for start in range(0, bits.size, 1024):
        part, beyond = bits[start : start + 1024], np.int32(0)
        for i in range(part.size):
            value = whole(part[i] & magnitude)
            largest = max(largest, value)
            beyond = np.int32(beyond + np.int32(value >= most))
        above += int(beyond)
        for i in range(part.size):
            value = whole(part[i] & magnitude)
            found[count] = value
            count += np.uintp(whole(value - least) < wide)  # what is below wraps around
    return above, int(count), int(largest)


@_compiled(numba.void(*[_OUT["int64"]] * 4, *[_IN["float32"]] * 4, _IN["int64"], _IN["int64"], numba.float64))
def elect(
    positive: Integers,
    negative: Integers,
    for_positive: Integers,
    for_negative: Integers,
    x0: Singles,
    x1: Singles,
    x2: Singles,
    x3: Singles,
    edges: Integers,
    weights: Integers,
    scale: float,
) -> None:
    """Add what is kept of four vectors to the sums of TIES, in one pass over these.

    Args:
        positive: [n], as the next three: see :class:`headwater.merging.ties.TiesSums`.
        negative: of the magnitudes of negative values.
        for_positive: of weights.
        for_negative: of weights.
        x0: [n], as the next three.
        x1: the second.
        x2: the third.
        x3: the fourth.
        edges: of each, the bits of a magnitude; larger ones are kept.
        weights: [4], each at least 0 and all together below 2^29.
        scale: a power of two.
    """
    step, magnitude, nothing, none = np.float32(scale), np.int32(0x7FFFFFFF), np.int32(0), np.float32(0)
    none64 = np.int64(0)
    w0, w1, w2, w3 = (
        np.int32(weights[0]),
        np.int32(weights[1]),
        np.int32(weights[2]),
        np.int32(weights[3]),
    )
    d0, d1, d2, d3 = (np.float64(w0), np.float64(w1), np.float64(w2), np.float64(w3))
    e0, e1, e2, e3 = np.int32(edges[0]), np.int32(edges[1]), np.int32(edges[2]), np.int32(edges[3])
    b0, b1, b2, b3 = x0.view(np.int32), x1.view(np.int32), x2.view(np.int32), x3.view(np.int32)
    for i in range(positive.size):
        r0 = np.rint(x0[i] * step) if np.int32(b0[i] & magnitude) > e0 else none
        r1 = np.rint(x1[i] * step) if np.int32(b1[i] & magnitude) > e1 else none
        r2 = np.rint(x2[i] * step) if np.int32(b2[i] & magnitude) > e2 else none
        r3 = np.rint(x3[i] * step) if np.int32(b3[i] & magnitude) > e3 else none
        u0, u1 = np.int64(np.float64(r0) * d0), np.int64(np.float64(r1) * d1)
        u2, u3 = np.int64(np.float64(r2) * d2), np.int64(np.float64(r3) * d3)
        up = max(u0, none64) + max(u1, none64) + max(u2, none64) + max(u3, none64)
        positive[i] += up
        negative[i] += up - (u0 + u1 + u2 + u3)
        up01 = np.int32((w0 if r0 > 0 else nothing) + (w1 if r1 > 0 else nothing))
        up23 = np.int32((w2 if r2 > 0 else nothing) + (w3 if r3 > 0 else nothing))
        down01 = np.int32((w0 if r0 < 0 else nothing) + (w1 if r1 < 0 else nothing))
        down23 = np.int32((w2 if r2 < 0 else nothing) + (w3 if r3 < 0 else nothing))
        for_positive[i] += np.int64(np.int32(up01 + up23))
        for_negative[i] += np.int64(np.int32(down01 + down23))


@_compiled(
    numba.void(*[_OUT["float64"]] * 4, _IN["float64"], numba.float64),
    numba.void(*[_OUT["float64"]] * 4, _IN["float32"], numba.float64),
)
def elect_shares(
    positive: Doubles,
    negative: Doubles,
    for_positive: Doubles,
    for_negative: Doubles,
    values: npt.NDArray[Any],
    weight: float,
) -> None:
    """Add a vector to the sums of TIES in float64.

    Args:
        positive: [n], as the next three: see :class:`headwater.merging.offline.rules.sums.ElectedSigns`.
        negative: of the magnitudes of negative values.
        for_positive: of weights.
        for_negative: of weights.
        values: [n].
        weight: of the vector.
    """
    for i in range(values.size):
        value = np.float64(values[i])
        share = value * weight
        up = share if share > 0.0 else 0.0
        positive[i] += up
        negative[i] += up - share
        for_positive[i] += weight if value > 0.0 else 0.0
        for_negative[i] += weight if value < 0.0 else 0.0


@_compiled(numba.void(_IN["int32"], numba.int64, _OUT["int64"]))
def last_places(bits: npt.NDArray[np.int32], edge: int, places: Integers) -> None:
    """Where the last values of one magnitude are, the last one first.

    Args:
        bits: of floats [n], as integers; at least so many have the magnitude as there are places.
        edge: its bits.
        places: [k], is written.
    """
    magnitude, wanted = np.int32(0x7FFFFFFF), np.int32(edge)
    stop, count = bits.size, 0
    while count < places.size and stop > 0:
        start = max(stop - 1024, 0)
        part, some = bits[start:stop], np.int32(0)
        for i in range(part.size):
            some |= np.int32(np.int32(part[i] & magnitude) == wanted)
        if some:
            for i in range(part.size - 1, -1, -1):
                if count < places.size and np.int32(part[i] & magnitude) == wanted:
                    places[count] = start + i
                    count += 1
        stop = start


@_compiled(*(numba.void(_OUT[kind], numba.int64) for kind in ("int32", "int64")))
def clear(bits: npt.NDArray[Any], edge: int) -> None:
    """Set to zero what is smaller than ``edge``.

    Args:
        bits: of floats [n], as integers of their width.
        edge: bits of the smallest magnitude that stays.
    """
    whole = bits.dtype.type
    magnitude, least = whole((1 << (8 * bits.itemsize - 1)) - 1), whole(edge)
    for i in range(bits.size):
        bits[i] = bits[i] if whole(bits[i] & magnitude) >= least else whole(0)
