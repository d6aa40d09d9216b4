"""Multi-label: any number of labels of a closed list per row, by binary cross entropy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headwater.config.data import UNKNOWN_LABELS, MultiLabelData
from headwater.errors import DataError
from headwater.tasks.inputs import Row
from headwater.tasks.labels import index_of, unknown_label
from headwater.tasks.task import Array, Metrics, RowTask

if TYPE_CHECKING:  # rows are read and checked without torch
    from torch import Tensor

Truths = npt.NDArray[np.bool_]


class MultiLabel(RowTask[MultiLabelData]):
    """Text → some labels. The target is float32 [labels], 1 where the row has the label."""

    settings_class = MultiLabelData

    @property
    def outputs(self) -> tuple[str, ...]:
        """The labels."""
        return self.settings.labels

    def encode(self, row: Row) -> Array:
        """1 for every label that the row names."""
        target = np.zeros(len(self.outputs), dtype=np.float32)
        for value in self._named(row):
            index = index_of(value, self.outputs)
            if index is None:
                raise unknown_label(row.where, self.settings.label, str(value), self.outputs)
            target[index] = 1
        return target

    def decode(self, target: Array) -> str:
        """The labels, in their order."""
        between = self.settings.separator or ", "
        return between.join(name for name, has in zip(self.outputs, target, strict=True) if has)

    def labels_of(self, row: Row) -> tuple[str, ...]:
        """Its labels; as the row writes them where no labels are known yet."""
        if self.settings.labels == UNKNOWN_LABELS:
            return tuple(dict.fromkeys(str(value) for value in self._named(row)))
        return tuple(name for name, has in zip(self.outputs, self.encode(row), strict=True) if has)

    def shown(self, row: Row) -> str:
        """The labels."""
        return (self.settings.separator or ", ").join(self.labels_of(row)) or "(none)"

    def losses(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Binary cross entropy of [b, labels] and float32 [b, labels], the mean over labels."""
        import torch
        import torch.nn.functional as F

        # log(1 + e^x) − x·y, which has forward-mode derivatives too
        each = (F.softplus(logits) - logits * targets).mean(-1)
        return each, torch.ones(len(targets), dtype=torch.int64, device=targets.device)

    def any_targets(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """No label for any row."""
        import torch

        return torch.zeros(len(tokens), len(self.outputs))

    def draw(self, logits: Tensor, targets: Tensor, uniforms: Tensor) -> Tensor:
        """Each label by itself, with the probability that the model gives it."""
        return (uniforms.to(logits.device) < logits.double().sigmoid()).to(targets.dtype)

    def decide(self, logits: Tensor) -> Array:
        """The labels of a probability above one half: bool [b, labels]."""
        return (logits > 0).cpu().numpy()

    def score(self, loss: float, truth: Array | None, decided: Array | None) -> Metrics:
        """Micro F1, macro F1, the share of rows with exactly the right labels, and the mean loss.

        Over clients ``exact_match`` and loss are exact; micro and macro F1 are the weighted means of the
        clients' own: the pooled ones would need their counts by label.
        """
        assert truth is not None
        assert decided is not None
        wanted, found = truth > 0.5, decided > 0.5
        micro, macro = f1_scores(wanted, found)
        exact = float((wanted == found).all(axis=1).mean())
        return {"micro_f1": micro, "macro_f1": macro, "exact_match": exact, "loss": loss}

    def constant(self, train: Sequence[Array], held_out: Sequence[Array]) -> Metrics:
        """What the most frequent set of labels reaches (of two alike the one that sorts first)."""
        counts = Counter(tuple(target.tolist()) for target in train)
        chosen = min(counts, key=lambda value: (-counts[value], value))
        truth = np.stack(held_out)
        metrics = self.score(0.0, truth, np.tile(np.array(chosen), (len(truth), 1)))
        return {name: metrics[name] for name in self.settings.constant_metrics}

    def answers(self, logits: Tensor) -> list[dict[str, Any]]:
        """``labels`` above one half, and ``scores`` (probabilities) of all."""
        found: list[dict[str, Any]] = []
        for row in logits.sigmoid().tolist():
            scores = dict(zip(self.outputs, row, strict=True))
            found.append({"labels": [name for name in scores if scores[name] > 0.5], "scores": scores})
        return found

    def line(self, answer: Mapping[str, Any]) -> str:
        """The labels, each with its probability."""
        return ", ".join(f"{name} {answer['scores'][name]:.4f}" for name in answer["labels"]) or "(none)"

    def code(self) -> list[str]:
        """Print the labels."""
        names = list(self.outputs)
        return [f"print([name for name, logit in zip({names!r}, logits[0], strict=True) if logit > 0])"]

    def _named(self, row: Row) -> list[object]:
        """What the column names: a list, or a text that the separator divides; an empty cell is no label."""
        value, separator = row.optional(self.settings.label), self.settings.separator
        if isinstance(value, str) and separator is not None:
            return [part.strip() for part in value.split(separator) if part.strip()]
        if value is None and separator is not None:
            return []
        if not isinstance(value, list) or not all(isinstance(v, str | int | float) for v in value):
            raise DataError(
                row.where,
                expected=f"a list of labels in column {self.settings.label!r}",
                got="none" if value is None else f"{type(value).__name__} {value!r:.40}",
                hint="Give a list, or say what stands between labels: data.separator.",
            )
        return value


def f1_scores(truth: Truths, found: Truths) -> tuple[float, float]:
    """Micro and macro F1 of bool [rows, labels].

    Micro is 2·TP / (truths + predictions) over all labels at once, 0 where there are none at all; macro the
    mean over the labels that occur in either.
    """
    hits, seen = (truth & found).sum(0), truth.sum(0) + found.sum(0)
    if not seen.any():
        return 0.0, 0.0
    each = 2 * hits[seen > 0] / seen[seen > 0]
    return float(2 * hits.sum() / seen.sum()), float(each.mean())
