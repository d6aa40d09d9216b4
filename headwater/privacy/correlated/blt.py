"""BLT: a buffered linear Toeplitz matrix (Dvijotham, McMahan et al. 2024, arXiv 2404.16706).

c₀ = 1 and c_j = Σ_i ω_i·θ_i^{j−1}: every coefficient counts, however far back, yet the memory is one vector
for each θ (2408.08868, algorithms 2 and 3). Two to four are within a few percent of the best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from headwater.errors import ConfigError
from headwater.privacy.correlated.mechanism import Floats, Memory
from headwater.privacy.correlated.toeplitz import Toeplitz


@dataclass(frozen=True, slots=True)
class BufferedToeplitz(Toeplitz):
    """A BLT.

    Args:
        decays: θ, each in [0, 1).
        scales: ω, one for each, above 0; at most 1 together, so that coefficients never rise.

    Raises:
        ConfigError: other parameters.
    """

    kind: ClassVar[str] = "blt"
    decays: tuple[float, ...]
    scales: tuple[float, ...]

    def __post_init__(self) -> None:
        fits = len(self.decays) == len(self.scales) > 0
        if not (
            fits
            and all(0 <= theta < 1 for theta in self.decays)
            and all(omega > 0 for omega in self.scales)
            and sum(self.scales) <= 1
        ):
            raise ConfigError(
                "BLT",
                expected="as many scales above 0, at most 1 together, as decays in [0, 1)",
                got=f"decays {self.decays}, scales {self.scales}",
            )

    @classmethod
    def of_zeros(cls, decays: Floats, zeros: Floats) -> BufferedToeplitz:
        """The one with c(x) = Π(1 − ζ_i·x) / Π(1 − θ_i·x): its inverse has the decays ζ.

        Args:
            decays: θ, falling.
            zeros: ζ, with θ₁ > ζ₁ > θ₂ > ζ₂ > …, which makes every scale positive (arXiv 2504.21413).
        """
        return cls(tuple(decays.tolist()), tuple(residues(decays, zeros).tolist()))

    @property
    def buffers(self) -> int:
        """One for each decay."""
        return len(self.decays)

    def coefficients(self, rounds: int) -> Floats:
        """1, Σω, Σωθ, Σωθ², and so on."""
        return series(np.array(self.decays), np.array(self.scales), rounds)

    def earlier(self, memory: Memory) -> Floats:
        """Σ ω_i·m_i."""
        total: Floats = np.array(self.scales) @ memory.buffers
        return total

    def enter(self, memory: Memory, x: Floats) -> Memory:
        """m_i ← θ_i·m_i + x."""
        return Memory(memory.step + 1, np.array(self.decays)[:, None] * memory.buffers + x)


def series(decays: Floats, scales: Floats, rounds: int) -> Floats:
    """The first coefficients of 1 + Σ ω_i·x / (1 − θ_i·x)."""
    powers = np.power(decays[:, None], np.arange(max(rounds - 1, 0)))
    return np.concatenate([[1.0], scales @ powers])[:rounds]


def residues(decays: Floats, zeros: Floats) -> Floats:
    """ω_i = Π_j (θ_i − ζ_j) / Π_{j≠i} (θ_i − θ_j): partial fractions of Π(1 − ζx) / Π(1 − θx)."""
    apart = decays[:, None] - decays
    np.fill_diagonal(apart, 1.0)
    omega: Floats = np.prod(decays[:, None] - zeros, axis=1) / np.prod(apart, axis=1)
    return omega
