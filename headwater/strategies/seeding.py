"""Which seeds a round's scalars may name, and what a coefficient of them is worth.

All clients of a round share one :class:`SeedPlan`, for their coefficients are added seed by seed. Entry
points: :func:`seed_plan` for one method, :func:`round_seeds` for a federation.
"""

from __future__ import annotations

import math
from dataclasses import replace

from headwater.config.federation import Federation
from headwater.config.training import SCALAR_KINDS, Training
from headwater.seeds.coefficients import SeedPlan

LARGEST = 32_767
"""The magnitude of a coefficient, in its unit."""
_BLACKBOX_BOUND = 8.0
"""Coordinates of the black box's search are clipped to ± this, or up to twice that: to what 16 bits hold."""


def seed_plan(training: Training, round: int) -> SeedPlan | None:
    """The seeds of one method in one round; None for a method that sends a delta.

    kseed (arXiv 2312.06353) has the same K seeds in every round, blackbox one for each coordinate of its
    search, decomfl (arXiv 2405.15861) new ones in every round: one for each direction of each step, and
    one coefficient for each. The unit is the finest in which the largest step still fits, so the rate's
    fall over the rounds changes nothing of it.

    Args:
        training: its settings.
        round: 1, 2, ….
    """
    match training.kind:
        case "kseed":
            step = training.learning_rate * training.gradient_bound
            entries = training.max_steps or 0  # its settings refuse a missing one
            return SeedPlan(0, training.seeds, training.distribution, unit_bits(step), entries)
        case "decomfl":
            step = training.learning_rate * training.gradient_bound / training.directions
            count = (training.max_steps or 0) * training.directions
            first = (round - 1) * count
            return SeedPlan(first, count, training.distribution, unit_bits(step), count, implied=True)
        case "blackbox":
            bits, count = unit_bits(training.scale * _BLACKBOX_BOUND), training.dimensions
            return SeedPlan(0, count, training.distribution, bits, count, implied=True)
        case _:
            return None


def round_seeds(federation: Federation, round: int) -> SeedPlan | None:
    """What every client of the round that sends scalars is given; None if no method does.

    The file's methods agree in all but how many steps they take (``kseed``): the largest number bounds
    everybody's entries.
    """
    plans = [plan for t in federation.trainings.values() if (plan := seed_plan(t, round)) is not None]
    return replace(plans[0], entries=max(plan.entries for plan in plans)) if plans else None


def seeds_only(federation: Federation) -> bool:
    """Whether the adapter is its origin plus coefficients of seeds, after every round."""
    scalar = all(training.kind in SCALAR_KINDS for training in federation.trainings.values())
    return scalar and federation.strategy.kind == "mean" and not federation.strategy.server_momentum


def unit_bits(largest_step: float) -> int:
    """The largest u with largest_step·2^u ≤ 32,767, in exact arithmetic."""
    mantissa, exponent = math.frexp(largest_step)  # step = m·2^e, ½ ≤ m < 1
    return 15 - exponent if mantissa * 2**15 <= LARGEST else 14 - exponent
