"""What methods along random directions share: :func:`seeds_of`, :func:`quantised`, :func:`clipped`."""

from __future__ import annotations

import math

from headwater.errors import TrainingError
from headwater.seeds.coefficients import SeedPlan
from headwater.seeds.directions import Directions
from headwater.state import StateSpec
from headwater.training.cohort import TrainTask
from headwater.training.minibatches import diverged

LARGEST = 32_767
"""No coefficient is larger."""


def seeds_of(task: TrainTask, spec: StateSpec) -> tuple[SeedPlan, Directions]:
    """The seeds of a task's plan, and what they stand for.

    Raises:
        SpecMismatch: a state of another spec.
        TrainingError: a plan without seeds, for a part of the adapter only, or with directions of another
            distribution or size.
    """
    task.state.require_spec(spec, f"client {task.client}, state to train from")
    plan, directions = task.plan.seeds, task.directions
    if plan is None or directions is None:
        raise TrainingError(f"client {task.client}", expected="a plan with seeds", got="none")
    if task.plan.tensors is not None or task.plan.rank is not None:
        raise TrainingError(
            f"client {task.client}", expected="a plan for the whole adapter", got="one for a part of it"
        )
    if (directions.distribution, directions.size) != (plan.distribution, spec.numel):
        raise TrainingError(
            f"client {task.client}",
            expected=f"{plan.distribution} directions of {spec.numel} values",
            got=f"{directions.distribution} ones of {directions.size}",
        )
    return plan, directions


def quantised(step: float, unit_bits: int) -> int:
    """``step`` as a coefficient: the nearest integer times 2^-unit_bits, ±32,767 at most."""
    return round(max(-LARGEST, min(LARGEST, step * 2.0**unit_bits)))


def clipped(slope: float, bound: float) -> float:
    """``slope``, or ±``bound`` if it is beyond: what a step may believe."""
    return max(-bound, min(bound, slope))


def require_finite(task: TrainTask, step: int, loss: float) -> float:
    """``loss``, of step 1, 2, ….

    Raises:
        TrainingError: it is not finite.
    """
    if not math.isfinite(loss):
        hint = "Lower training.learning_rate or training.epsilon."
        raise diverged(task, step, "loss", str(loss), hint)
    return loss
