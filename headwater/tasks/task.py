"""Task: what is learnt from a row, from its text to the metrics. A kind of data has one class.

:class:`RowTask` is the base of tasks with a text (or pair) and one target a row; the language models of
:mod:`headwater.tasks.language_model` have a target for each token. A task sees no file, no network and no
other owner's rows: it is a function of ``[data]`` and of what it is given.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from headwater.config.data import BaseData, TextData
from headwater.tasks.batches import Example
from headwater.tasks.inputs import Report, Row, Tokenizer, encode_texts

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[Any]
Metrics = dict[str, float]
S = TypeVar("S", bound=BaseData)
T = TypeVar("T", bound=TextData)


class Task(ABC, Generic[S]):
    """What is learnt from rows.

    Args:
        settings: ``[data]``.

    Attributes:
        settings_class: its table of the federation file; ``metrics`` and the other traits stand there.
        settings: ``[data]``.
    """

    settings_class: ClassVar[type[BaseData]]

    def __init__(self, settings: S) -> None:
        self.settings = settings

    # row -> tokens

    @abstractmethod
    def check(self, row: Row) -> None:
        """Read every value of the row that will be used.

        Raises:
            DataError: one is missing or wrong; names file and line.
        """

    @abstractmethod
    def examples(self, row: Row, tokenizer: Tokenizer, report: Report | None = None) -> list[Example]:
        """The row's examples: one, several (windows, turns) or none.

        Raises:
            DataError: the row cannot be used.
        """

    def labels_of(self, row: Row) -> tuple[str, ...]:
        """Names of the row's labels, for whoever counts them; none where there is no closed list."""
        return ()

    def shown(self, row: Row) -> str | None:
        """The row's target for people; None where the text itself is what is learnt."""
        return None

    def number(self, row: Row) -> float | None:
        """The row's target where it is a number, for its distribution."""
        return None

    def stratum(self, row: Row) -> str | None:
        """Rows of one stratum are shared out evenly to training and validation; None: all rows are one."""
        return None

    # tokens -> loss

    @property
    @abstractmethod
    def outputs(self) -> tuple[str, ...] | None:
        """Names of the head's outputs, in order; None where the outputs are the vocabulary."""

    @abstractmethod
    def losses(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What is minimised: the sum of the losses over the sum of the counts.

        Args:
            logits: [b, outputs], or [b, t, vocabulary].
            targets: as :func:`headwater.tasks.batches.collate` puts the examples' together.

        Returns:
            Losses [b], each a function of its own row alone, and counts int64 [b], by which metrics of many
            batches are weighed.
        """

    def target_count(self, example: Example) -> int:
        """How many targets a training example has: its count in :meth:`losses`."""
        return 1

    @abstractmethod
    def any_targets(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Targets that any model can be tried with, for int64 [b, t] ``tokens`` of which ``mask`` counts."""

    def draw(self, logits: Tensor, targets: Tensor, uniforms: Tensor) -> Tensor:
        """Targets drawn from what the model believes: for strategy ``fisher`` (``has_likelihood``).

        Args:
            logits: as in :meth:`losses`.
            targets: the true ones, whose shape and places the result has.
            uniforms: float64 in [0, 1), of the shape of ``targets``: the only source of chance.
        """
        raise NotImplementedError(f"{type(self).__name__} has no likelihood to draw labels from")

    # loss -> metrics

    def decide(self, logits: Tensor) -> Array | None:
        """What :meth:`score` needs of a batch's logits, one entry a row; None: nothing but the loss."""
        return None

    def judge(self, logits: Tensor, examples: Sequence[Example]) -> Array | None:
        """:meth:`decide`, for tasks that look at the examples too: one entry a row, all of one shape.

        Args:
            logits: of the batch that the examples are.
            examples: its rows.
        """
        return self.decide(logits)

    @abstractmethod
    def score(self, loss: float, truth: Array | None, decided: Array | None) -> Metrics:
        """The metrics: the names of ``settings_class.metrics``, in the order in which they are told.

        Args:
            loss: sum of the losses over the sum of the counts.
            truth: targets of all rows, one entry a row; None where :meth:`decide` gives nothing, or targets
                belong to tokens.
            decided: what :meth:`judge` gave, in the same order.
        """

    def merge(self, metrics: Mapping[str, Sequence[float]], counts: Sequence[int]) -> Metrics:
        """Metrics of several clients' rows together.

        The weighted mean: exact for means over rows. A task says of its others what they become.

        Args:
            metrics: by name, each client's value.
            counts: each client's count, at least one of them positive.
        """
        return weighted_mean(metrics, counts)

    def constant(self, train: Sequence[Array], held_out: Sequence[Array]) -> Metrics:
        """What the best constant answer to ``train`` reaches on ``held_out``: ``constant_metrics``.

        Args:
            train: targets of the training examples.
            held_out: those of the held-out ones.
        """
        return {}

    def asked(self, example: Example) -> tuple[list[int], list[int]]:
        """What a model is asked with for the example's answer, and the true answer: token ids.

        Of tasks with ``has_answers``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no answers in text")

    # for people

    def ask(self, row: Row, tokenizer: Tokenizer) -> list[Example]:
        """The row's examples for prediction: no target is read.

        Raises:
            DataError: there is nothing to ask.
        """
        raise NotImplementedError(f"{type(self).__name__} is asked by texts alone")

    def reply(self, examples: Sequence[Example], logits: Sequence[Tensor]) -> dict[str, Any]:
        """What ``headwater predict --json`` says of a row that was asked.

        Args:
            examples: as :meth:`ask` gave them.
            logits: float64 [t, outputs] of each.
        """
        raise NotImplementedError(f"{type(self).__name__} answers by rows of logits")

    def answers(self, logits: Tensor) -> list[dict[str, Any]]:
        """What ``headwater predict --json`` says of each row of ``logits`` float64 [b, outputs]."""
        raise NotImplementedError(f"{type(self).__name__} answers in text")

    def line(self, answer: Mapping[str, Any]) -> str:
        """An answer in a line of text, without the row's own text."""
        raise NotImplementedError(f"{type(self).__name__} answers in text")

    def code(self) -> list[str]:
        """Lines of Python that print the answer from ``logits`` [1, outputs]: the exported README's last."""
        return []


class RowTask(Task[T]):
    """A text, or a pair of texts, and one target a row."""

    @abstractmethod
    def encode(self, row: Row) -> Array:
        """The row's target: [k] of any numeric type, k the same for every row.

        Raises:
            DataError: it is missing or wrong; names file and line.
        """

    @abstractmethod
    def decode(self, target: Array) -> str:
        """What :meth:`encode` read, for people."""

    def check(self, row: Row) -> None:
        """Read the texts and the target."""
        row.texts()
        self.encode(row)

    def examples(self, row: Row, tokenizer: Tokenizer, report: Report | None = None) -> list[Example]:
        """One example: at most ``max_tokens`` tokens of the text or pair, and the target."""
        tokens = encode_texts(row, self.settings.max_tokens, tokenizer, report)
        return [Example(np.array(tokens, dtype=np.int32), self.encode(row))]

    def shown(self, row: Row) -> str | None:
        """The target as :meth:`decode` writes it."""
        return self.decode(self.encode(row))


def weighted_mean(metrics: Mapping[str, Sequence[float]], counts: Sequence[int]) -> Metrics:
    """Each metric's mean over clients, weighted by their counts."""
    total = sum(counts)
    return {
        name: math.fsum(value * count for value, count in zip(values, counts, strict=True)) / total
        for name, values in metrics.items()
    }
