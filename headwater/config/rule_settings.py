"""Settings of merge rules that ``headwater merge`` and ``[strategy]`` of a federation file have in common.

A rule of :mod:`headwater.merging.offline.rules` and a strategy of :mod:`headwater.config.strategy` extend
the same class, so that a setting has one name, default, range and description. ``fewest`` is how many
adapters, or updates, such settings need.
"""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator

from headwater.config.settings import Settings


class Trimming(Settings):
    """A fraction of the values is kept: the largest."""

    density: float = Field(
        default=0.2, gt=0, le=1, description="fraction of an adapter's values that is kept"
    )


class Dropping(Settings):
    """Values are kept at random."""

    density: float = Field(
        default=0.5, gt=0, le=1, description="probability that a value is kept; it is divided by it"
    )


class RankedDropping(Settings):
    """Values are kept at random, large ones more often."""

    density: float = Field(default=0.7, gt=0, le=1, description="mean probability that a value is kept")
    epsilon: float = Field(
        default=0.07,
        ge=0,
        lt=0.5,
        validate_default=True,
        description="how far a row's probabilities lie from the density",
    )

    @field_validator("epsilon")
    @classmethod
    def _probabilities(cls, value: float, info: ValidationInfo) -> float:
        density = info.data.get("density")  # absent where it is wrong itself
        if density is not None and not (density - value > 0 and density + value <= 1):
            raise ValueError(f"probabilities density ± epsilon in (0, 1] with density {density:g}")
        return value


class Sifting(Settings):
    """Neither the smallest values nor the outliers are kept."""

    density: float = Field(default=0.1, gt=0, le=1, description="fraction of a weight's values that is kept")
    gamma: float = Field(
        default=0.01, ge=0, lt=1, description="fraction of a weight's values, the largest, that is dropped"
    )


class Selecting(Settings):
    """The values that vary most are kept."""

    density: float = Field(
        default=0.1, gt=0, le=1, description="fraction of the values that vary which is kept"
    )


class Masking(Settings):
    """Values that are in several masks are kept."""

    strictness: float = Field(
        default=0.4, gt=0, description="λ of the masks: how much of the others a value must outweigh"
    )
    agreement: int = Field(default=2, ge=1, description="adapters in whose masks a value must be")

    @property
    def fewest(self) -> int:
        """Adapters that can be merged."""
        return 2


class Competing(Settings):
    """Values compete."""

    density: float = Field(
        default=0.1, gt=0, le=1, description="fraction of an adapter's values that competes"
    )


class Dropped(Settings):
    """The ends of each value are left out."""

    drop: int = Field(default=1, ge=0, description="adapters that are left out at each end of each value")

    @property
    def fewest(self) -> int:
        """Adapters that can be merged."""
        return 2 * self.drop + 1


class Faulty(Settings):
    """Some may be hostile."""

    faulty: int = Field(default=1, ge=0, description="adapters that may be hostile; 2 f + 3 are needed")

    @property
    def fewest(self) -> int:
        """Adapters that can be merged."""
        return 2 * self.faulty + 3


class FaultySelected(Faulty):
    """Some may be hostile, and the best are averaged."""

    selected: int = Field(default=0, ge=0, description="how many are averaged; 0: all but --faulty")

    @property
    def fewest(self) -> int:
        """Adapters that can be merged."""
        return max(super().fewest, self.selected)


class Weiszfeld(Settings):
    """Steps to the geometric median."""

    smoothing: float = Field(
        default=1e-6, gt=0, lt=1, description="smallest distance, as a part of the median length"
    )
    iterations: int = Field(default=100, ge=1, le=100000, description="the most steps")


class Common(Settings):
    """Directions of the sum, and of each by itself."""

    common: float = Field(
        default=0.8, gt=0, le=1, description="fraction of the directions that the sum gives"
    )


class Exclusive(Settings):
    """What each has beside what all share."""

    exclusive: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="fraction of the directions of an adapter's own part that is kept",
    )


class Shared(Settings):
    """What the adapters share, and what each has of its own."""

    threshold: float = Field(default=0.01, gt=0, description="μ: by how much singular values shrink")
    amplify: float = Field(default=1.0, gt=0, description="λ: what the adapters' own parts count")
    iterations: int = Field(default=10, ge=1, le=1000, description="turns")
