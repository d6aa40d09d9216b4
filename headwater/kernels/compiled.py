"""The loops, compiled by numba as this module is imported, which :mod:`headwater.kernels.gate` does.

Each gives the bits of the NumPy code where it is called. There is no fast math: a product and a sum are
rounded one after the other, and sums of floats keep their order. Integers as wide as the floats stand for
them, since the bits of floats of one sign are in the order of their values. Every result of an operation on
narrow integers is made narrow again: numba widens to 64 bits, and then half as many fit a register.

Machine code is kept beside this file, or in the user's cache where that is not writable. Where neither is,
``KEPT`` is False, and each process compiles anew.
"""

from __future__ import annotations

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

KEPT = True
_IN = {
    name: numba.types.Array(getattr(numba.types, name), 1, "C", readonly=True)
    for name in ("int32", "int64", "float32", "float64")
}
_OUT = {name: getattr(numba.types, name)[::1] for name in _IN}


def _compiled(*signatures: object) -> Callable[[Function], Function]:
    def compile_it(function: Function) -> Function:
        global KEPT
        settings = {"nogil": True, "error_model": "numpy"}
        try:
            made: Function = numba.njit(list(signatures), cache=True, **settings)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            KEPT = False
            made = numba.njit(list(signatures), **settings)(function)
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
        for kind in ("int32", "int64")
    )
)
def near(bits: npt.NDArray[Any], low: int, high: int, found: npt.NDArray[Any]) -> tuple[int, int, int]:
    """The magnitudes in [low, high), in their order.

    Args:
        bits: of floats [n], as integers of their width.
        low: bits of a magnitude.
        high: of one that is as large or larger.
        found: [n]; the first are written, those behind may be.

    Returns:
        How many magnitudes are ``high`` or more, how many were found, and the largest of all.
    """
    whole = bits.dtype.type
    # a sign's place is 31 or 63
    magnitude, least, most = whole((1 << (8 * bits.itemsize - 1)) - 1), whole(low), whole(high)
    above, count, largest = 0, np.uintp(0), whole(0)
    for start in range(0, bits.size, 1024):
        part = bits[start : start + 1024]
        beyond = np.int32(0)
        for i in range(part.size):
            value = whole(part[i] & magnitude)
            largest = max(largest, value)
            beyond = np.int32(beyond + np.int32(value >= most))
        above += int(beyond)
        for i in range(part.size):
            value = whole(part[i] & magnitude)
            found[count] = value
            count += np.uintp((value >= least) & (value < most))
    return above, int(count), int(largest)
