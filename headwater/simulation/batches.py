"""Which clients of a round are trained as one batch, and where: :func:`batches`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from headwater.config.training import MinibatchTraining
from headwater.protocol.messages import TrainRequest
from headwater.training.batched.groups import FEWEST, MOST_TOKENS

Size = tuple[int, int]
"""Examples of a client, and their tokens."""


_Sized = tuple[TrainRequest, Size, int]
"""A task, its client's size, and the rows of a step."""
AMPLE = 16
"""Clients of a batch; more gain little: at 2 x 16 tokens a step took 15.2 CPU ms with 16, 15.1 with 32."""


@dataclass(slots=True)
class _Open:
    """A batch that may get more clients."""

    requests: list[TrainRequest] = field(default_factory=list)
    examples: int = 0
    tokens: int = 0

    def room(self, rows: int, more: Size) -> int:
        """How many clients of ``rows`` rows a batch may have, with one more of this size."""
        return MOST_TOKENS // (rows * math.ceil((self.tokens + more[1]) / (self.examples + more[0])))

    def add(self, request: TrainRequest, size: Size) -> None:
        self.requests.append(request)
        self.examples += size[0]
        self.tokens += size[1]


def batches(
    requests: Iterable[TrainRequest], most: int, size_of: Callable[[TrainRequest], Size | None]
) -> Iterator[list[TrainRequest]]:
    """Divide a round's tasks: what is in a list is trained in one process, and by one batch if it can be.

    A function of the tasks alone, in their order, so that every engine trains the same clients together.
    Tasks with the same training go together, as many as ``most`` and
    :data:`~headwater.training.batched.groups.MOST_TOKENS` leave room for; large batches of the same training
    have equally many, so that processes side by side end together.

    Args:
        requests: a round's, in the order in which they were sent.
        most: clients in a batch.
        size_of: examples and tokens of a task's client; None for one that is trained alone.
    """
    alike: dict[tuple[object, float], list[_Sized]] = {}
    for request in requests:
        training, size = request.plan.training, size_of(request)
        if size is None or not isinstance(training, MinibatchTraining):
            yield [request]
        else:
            key = training, request.plan.learning_rate_factor
            alike.setdefault(key, []).append((request, size, training.batch_size))
    for tasks in alike.values():
        yield from _evened(tasks, list(_filled(tasks, most)), most)


def _filled(tasks: Sequence[_Sized], most: int) -> Iterator[list[TrainRequest]]:
    """Batches with as many as there is room for, one after the other."""
    batch = _Open()
    for request, size, rows in tasks:
        if batch.requests and batch.room(rows, size) < max(FEWEST, len(batch.requests) + 1):
            yield batch.requests
            batch = _Open()
        room = batch.room(rows, size)
        batch.add(request, size)
        if room < FEWEST or len(batch.requests) == most:
            yield batch.requests
            batch = _Open()
    if batch.requests:
        yield batch.requests


def _evened(tasks: Sequence[_Sized], filled: list[list[TrainRequest]], most: int) -> list[list[TrainRequest]]:
    """As many batches, or one more for an even number, of equally many clients, at least :data:`AMPLE`.

    Those that were filled where there are fewer, or rows are so unlike that equally many do not fit.
    """
    count = len(filled) + (len(filled) % 2 if len(filled) > 1 else 0)
    if len(tasks) // count < AMPLE:
        count = len(filled)
    if len(tasks) // count < AMPLE:
        return filled
    cuts = [len(tasks) * i // count for i in range(count + 1)]
    parts = [tasks[start:end] for start, end in pairwise(cuts)]
    found = [[request for request, *_ in part] for part in parts]
    fit = all(list(_filled(part, most)) == [own] for part, own in zip(parts, found, strict=True))
    return found if fit else filled
