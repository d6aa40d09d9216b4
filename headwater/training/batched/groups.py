"""Which clients of a cohort are one batch: :func:`groups_of`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from headwater.config.training import MinibatchTraining
from headwater.training.cohort import TrainTask

MOST_TOKENS = 1024
"""Of the rows of one batch: larger ones leave the caches, and cost more page faults than they save."""
FEWEST = 3
"""Clients that a batch must have room for: two, of 8 x 64 tokens, took 1.02 of the time of one by one."""


def groups_of(
    tasks: Sequence[TrainTask], most: int, joins: Callable[[TrainTask], bool], virtual_tokens: int = 0
) -> Iterator[list[TrainTask]]:
    """Who trains beside whom, at least two each: a function of the tasks alone, in their order.

    Clients with the same training are joined, as many as ``most`` and :data:`MOST_TOKENS` leave room for;
    none where rows are so long that there is room for fewer than :data:`FEWEST`.

    Args:
        tasks: of the cohort.
        most: clients in a batch.
        joins: whether a task, of a training with batches, may be one of several.
        virtual_tokens: which the adapter adds to every row.
    """
    alike: dict[tuple[object, float], list[TrainTask]] = {}
    for task in tasks:
        if joins(task):
            alike.setdefault((task.plan.training, task.plan.learning_rate_factor), []).append(task)
    for (training, _), group in alike.items():
        assert isinstance(training, MinibatchTraining), "or it does not join"
        lengths = [len(example.tokens) for task in group for example in task.examples]
        batch = training.batch_size * (virtual_tokens + math.ceil(sum(lengths) / len(lengths)))
        if (room := MOST_TOKENS // batch) < FEWEST:
            continue
        size = min(most, room)
        for start in range(0, len(group), size):
            if len(chosen := group[start : start + size]) > 1:
                yield chosen
