"""How a client's learning rate falls over the rounds: :func:`learning_rate_factor`."""

from __future__ import annotations

from headwater.config.script import ScriptTraining
from headwater.config.training import MinibatchTraining, Training


def learning_rate_factor(training: Training, number: int, rounds: int) -> float:
    """Linear from 1 in round 1 to ``final_learning_rate_fraction`` in the last round."""
    if not isinstance(training, MinibatchTraining | ScriptTraining) or rounds == 1:
        return 1.0
    progress = min(1.0, (number - 1) / (rounds - 1))
    return 1.0 - (1.0 - training.final_learning_rate_fraction) * progress
