"""Fixed point: float values as int64 multiples of 2^-bits, so that sums do not depend on their order.

Entry points: :func:`add_bounded`, or :func:`require_bounded` and then :func:`add_fixed` or :func:`to_fixed`
block by block (:func:`blocks`); :func:`from_fixed` at the end. The number of bits comes from
:meth:`MergePlan.scale_bits`, which proves that no sum can overflow.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headwater.errors import DecodeError, UpdateRejected
from headwater.kernels import gate
from headwater.state import StateSpec

Integers = npt.NDArray[np.int64]
Singles = npt.NDArray[np.float32]
BLOCK = 2**15
"""Values folded at a time, so that temporaries stay in a core's cache."""
_SAVED = 1.5
"""Nanoseconds a value by which NumPy's passes take longer than one compiled pass."""


def zeros(size: int) -> Tensor:
    """int64 [size], from NumPy: it asks for large pages, which make adding a third faster; torch does not."""
    return torch.from_numpy(np.zeros(size, np.int64))


def blocks(size: int) -> Iterator[slice]:
    """Slices that cover ``range(size)``."""
    for start in range(0, size, BLOCK):
        yield slice(start, min(start + BLOCK, size))


def float32_at_most(bound: float) -> float:
    """The largest float32 ≤ ``bound``, which is not negative: what fp32 values can be held to."""
    nearest = np.float32(min(bound, float(np.finfo(np.float32).max)))
    return float(np.nextafter(nearest, np.float32(0)) if float(nearest) > bound else nearest)


def require_bounded(
    vector: Tensor, spec: StateSpec, *, bound: float, who: str, non_negative: bool = False
) -> None:
    """Refuse a vector with a value that is not finite, too large or, if asked, negative.

    Args:
        vector: float32 [spec.numel], the values of ``spec`` in name order.
        spec: names the tensor in the message.
        bound: the largest magnitude that is allowed, itself included where float32 has it.
        who: whose vector it is, for the message: ``client edge-7``.
        non_negative: refuse values below zero too.

    Raises:
        UpdateRejected: names ``who``, the tensor, and the first value that is wrong.
    """
    if vector.numel() == 0:
        return
    # torch compares tensors with a bound as float32, Python numbers with it as float64
    limit = float32_at_most(bound)
    low, high = torch.aminmax(vector)  # both are NaN if any value is
    floor = 0.0 if non_negative else -limit
    if float(low) >= floor and float(high) <= limit:
        return
    wrong = ~((vector >= floor) & (vector <= limit))
    first = int(wrong.nonzero()[0])
    end = 0
    for tensor in spec:
        end += tensor.numel
        if first < end:
            break
    raise UpdateRejected(
        f"{who}, tensor {tensor.name}",
        expected=f"finite values in [{0.0 if non_negative else -bound:g}, {bound:g}]",
        got=f"{float(vector[first])!r} ({int(wrong.sum())} such values in the update)",
        hint="The client is left out of this round. Look for a diverged training, or raise the bound.",
    )


def within_bound(values: Singles, bound: float) -> bool:
    """Whether :func:`require_bounded` lets these values pass."""
    limit = float32_at_most(bound)
    return not values.size or bool(-limit <= values.min() and values.max() <= limit)  # NaN is in no range


def require_range(
    values: Tensor, what: str, *, low: Tensor | int | float, high: Tensor | int | float
) -> None:
    """Refuse a decoded accumulator whose ``values`` are not all in [low, high], inclusive.

    Raises:
        DecodeError: says ``what`` they are.
    """
    outside = (values < low) | (values > high)
    if bool(outside.any()):
        first = int(outside.reshape(-1).nonzero()[0])
        raise DecodeError(
            f"accumulator, {what}",
            expected="sums that the updates of its clients can add up to",
            got=f"{values.reshape(-1)[first].item()} at {first}",
        )


