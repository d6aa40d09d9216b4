"""CohortTrainer: the interface of every local training method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from headwater.data.batches import Example
from headwater.errors import TrainingError
from headwater.protocol.keys import Key
from headwater.protocol.messages import ClientPlan
from headwater.state import AdapterState


@dataclass(frozen=True)
class TrainTask:
    """One client's share of a cohort: its state to start from, its examples, its plan."""

    client: str
    state: AdapterState
    examples: Sequence[Example]
    plan: ClientPlan


@dataclass(frozen=True)
class TrainResult:
    """What one client learned.

    Args:
        client: its name.
        delta: trained state − started state; None if the training failed.
        statistics: named statistics that the plan asked for, such as ``fisher``.
        examples: examples the client trains on (its weight).
        steps: optimiser steps taken.
        metrics: at least ``loss``, the mean training loss.
        error: why there is no delta.
    """

    client: str
    delta: AdapterState | None
    examples: int
    steps: int = 0
    statistics: Mapping[str, AdapterState] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: TrainingError | None = None


class CohortTrainer(ABC):
    """Trains a cohort of clients over one frozen base.

    Laws (``tests/laws/trainer_laws.py``): one result per task, in order; a result depends on its
    task and ``key.child("client", name)`` only, not on its neighbours in the cohort; the same bits
    at the same thread count; a diverged client yields a result with ``error`` and no delta, and the
    others go on. No files, no network, no Flower.
    """

    @abstractmethod
    def train(self, tasks: Sequence[TrainTask], *, key: Key) -> Iterator[TrainResult]:
        """Train every task; yield each result as it is ready."""
