"""Which clients of a round are trained as one batch, and where: :func:`batches`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from headwater.config.training import MinibatchTraining
from headwater.protocol.messages import TrainRequest
from headwater.training.batched.groups import FEWEST, MOST_TOKENS

Size = tuple[int, int]
"""Examples of a client, and their tokens."""


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
    :data:`~headwater.training.batched.groups.MOST_TOKENS` leave room for.

    Args:
        requests: a round's, in the order in which they were sent.
        most: clients in a batch.
        size_of: examples and tokens of a task's client; None for one that is trained alone.
    """
    waiting: dict[tuple[object, float], _Open] = {}
    for request in requests:
        training, size = request.plan.training, size_of(request)
        if size is None or not isinstance(training, MinibatchTraining):
            yield [request]
            continue
        key = training, request.plan.learning_rate_factor
        batch, rows = waiting.pop(key, _Open()), training.batch_size
        if batch.requests and batch.room(rows, size) < max(FEWEST, len(batch.requests) + 1):
            yield batch.requests
            batch = _Open()
        room = batch.room(rows, size)
        batch.add(request, size)
        if room < FEWEST or len(batch.requests) == most:
            yield batch.requests
        else:
            waiting[key] = batch
    yield from (batch.requests for batch in waiting.values())
