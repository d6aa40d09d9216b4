"""BatchedLossTrainer: methods that ask only for losses, with the losses of a cohort computed as one batch.

Each client's training is the trainer of one, untouched, in a thread of its own; its model is a
:class:`_Member`, which writes down where the client stands. When all who are still at work wait for a loss,
one pass over the base answers them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headwater.adapters.stacked.stack import stacked
from headwater.adapters.trained_tensors import unit_of
from headwater.config.training import MinibatchTraining
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.tasks.batches import Batch
from headwater.training.batched.groups import groups_of
from headwater.training.batched.joined import JoinedBatch, joined
from headwater.training.batched.trial import require_stackable
from headwater.training.cohort import CohortTrainer, TrainResult, TrainTask
from headwater.training.parameter_walk import ZerothOrderModel

if TYPE_CHECKING:  # not to load Transformers, which takes seconds, where there is no base model
    from headwater.adapters.model import AdaptedModel
    from headwater.adapters.model import Batch as AnyBatch

Rows = tuple[Tensor, Tensor]
"""Losses and counts of a batch's rows, both [b]."""


class BatchedLossTrainer(CohortTrainer):
    """A trainer without gradients for many clients at once: the same steps, one pass for all their losses.

    Who trains beside whom is as in :class:`~headwater.training.batched.trainer.BatchedBackpropTrainer`.

    Args:
        model: the adapted model; the trainer owns its values while it trains.
        pad: token id that fills a batch.
        most: clients in a batch.
        make: a trainer of one from a model and ``pad``, which asks the model for losses alone.

    Raises:
        ModelError: an adapter that cannot be stacked.
    """

    def __init__(
        self, model: AdaptedModel, pad: int, most: int, make: Callable[[ZerothOrderModel, int], CohortTrainer]
    ) -> None:
        require_stackable(model)
        self._model, self._pad, self._most, self._make = model, pad, most, make
        self._last: tuple[list[Tensor], JoinedBatch] | None = None

    def train(self, tasks: Sequence[TrainTask], *, key: Key) -> Iterator[TrainResult]:
        """Train the tasks; their results come in order. Raises as the trainer of one."""
        done: dict[str, TrainResult] = {}
        found = groups_of(tasks, self._most, _joins, self._model.virtual_tokens)
        groups = {group[0].client: group for group in found}
        alone = self._make(self._model, self._pad)
        for task in tasks:
            if task.client in groups:
                done |= self._together(groups[task.client], key)
            if task.client in done:
                yield done.pop(task.client)
            else:
                yield from alone.train([task], key=key)

    def _together(self, tasks: list[TrainTask], key: Key) -> dict[str, TrainResult]:
        desk, found = _Desk(len(tasks)), dict[str, TrainResult]()
        errors: list[Exception] = []

        def work(seat: int, task: TrainTask) -> None:
            try:
                trainer = self._make(_Member(self._model, desk, seat), self._pad)
                (found[task.client],) = trainer.train([task], key=key)
            except Exception as error:  # of whatever kind: who called is told
                errors.append(error)
            finally:
                desk.leave(seat)

        threads = [
            threading.Thread(target=work, args=one, name=f"cohort {one[0]}", daemon=True)
            for one in enumerate(tasks)
        ]
        training = tasks[0].plan.training
        assert isinstance(training, MinibatchTraining), "or it does not join"
        budget = training.trunk_cache_mb * 2**20
        try:
            for thread in threads:
                thread.start()
            with self._model.caching_prefix(budget_bytes=budget):
                desk.serve(self._losses)
        finally:
            desk.close()
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]
        return found

    def _losses(self, asked: Sequence[_Question]) -> list[Rows]:
        """The answers to all, by one pass."""
        model, batch = self._model, self._joined([q.batch for q in asked])
        vectors = torch.stack([q.vector for q in asked])
        parts = torch.split(vectors, [spec.numel for spec in model.spec], dim=1)
        values = {
            spec.name: (part.view(len(asked), *spec.shape) * unit_of(spec)).to(p.device, p.dtype)
            for (spec, p), part in zip(model.parameters(), parts, strict=True)
        }
        with torch.inference_mode(), stacked(model, values, len(asked)):
            losses, counts = model.losses(batch.batch)
        shape = batch.own.shape
        by_client = zip(losses.view(shape), counts.view(shape), asked, strict=True)
        return [(own[: len(q.batch)], count[: len(q.batch)]) for own, count, q in by_client]

    def _joined(self, batches: Sequence[Batch]) -> JoinedBatch:
        """The batch of the last pass if it is of the same: the model then knows what is below its adapter."""
        tokens = [batch.tokens for batch in batches]
        if self._last is None or [id(t) for t in self._last[0]] != [id(t) for t in tokens]:
            self._last = tokens, joined(batches, self._pad, by_token=self._model.by_token)
        return self._last[1]


