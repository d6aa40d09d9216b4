"""Regression: a number per row, by squared error."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headwater.config.data import RegressionData
from headwater.config.metrics import MAX_VALUE
from headwater.errors import DataError
from headwater.tasks.inputs import Row
from headwater.tasks.task import Array, Metrics, RowTask

if TYPE_CHECKING:  # rows are read and checked without torch
    from torch import Tensor

MOST = 1e12
"""The largest magnitude of a target: its square must be far from float32's end."""
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
Values = npt.NDArray[np.float64]


class Regression(RowTask[RegressionData]):
    """Text → y. The target is (y − ``target_mean``) / ``target_scale``, float32 [1]; the file says both.

    The loss is the squared error in these units; all other metrics are in the column's own.
    """

    settings_class = RegressionData

    @property
    def outputs(self) -> tuple[str, ...]:
        """One, named as the column."""
        return (self.settings.target,)

    def encode(self, row: Row) -> Array:
        """The standardised number."""
        y = (self.number(row) - self.settings.target_mean) / self.settings.target_scale
        return np.array([y], dtype=np.float32)

    def decode(self, target: Array) -> str:
        """The number in the column's units, with float32's seven digits."""
        return f"{self._own(target)[0]:.7g}"

    def number(self, row: Row) -> float:
        """The number that stands in the column, as a number or as text."""
        value = row.value(self.settings.target)
        if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MOST:
            raise DataError(
                row.where,
                expected=f"a number of at most {MOST:g} in column {self.settings.target!r}",
                got=f"{value!r:.40}",
                hint="Correct the row or take it out.",
            )
        return float(value)

    def losses(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Squared errors of [b, 1] and float32 [b]."""
        import torch

        errors: Tensor = (logits[:, 0] - targets).square()
        return errors, torch.ones_like(targets, dtype=torch.int64)

    def any_targets(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Zero for every row."""
        import torch

        return torch.zeros(len(tokens))

    def draw(self, logits: Tensor, targets: Tensor, uniforms: Tensor) -> Tensor:
        """From N(output, 1/2), of which the squared error is minus the log density but for a constant."""
        import torch

        normal: Tensor = torch.special.ndtri(uniforms.to(logits.device).clamp(1e-12, 1 - 1e-12))
        drawn: Tensor = logits[:, 0].double() + normal * math.sqrt(0.5)
        return drawn.to(targets.dtype)

    def decide(self, logits: Tensor) -> Array:
        """The output of each row: float [b]."""
        return logits[:, 0].float().cpu().numpy()

    def score(self, loss: float, truth: Array | None, decided: Array | None) -> Metrics:
        """MSE, MAE, Spearman's rank correlation, R² and the loss.

        Over clients MSE, MAE and loss are exact; Spearman and R² are the weighted means of the clients' own.
        """
        assert truth is not None
        assert decided is not None
        y, found = self._own(truth), self._own(decided)
        return {
            "mse": float(np.mean((y - found) ** 2)),
            "mae": float(np.mean(np.abs(y - found))),
            "spearman": spearman(y, found),
            "r2": r_squared(y, found),
            "loss": loss,
        }

    def constant(self, train: Sequence[Array], held_out: Sequence[Array]) -> Metrics:
        """What the mean of the training targets reaches."""
        truth = np.concatenate([np.asarray(target, np.float64) for target in held_out])
        mean = np.full(len(truth), float(np.mean([target[0] for target in train], dtype=np.float64)))
        return self.score(float(np.mean((truth - mean) ** 2)), truth, mean)

    def answers(self, logits: Tensor) -> list[dict[str, Any]]:
        """``value``, in the column's units."""
        return [{"value": float(value)} for value in self._own(logits[:, 0].cpu().numpy())]

    def line(self, answer: Mapping[str, Any]) -> str:
        """The value."""
        return f"{answer['value']:.6g}"

    def code(self) -> list[str]:
        """Print the value."""
        mean, scale = self.settings.target_mean, self.settings.target_scale
        return [f"print(logits[0, 0].item() * {scale!r} + {mean!r})"]

    def _own(self, standardised: Array) -> Values:
        """In the column's units."""
        return np.asarray(standardised, np.float64) * self.settings.target_scale + self.settings.target_mean


def r_squared(truth: Values, found: Values) -> float:
    """1 − Σ(y − ŷ)² / Σ(y − mean y)²; of truths that are all the same 1 if they are met and else 0."""
    residual, total = float(np.sum((truth - found) ** 2)), float(np.sum((truth - truth.mean()) ** 2))
    if total == 0.0:
        return float(residual == 0.0)
    return max(-MAX_VALUE, 1.0 - residual / total)


def spearman(truth: Values, found: Values) -> float:
    """The correlation of ranks, ties at their mean rank; 0 where one side is all the same."""
    first, second = _ranks(truth), _ranks(found)
    first, second = first - first.mean(), second - second.mean()
    norm = math.sqrt(float(first @ first) * float(second @ second))
    return 0.0 if norm == 0.0 else min(1.0, max(-1.0, float(first @ second) / norm))


def _ranks(values: Values) -> Values:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Values = (last - (counts - 1) / 2)[inverse]
    return ranks
