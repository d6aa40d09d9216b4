"""Classification: one label of a closed list per row, by cross entropy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headwater.config.data import UNKNOWN_LABELS, ClassificationData
from headwater.tasks.inputs import Row
from headwater.tasks.labels import label_of, weights_of
from headwater.tasks.task import Array, Metrics, RowTask

if TYPE_CHECKING:  # rows are read and checked without torch
    from torch import Tensor


class Classification(RowTask[ClassificationData]):
    """Text → one label. The target is the label's index, int64 [1]."""

    settings_class = ClassificationData

    @property
    def outputs(self) -> tuple[str, ...]:
        """The labels."""
        return self.settings.labels

    def encode(self, row: Row) -> Array:
        """The label's index."""
        return np.array([label_of(row, self.settings.label, self.settings.labels)], dtype=np.int64)

    def decode(self, target: Array) -> str:
        """The label."""
        return self.settings.labels[int(target[0])]

    def labels_of(self, row: Row) -> tuple[str, ...]:
        """Its one label; as the row writes it where no labels are known yet."""
        if self.settings.labels == UNKNOWN_LABELS:
            return (row.name(self.settings.label),)
        return (self.decode(self.encode(row)),)

    def shown(self, row: Row) -> str:
        """The label."""
        return self.labels_of(row)[0]

    def stratum(self, row: Row) -> str:
        """The label."""
        return self.shown(row)

    def losses(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy of [b, labels] and int64 [b], times the label's weight."""
        import torch
        import torch.nn.functional as F

        weight = weights_of(self.settings, logits)
        return F.cross_entropy(logits, targets, weight, reduction="none"), torch.ones_like(targets)

    def any_targets(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The first label for every row."""
        import torch

        return torch.zeros(len(tokens), dtype=torch.int64)

    def draw(self, logits: Tensor, targets: Tensor, uniforms: Tensor) -> Tensor:
        """A label by inversion: see :func:`invert`."""
        return invert(logits, uniforms.to(logits.device))

    def decide(self, logits: Tensor) -> Array:
        """The likeliest label of each row: int64 [b]."""
        return logits.argmax(-1).cpu().numpy()

    def score(self, loss: float, truth: Array | None, decided: Array | None) -> Metrics:
        """Accuracy, macro F1 and the mean loss. Over clients macro F1 is the weighted mean of their own."""
        assert truth is not None
        assert decided is not None
        accuracy = float((truth == decided).mean())
        return {"accuracy": accuracy, "macro_f1": macro_f1(truth, decided), "loss": loss}

    def constant(self, train: Sequence[Array], held_out: Sequence[Array]) -> Metrics:
        """The accuracy of the most frequent label (of two alike the first)."""
        counts = Counter(int(target[0]) for target in train)
        label = min(counts, key=lambda value: (-counts[value], value))
        truth = np.array([target[0] for target in held_out])
        return {"accuracy": float((truth == label).mean())}

    def answers(self, logits: Tensor) -> list[dict[str, Any]]:
        """``label``, its ``score`` (probability), and ``scores`` of all labels."""
        found: list[dict[str, Any]] = []
        for row in logits.softmax(-1).tolist():
            scores = dict(zip(self.outputs, row, strict=True))
            best = max(scores, key=lambda label: scores[label])
            found.append({"label": best, "score": scores[best], "scores": scores})
        return found

    def line(self, answer: Mapping[str, Any]) -> str:
        """Label and probability."""
        return f"{answer['label']}\t{answer['score']:.4f}"

    def code(self) -> list[str]:
        """Print the likeliest label."""
        return [f"print({list(self.outputs)!r}[logits[0].argmax()])"]


def macro_f1(truth: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]) -> float:
    """The mean of F1 = 2·TP / (truths + predictions) over labels in ``truth`` or ``predicted``."""
    size = int(max(truth.max(), predicted.max())) + 1
    hits = np.bincount(truth[truth == predicted], minlength=size)
    seen = np.bincount(truth, minlength=size) + np.bincount(predicted, minlength=size)
    return float((2 * hits[seen > 0] / seen[seen > 0]).mean())


def invert(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draws by inversion: the first index whose cumulated probability exceeds the uniform.

    Args:
        logits: [n, outputs].
        uniforms: float64 [n].
    """
    import torch

    cumulated = logits.double().softmax(-1).cumsum(-1)
    # the last sum may fall short of 1 by rounding
    drawn: Tensor = torch.searchsorted(cumulated, uniforms.unsqueeze(-1), right=True).squeeze(-1)
    return drawn.clamp_(max=logits.shape[-1] - 1)