@dataclass(frozen=True, slots=True)
class _Question:
    """What a batch's losses are at ``vector`` [numel]."""

    vector: Tensor
    batch: Batch


class _Member:
    """A client's own model, as far as a trainer without gradients needs one."""

    def __init__(self, model: AdaptedModel, desk: _Desk, seat: int) -> None:
        self.spec, self._desk, self._seat = model.spec, desk, seat
        self._vector = torch.zeros(model.spec.numel)

    def load(self, state: AdapterState) -> None:
        state.require_spec(self.spec, "state to load into the model")
        self._vector = state.vector()

    def write(self, vector: Tensor) -> None:
        self._vector = vector.clone()

    def losses(self, batch: AnyBatch) -> Rows:
        return self._desk.ask(
            self._seat, _Question(self._vector, Batch(batch.tokens, batch.mask, batch.targets))
        )

    def caching_prefix(
        self, tensors: tuple[str, ...] | None = None, budget_bytes: int = 0
    ) -> AbstractContextManager[None]:
        return contextlib.nullcontext()


class _Desk:
    """Where clients wait for their losses, until all who are still there have asked."""

    def __init__(self, seats: int) -> None:
        self._news = threading.Condition()
        self._there = set(range(seats))
        self._asked: dict[int, _Question] = {}
        self._answers: dict[int, Rows | BaseException] = {}

    def ask(self, seat: int, question: _Question) -> Rows:
        with self._news:
            self._asked[seat] = question
            self._news.notify_all()
            self._news.wait_for(lambda: seat in self._answers or seat not in self._there)
            answer = self._answers.pop(seat, None)
        if answer is None:
            raise RuntimeError("the cohort was ended")
        if isinstance(answer, BaseException):
            raise RuntimeError(str(answer) or type(answer).__name__) from answer
        return answer

    def leave(self, seat: int) -> None:
        with self._news:
            self._there.discard(seat)
            self._news.notify_all()

    def close(self) -> None:
        """Nobody is answered any more."""
        with self._news:
            self._there.clear()
            self._news.notify_all()

    def serve(self, answer: Callable[[Sequence[_Question]], list[Rows]]) -> None:
        """Answer all who ask, together, until everybody has left."""
        while True:
            with self._news:
                self._news.wait_for(lambda: self._there == self._asked.keys())
                if not self._there:
                    return
                seats = sorted(self._asked)
                asked = [self._asked.pop(seat) for seat in seats]
            try:
                found: list[Rows | BaseException] = list(answer(asked))
            except (
                RuntimeError,
                MemoryError,
                ArithmeticError,
            ) as error:  # torch's own
                found = [error] * len(seats)
            with self._news:
                self._answers.update(zip(seats, found, strict=True))
                self._news.notify_all()


def _joins(task: TrainTask) -> bool:
    """Whether a task is one of those that can be trained beside others."""
    training = task.plan.training
    if not isinstance(training, MinibatchTraining) or not task.examples:
        return False
    # below the tensors of a plan others lie, which are the client's own
    return not (training.trunk_cache_mb and task.plan.tensors is not None)
