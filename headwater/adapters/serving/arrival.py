"""Arrival: how much of a small change is left once the changed weight is rounded to a type, measured."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from headwater.errors import ModelError
from headwater.merging.offline.tensor_file import Array

LEAST, MOST = 0.9, 0.5
"""What must arrive of a change, and the error that it may have: what is offered without ``--anyway``."""
_NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
     -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
     0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
     0.7229568362236023, 1.0], np.float32,
)  # fmt: skip
"""The values of NormalFloat4 (arXiv 2305.14314, appendix E)."""
_BLOCK = 64


@dataclass
class Arrival:
    """Of a change Δ what is in rounded weights Ŵ, against the rounded base Ŵ₀, over all that was measured.

    ``part`` is ⟨Ŵ − Ŵ₀, Δ⟩ / ‖Δ‖², ``error`` ‖Ŵ − Ŵ₀ − Δ‖ / ‖Δ‖: 1 and 0 where nothing is lost.
    """

    inner: float = 0.0
    missed: float = 0.0
    energy: float = 0.0

    def add(self, before: Array, change: Array, after: Array) -> None:
        """Take in some rows, float32: of the base as it is served, the change, and the result."""
        real = np.subtract(after, before, dtype=np.float32)
        self.inner += float(np.vdot(real, change))
        self.energy += float(np.vdot(change, change))
        real -= change
        self.missed += float(np.vdot(real, real))

    def join(self, other: Arrival) -> None:
        """Take in what was measured elsewhere."""
        self.inner += other.inner
        self.missed += other.missed
        self.energy += other.energy

    @property
    def part(self) -> float:
        """1 where all of it arrives."""
        return self.inner / self.energy if self.energy else 1.0

    @property
    def error(self) -> float:
        """0 where nothing else does."""
        return float(np.sqrt(self.missed / self.energy)) if self.energy else 0.0

    @property
    def sound(self) -> bool:
        """Whether it is what the adapter does."""
        return self.part >= LEAST and self.error <= MOST

    def require(self, who: str, hint: str) -> None:
        """Refuse a result that is not what the adapter does.

        Raises:
            ModelError: too little arrives.
        """
        if not self.sound:
            raise ModelError(
                who,
                expected=f"{LEAST:.0%} of the change to arrive, with an error of at most {MOST:.0%}",
                got=f"{self.part:.1%} with an error of {self.error:.0%} of its length",
                hint=hint,
            )


def some_rows(rows: int) -> slice:
    """Rows on which a change is measured: some 16, evenly spread."""
    return slice(None, None, max(1, rows // 16))


def to_bfloat16(values: Array) -> Array:
    """Bits of the nearest bfloat16, ties to even: uint16. Finite values only."""
    values = np.ascontiguousarray(values, np.float32)
    out = np.empty(values.shape, np.uint16)
    round_bfloat16(values, np.empty(values.shape, np.uint32), out)
    return out


def round_bfloat16(values: Array, scratch: Array, out: Array) -> None:
    """As :func:`to_bfloat16`, without memory of its own: ``scratch`` is uint32, ``out`` uint16."""
    bits = values.view(np.uint32)
    np.right_shift(bits, 16, out=scratch)
    np.bitwise_and(scratch, 1, out=scratch)
    np.add(scratch, 0x7FFF, out=scratch)
    np.add(scratch, bits, out=scratch)
    np.right_shift(scratch, 16, out=scratch)
    np.copyto(out, scratch, casting="same_kind")


def from_bfloat16(bits: Array) -> Array:
    """float32 of bfloat16's bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def rounded_nf4(values: Array) -> Array:
    """As bitsandbytes' nf4 in blocks of 64 along a row gives it back, scales not quantised again."""
    blocks = values.astype(np.float32).reshape(-1, min(_BLOCK, values.size))
    scale = np.abs(blocks).max(axis=1, keepdims=True)
    scale[scale == 0] = 1
    codes = np.searchsorted((_NF4[1:] + _NF4[:-1]) / 2, blocks / scale)
    found: Array = (_NF4[codes] * scale).reshape(values.shape)
    return found


def roundings() -> dict[str, Callable[[Array], Array]]:
    """What float32 [rows, columns] becomes, by name of a type; those of GGUF where gguf is installed."""
    found: dict[str, Callable[[Array], Array]] = {
        "bfloat16": lambda values: from_bfloat16(to_bfloat16(values)),
        "float16": lambda values: values.astype(np.float16).astype(np.float32),
        "nf4": rounded_nf4,
    }
    if importlib.util.find_spec("gguf") is None:
        return found
    import gguf

    for name in ("Q8_0", "Q4_0", "Q4_1"):
        found[name] = functools.partial(_rounded_gguf, gguf.quants, gguf.GGMLQuantizationType[name])
    return found


def _rounded_gguf(quants: ModuleType, kind: int, values: Array) -> Array:
    found: Array = quants.dequantize(quants.quantize(values, kind), kind)
    return found


def arrivals(
    changes: Iterator[tuple[Array, Array]], types: Mapping[str, Callable[[Array], Array]]
) -> dict[str, Arrival]:
    """What of changes arrives in each type.

    Args:
        changes: rows of the base's weight and their change, float32.
        types: of :func:`roundings`.
    """
    found = {name: Arrival() for name in types}
    for weight, change in changes:
        for name, rounding in types.items():
            served = rounding(weight)  # a base that is served in that type is on its grid already
            found[name].add(served, change, rounding(served + change))
    return found