def require_norm(values: Tensor, what: str, *, most: float, slack: float = 0.0) -> None:
    """Refuse values of an accumulator whose L2 norm no updates of a bounded norm add up to.

    Args:
        values: floats.
        what: names them.
        most: the bound; float32 may have rounded each update's norm to a little more.
        slack: what rounding to units can add.

    Raises:
        DecodeError: says ``what`` they are.
    """
    norm, within = float(values.double().norm()), most * (1 + 1e-6) + slack
    if norm > within:
        raise DecodeError(f"accumulator, norm of {what}", expected=f"at most {within:g}", got=f"{norm:g}")


def most_units(bound: float, bits: int) -> int:
    """The largest |round(x·2^bits)| of a fp32 x that :func:`require_bounded` lets through."""
    return round(float32_at_most(bound) * 2.0**bits)


def to_fixed(values: Tensor, bits: int) -> Tensor:
    """round(values·2^bits) as int64, ties to even.

    ``values`` must have passed :func:`require_bounded`. Scaling by a power of two is exact in
    float32 and float64, and so is the conversion of a rounded value: there is one rounding, of at
    most half a unit 2^-bits, and the result does not depend on dtype, threads or instruction set.
    """
    return values.mul(2.0**bits).round_().long()


def add_fixed(total: Tensor, values: Tensor, bits: int, weight: int) -> None:
    """Add weight·round(values·2^bits) to ``total`` in place, as :func:`to_fixed` rounds.

    Args:
        total: int64 [n].
        values: float32 [n], of the bound for which ``bits`` and the weights leave room.
        bits: see :func:`to_fixed`.
        weight: at least 1.
    """
    sums, floats = total.numpy(), values.numpy()
    scaled = np.empty(min(BLOCK, floats.size), np.float32)
    units = np.empty(scaled.size, np.int64)
    for part in blocks(floats.size):
        own = slice(0, part.stop - part.start)
        fixed_into(units[own], scaled[own], floats[part], bits, weight)
        np.add(sums[part], units[own], out=sums[part])


def add_bounded(
    total: Tensor, vector: Tensor, spec: StateSpec, *, bound: float, bits: int, weight: int, who: str
) -> None:
    """:func:`require_bounded` and :func:`add_fixed`, in one pass over memory where loops are compiled.

    Raises:
        UpdateRejected: as the former; ``total`` is as it was.
    """
    values = vector.numpy()
    if (compiled := gate.GATE.after(_SAVED * values.size)) is None or not values.flags.c_contiguous:
        require_bounded(vector, spec, bound=bound, who=who)
        add_fixed(total, vector, bits, weight)
        return
    limit, sums, raw = bits_of(float32_at_most(bound)), total.numpy(), values.view(np.int32)
    done = compiled.add_units(sums, values, raw, limit, 2.0**bits, weight)
    if done < values.size:
        compiled.add_units(sums[:done], values[:done], raw[:done], limit, 2.0**bits, -weight)
        require_bounded(vector, spec, bound=bound, who=who)


def bits_of(magnitude: float) -> int:
    """Of a float32 ≥ 0, as an integer: they are in the order of the values."""
    return int(np.float32(magnitude).view(np.int32))


def add_fixed_at(total: Tensor, places: Integers, values: Singles, bits: int, weight: int) -> None:
    """What :func:`add_fixed` does of a vector that is 0 but for ``values`` [k] at distinct ``places`` [k]."""
    units = np.empty(values.size, np.int64)
    fixed_into(units, np.empty(values.size, np.float32), values, bits, weight)
    total.numpy()[places] += units


def fixed_into(units: Integers, scaled: Singles, values: Singles, bits: int, weight: int) -> None:
    """Write weight·round(values·2^bits) into ``units`` [n]; ``scaled`` [n] is scratch."""
    np.multiply(values, np.float32(2.0**bits), out=scaled)
    np.rint(scaled, out=scaled)
    np.copyto(units, scaled, casting="unsafe")  # exact: whole numbers below 2^62
    if weight != 1:
        np.multiply(units, weight, out=units)


def from_fixed(sums: Tensor, bits: int) -> Tensor:
    """sums·2^-bits as float64: exact up to 2^53 units, else rounded once."""
    return sums.double().mul_(2.0**-bits)
