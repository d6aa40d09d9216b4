"""BudgetCodec: as many values of each tensor as its bytes are worth, within a number of bytes.

Water-filling. A tensor that keeps its n largest of N magnitudes, with their mean as the scale, has a squared
error of ‖x‖² − G(n), G(n) = (Σ of the n magnitudes)²/n, and costs about N·(H2(n/N) + n/N) bits and a scale's.
The densities that leave the least error for the bits maximise Σ G(n) − λ·bits(n), tensor by tensor, at one
price λ: what the next bit saves is the same everywhere. λ is found by halving, and the body itself is
measured: it is never longer than the budget. What is chosen hangs on the values, so it tells of them;
decoding needs it not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.compression.codec import Codec
from headwater.compression.reader import Floats, flat_finite
from headwater.compression.ternary import largest
from headwater.protocol.messages import Payload
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, sparse_state

Doubles = npt.NDArray[np.float64]

_COUNTS = 160
"""How many numbers of values are looked at for each tensor."""
_SCALE_BITS = 32
_HALVINGS = 40
_TRIES = 6


class BudgetCodec(Codec):
    """Writes with ``inner``, which keeps all values other than 0 and takes their mean magnitude as the scale.

    Args:
        inner: ``compeft.v2`` at density 1. ``compeft.v1`` codes small tensors together, at one price for all.
        budget: the most bytes of a body.
    """

    def __init__(self, inner: Codec, budget: int) -> None:
        self.id, self._inner, self.budget = inner.id, inner, budget

    def encode(self, state: AdapterState, *, key: Key) -> Payload:
        """The payload of ``state``, within the budget; ``key`` is not used."""
        return self.round_trip(state, key=key)[0]

    def round_trip(self, state: AdapterState, *, key: Key) -> tuple[Payload, AdapterState]:
        """The payload of ``state``, and its values."""
        flat = list(flat_finite(state, self.id).values())
        curves = [_Curve.of(values) for values in flat]
        found = [self._fitted(state.spec, flat, curves, choose, key) for choose in (_watered, _even)]
        return max(found, key=lambda one: one[0])[1:]

    def _fitted(
        self,
        spec: StateSpec,
        flat: Sequence[Floats],
        curves: Sequence[_Curve],
        choose: Callable[[Sequence[_Curve], float], list[int]],
        key: Key,
    ) -> tuple[float, Payload, AdapterState]:
        """What ``choose`` gains, and its body: as long as the budget lets it be, give or take 0.2 %."""
        room, best = 8.0 * self.budget, None
        most = sum(float(curve.bits[-1]) for curve in curves)
        for _ in range(_TRIES):
            counts = choose(curves, room)
            payload, decoded = self._written(spec, flat, counts, key)
            spare = self.budget - len(payload.body)
            gain = sum(curve.gain(n) for curve, n in zip(curves, counts, strict=True))
            if spare >= 0 and (best is None or gain > best[0]):
                best = gain, payload, decoded
            if 0 <= spare <= self.budget // 500 or (spare > 0 and room >= most):
                break
            room = max(0.0, room + 8 * spare - (8 if spare < 0 else 0))  # by what the estimate was off
        return best or (0.0, *self._written(spec, flat, [0] * len(flat), key))  # one byte

    def _written(
        self, spec: StateSpec, flat: Sequence[Floats], counts: Sequence[int], key: Key
    ) -> tuple[Payload, AdapterState]:
        nothing = np.zeros(0, np.intp)
        places = [largest(v, n) if n else nothing for v, n in zip(flat, counts, strict=True)]
        entries = [values[at] for values, at in zip(flat, places, strict=True)]
        return self._inner.round_trip(sparse_state(spec, places, entries), key=key)

    def decode(self, payload: Payload, spec: StateSpec) -> AdapterState:
        """As the codec that wrote it."""
        return self._inner.decode(payload, spec)

    def max_bytes(self, spec: StateSpec) -> int:
        """The budget, where the format itself is not shorter."""
        return min(self.budget, self._inner.max_bytes(spec))


@dataclass(frozen=True, slots=True)
class _Curve:
    """What a tensor gains and costs at some numbers of values.

    Args:
        numel: N.
        sums: of the largest magnitudes, none, one, two …
        counts: n, ascending.
        gains: G(n).
        bits: what they cost, about.
    """

    numel: int
    sums: Doubles
    counts: npt.NDArray[np.int64]
    gains: Doubles
    bits: Doubles

    @staticmethod
    def of(values: Floats) -> _Curve:
        """Of a tensor [N]: at 0, and at counts that grow by equal factors."""
        magnitudes = np.sort(np.abs(values[values != 0]))[::-1].astype(np.float64)
        sums = np.concatenate([[0.0], np.cumsum(magnitudes)])
        grid = np.geomspace(1, magnitudes.size, _COUNTS) if magnitudes.size else np.zeros(0)
        return _Curve._at(values.size, sums, np.concatenate([[0.0], grid]))

    @staticmethod
    def _at(numel: int, sums: Doubles, grid: Doubles) -> _Curve:
        counts = np.unique(np.rint(grid).astype(np.int64))
        gains = sums[counts] ** 2 / np.maximum(counts, 1)
        return _Curve(numel, sums, counts, gains, _bits(numel, counts))

    def gain(self, count: int) -> float:
        """G of any number of values."""
        return float(self.sums[count] ** 2 / max(1, count))

    def near(self, index: int) -> _Curve:
        """At counts between those beside one of these."""
        low, high = self.counts[max(0, index - 1)], self.counts[min(index + 1, self.counts.size - 1)]
        grid = np.concatenate([np.linspace(low, high, _COUNTS), self.counts[[0, index]].astype(np.float64)])
        return _Curve._at(self.numel, self.sums, grid)


def _bits(numel: int | npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> Doubles:
    """What so many of ``numel`` values cost, about, in 64ths of a bit: logarithms are rounded variously."""
    k = counts / np.maximum(1, numel)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = np.nan_to_num(-k * np.log2(k)) + np.nan_to_num(-(1 - k) * np.log2(1 - k))
    return np.asarray(np.rint((numel * (entropy + k) + _SCALE_BITS * (counts > 0)) * 64) / 64)


def _even(curves: Sequence[_Curve], room: float) -> list[int]:
    """One density for all within ``room`` bits: the formats say equal counts in fewer bits."""
    sizes = np.array([curve.numel for curve in curves], np.int64)
    most = np.array([curve.sums.size - 1 for curve in curves], np.int64)
    low, high = -40.0, 0.0
    chosen = np.zeros(len(curves), np.int64)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = np.minimum(np.maximum(1, np.floor(2.0**middle * sizes).astype(np.int64)), most)
        if float(_bits(sizes, found).sum()) <= room:
            low, chosen = middle, found
        else:
            high = middle
    return [int(n) for n in chosen]


def _watered(curves: Sequence[_Curve], room: float) -> list[int]:
    """The numbers of values that gain most within ``room`` bits."""
    near = [curve.near(index) for curve, index in zip(curves, _solved(curves, room), strict=True)]
    return [int(curve.counts[i]) for curve, i in zip(near, _solved(near, room), strict=True)]


def _solved(curves: Sequence[_Curve], room: float) -> list[int]:
    """For each tensor, which of its numbers."""
    width = max((curve.counts.size for curve in curves), default=0)
    gains, bits = np.full((len(curves), width), -np.inf), np.zeros((len(curves), width))
    for row, curve in enumerate(curves):
        gains[row, : curve.counts.size], bits[row, : curve.counts.size] = curve.gains, curve.bits
    rows = np.arange(len(curves))
    low, high = 0.0, float(gains.max(initial=1e-300))
    chosen = gains.argmax(axis=1)  # at no price; of equal ones the fewest values
    if float(bits[rows, chosen].sum()) <= room:
        return [int(index) for index in chosen]
    chosen = np.zeros(len(curves), np.int64)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = (gains - middle * bits).argmax(axis=1)
        if float(bits[rows, found].sum()) <= room:
            high, chosen = middle, found
        else:
            low = middle
    return [int(index) for index in chosen]
