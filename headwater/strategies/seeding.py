"""Which seeds a round's scalars may name, and what a coefficient of them is worth.

All clients of a round share one :class:`SeedPlan`, for their coefficients are added seed by seed. Entry
points: :func:`seed_plan` for one method, :func:`round_seeds` for a federation.
"""

from __future__ import annotations

import math
from dataclasses import replace

from headwater.config.federation import Federation
from headwater.config.training import Training
from headwater.seeds.coefficients import SeedPlan

LARGEST = 32_767
"""The magnitude of a coefficient, in its unit."""


def seed_plan(training: Training, round: int) -> SeedPlan | None:
    """The seeds of one method in one round; None for a method that sends a delta.

    Its settings say which seeds those are (:meth:`TrainingSettings.seed_range`). The unit is the finest in
    which the largest step still fits, so the rate's fall over the rounds changes nothing of it.

    Args:
        training: its settings.
        round: 1, 2, ….
    """
    found = training.seed_range(round)
    if found is None:
        return None
    bits = unit_bits(found.largest)
    return SeedPlan(found.first, found.count, found.distribution, bits, found.entries, found.implied)


def round_seeds(federation: Federation, round: int) -> SeedPlan | None:
    """What every client of the round that sends scalars is given; None if no method does.

    The file's methods agree in all but how many steps they take (``kseed``): the largest number bounds
    everybody's entries.
    """
    plans = [plan for t in federation.trainings.values() if (plan := seed_plan(t, round)) is not None]
    return replace(plans[0], entries=max(plan.entries for plan in plans)) if plans else None


def seeds_only(federation: Federation) -> bool:
    """Whether the adapter is its origin plus coefficients of seeds, after every round."""
    scalar = all(training.sends == "coefficients" for training in federation.trainings.values())
    return scalar and federation.strategy.linear and not federation.strategy.server_momentum


def unit_bits(largest_step: float) -> int:
    """The largest u with largest_step·2^u ≤ 32,767, in exact arithmetic."""
    mantissa, exponent = math.frexp(largest_step)  # step = m·2^e, ½ ≤ m < 1
    return 15 - exponent if mantissa * 2**15 <= LARGEST else 14 - exponent
