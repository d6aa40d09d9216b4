"""What ComPEFT keeps of a tensor, whatever the format: :class:`CompeftSelection`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.compression.entropy import Bits, look_up
from headwater.compression.reader import Floats
from headwater.compression.ternary import kept, largest_values
from headwater.errors import ConfigError
from headwater.state import AdapterState, StateSpec, sparse_state

_SMALLEST, _LARGEST = 2.0**-149, float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Sent:
    """A tensor as it is coded: where it is not 0, and there whether it is −``scale`` (1) or ``scale`` (0)."""

    places: npt.NDArray[np.intp]
    minus: Bits
    scale: float

    def entries(self) -> Floats:
        """The values at ``places``."""
        return look_up(np.array([self.scale, -self.scale], np.float32), self.minus)


def sent_state(spec: StateSpec, sent: Mapping[str, Sent]) -> AdapterState:
    """What a state is decoded to: of each tensor by name; one that is not there is all zero."""
    nothing = Sent(np.zeros(0, np.intp), np.zeros(0, np.uint8), 0.0)
    parts = [sent.get(t.name, nothing) for t in spec]
    return sparse_state(spec, [part.places for part in parts], [part.entries() for part in parts])


@dataclass(frozen=True, slots=True)
class CompeftSelection:
    """The largest values' signs, and one scale.

    Args:
        density: 0 < k ≤ 1; a tensor keeps max(1, ⌊k·N⌋) values.
        alpha: scale = alpha·std (ddof = 1) as in the paper; the mean kept magnitude if ``None``, and
            wherever std is undefined or 0 (N = 1, a constant tensor).
        over_all: N is that of all tensors together, of which some may keep nothing.

    Raises:
        ConfigError: one of them is out of range.
    """

    density: float
    alpha: float | None
    over_all: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ConfigError("codec compeft", expected="0 < density <= 1", got=repr(self.density))
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise ConfigError("codec compeft", expected="alpha > 0", got=repr(self.alpha))

    def of_all(self, tensors: Sequence[Floats]) -> list[Sent]:
        """What is sent of each tensor's finite values."""
        if not self.over_all or len(tensors) < 2:
            return [self.of(values) for values in tensors]
        whole = np.concatenate(tensors)
        places, chosen = largest_values(whole, kept(whole.size, self.density))
        starts = np.cumsum([0, *(values.size for values in tensors[:-1])])
        cuts = np.searchsorted(places, starts[1:])
        return [
            self._sent(values, here - start, part)
            for values, start, here, part in zip(
                tensors, starts, np.split(places, cuts), np.split(chosen, cuts), strict=True
            )
        ]

    def of(self, values: Floats) -> Sent:
        """What is sent of a tensor's finite ``values`` [N] by itself."""
        return self._sent(values, *largest_values(values, kept(values.size, self.density)))

    def _sent(self, values: Floats, places: npt.NDArray[np.intp], chosen: Floats) -> Sent:
        return Sent(places, (chosen < 0).view(np.uint8), self._scale(values, chosen))

    def _scale(self, values: Floats, kept: Floats) -> float:
        """The magnitude that stands for every kept value; 0 if none is kept."""
        magnitudes = np.abs(kept)
        if not magnitudes.size:
            return 0.0
        mean = float(magnitudes.mean(dtype=np.float64))
        if self.alpha is None:
            return mean
        ternary = magnitudes.min() == magnitudes.max() and magnitudes.size == np.count_nonzero(values)
        sigma = 0.0 if ternary else float(values.std(dtype=np.float64, ddof=1))  # N = 1 is ternary
        return min(max(self.alpha * sigma, _SMALLEST), _LARGEST) if sigma > 0 else mean
