"""CohortTrainer: the interface of every local training method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from headwater.errors import HeadwaterError
from headwater.protocol.messages import ClientPlan
from headwater.seeds.coefficients import SeedCoefficients
from headwater.seeds.directions import Directions
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.tasks.batches import Example


@dataclass(frozen=True)
class TrainTask:
    """One client's share of a cohort.

    Args:
        client: its name.
        state: to start from.
        examples: its own.
        plan: what to do.
        directions: what the plan's seeds stand for; None if it has none.
        correction: c − c_i of SCAFFOLD, added to every gradient after it is cut; None without.
    """

    client: str
    state: AdapterState
    examples: Sequence[Example]
    plan: ClientPlan
    directions: Directions | None = None
    correction: AdapterState | None = None


@dataclass(frozen=True)
class TrainResult:
    """What one client learned.

    Args:
        client: its name.
        delta: trained state − started state, or the same as coefficients of the plan's seeds; None if
            the training failed.
        statistics: named statistics that the plan asked for, such as ``fisher``.
        examples: examples the client trains on (its weight).
        steps: optimiser steps taken.
        metrics: at least ``loss``, the mean training loss, but of a training with ``privacy``.
        error: why there is no delta.
        noise: the expected squared L2 distance of the delta from its mean over the random directions it
            was made with; 0 for gradients.
    """

    client: str
    delta: AdapterState | SeedCoefficients | None
    examples: int
    steps: int = 0
    statistics: Mapping[str, AdapterState] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: HeadwaterError | None = None
    noise: float = 0.0


class CohortTrainer(ABC):
    """Trains a cohort of clients over one frozen base.

    Laws (``tests/laws/trainer_laws.py``): one result per task, in order; a result depends on its
    task and ``key.child("client", name)`` only, not on its neighbours in the cohort (up to rounding where
    they are computed as one batch); the same bits for the same tasks at the same thread count; a diverged
    client yields a result with ``error`` and no delta, and the others go on. No files, no network, no Flower.
    """

    @abstractmethod
    def train(self, tasks: Sequence[TrainTask], *, key: Key) -> Iterator[TrainResult]:
        """Train every task; yield each result as it is ready."""
