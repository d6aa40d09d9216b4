"""ScriptTrainer: local training by code of the owner's own, in Headwater's one client path.

Whatever trains is handed the model with the global adapter in it; what is in the adapter's tensors
afterwards is the update. The rest is as for every method: the same plan, checks, codecs and store.
"""

from __future__ import annotations

import contextlib
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from headwater.config.script import ScriptTraining
from headwater.errors import TrainingError
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.training.cohort import CohortTrainer, TrainResult, TrainTask
from headwater.training.minibatches import contained, diverged
from headwater.training.trainable_part import TrainablePart

if TYPE_CHECKING:  # not to load Transformers, which takes seconds, where there is no base model
    from headwater.adapters.given import GivenModel

Rows = Sequence[Mapping[str, Any]]
MOST_METRICS = 32
HINT = "Lower the learning rate of the script, or training.learning_rate."


@dataclass(frozen=True, slots=True)
class LocalPlan:
    """What a script is asked to do for one client in one round. What is None, the script decides.

    Args:
        client: its name.
        epochs: passes over the rows.
        max_steps: never more optimiser steps.
        learning_rate: of the file, with the round's factor in it.
        learning_rate_factor: the round's factor alone, for a rate of the script's own.
        seed: of everything random, 0 to 2³¹ − 1; the global generators are seeded with it already.
    """

    client: str
    epochs: float | None
    max_steps: int | None
    learning_rate: float | None
    learning_rate_factor: float
    seed: int

    @staticmethod
    def of(task: TrainTask, key: Key) -> LocalPlan:
        """The plan of a task.

        Args:
            task: of one client.
            key: the client's in this round.

        Raises:
            TrainingError: its training is not a script's.
        """
        training, factor = task.plan.training, task.plan.learning_rate_factor
        if not isinstance(training, ScriptTraining):
            raise TrainingError(
                f"client {task.client}", expected="training.kind 'script'", got=training.kind,
                hint="A script trains as it was written: the federation file must leave that to it.",
            )  # fmt: skip
        rate = None if training.learning_rate is None else training.learning_rate * factor
        seed = key.child("script").seed() % 2**31
        return LocalPlan(task.client, training.epochs, training.max_steps, rate, factor, seed)


class Learner(ABC):
    """Who trains for a client: a Trainer, a function."""

    @abstractmethod
    def model(self, plan: LocalPlan, rows: Rows) -> GivenModel:
        """The model that it will train, looked at; its values do not matter.

        Raises:
            ModelError: it is not the federation's.
        """

    @abstractmethod
    def learn(
        self, given: GivenModel, plan: LocalPlan, rows: Rows, after_step: Callable[[], None]
    ) -> tuple[Mapping[str, float], int]:
        """Train ``given``.

        Args:
            given: what :meth:`model` gave, with the global adapter in it.
            plan: what to do.
            rows: the client's, as they stand in its file; none where the learner has data of its own.
            after_step: to be called after each optimiser step, if it can be.

        Returns:
            Metrics, and the steps taken (0 if not known).
        """


class ScriptTrainer(CohortTrainer):
    """Trains one client after another with a :class:`Learner`.

    Every global generator (Python's, NumPy's, torch's) is seeded from ``key.child("client", name)`` for each
    task and as it was afterwards: a result is as reproducible as the learner is with its seed.

    Args:
        learner: who trains.
        rows: of a client, by name.
        tick: called after each step; what it raises ends the training.
    """

    def __init__(
        self, learner: Learner, rows: Callable[[str], Rows], tick: Callable[[], None] = lambda: None
    ) -> None:
        self._learner, self._rows, self._tick = learner, rows, tick

    def train(self, tasks: Sequence[TrainTask], *, key: Key) -> Iterator[TrainResult]:
        """Train each task by itself, in order.

        Raises:
            TrainingError: a plan of another kind of training.
            ModelError: the learner's model is not the federation's.
        """
        for task in tasks:
            plan = LocalPlan.of(task, key.child("client", task.client))
            yield contained(task, lambda task=task, plan=plan: self._result(task, plan))  # type: ignore[misc]  # lambda's defaults

    def _result(self, task: TrainTask, plan: LocalPlan) -> TrainResult:
        who = f"client {task.client}"
        rows = self._rows(task.client)[: task.plan.rows]
        with _seeded(plan.seed):
            given = self._learner.model(plan, rows)
        given.load(task.state)
        part = TrainablePart.of(given, task.plan, who=who)

        def after_step() -> None:
            part.put_back()
            self._tick()

        with _seeded(plan.seed), part.alone(), _masking(part):
            said, steps = self._learner.learn(given, plan, rows, after_step)
        part.put_back()
        trained = given.read(who)
        _require_finite(task, trained, steps)
        metrics = _checked(said, task, steps)
        delta = part.only(trained - task.state)
        return TrainResult(task.client, delta, len(task.examples), steps, metrics=metrics)


def _checked(said: object, task: TrainTask, steps: int) -> dict[str, float]:
    """Metrics as they can travel.

    Raises:
        TrainingError: names what is wrong.
    """
    who, expected = f"client {task.client}", 'a mapping of metrics, with "loss" among them'
    if not isinstance(said, Mapping) or "loss" not in said or len(said) > MOST_METRICS:
        got = f"{len(said)}: {sorted(map(str, said))}" if isinstance(said, Mapping) else type(said).__name__
        expected = f"{expected} and at most {MOST_METRICS}"
        raise TrainingError(f"{who}: what the script returned", expected=expected, got=got[:200])
    found = {}
    for name, value in said.items():
        number = value.item() if isinstance(value, Tensor | np.generic) and _alone(value) else value
        if not isinstance(name, str) or isinstance(number, bool) or not isinstance(number, int | float):
            raise TrainingError(f"{who}: metric {name!r:.40}", expected="a number", got=f"{value!r:.60}")
        if not math.isfinite(number):
            raise diverged(task, steps, f"metric {name}", str(number), HINT)
        found[name] = float(number)
    return found


def _alone(value: Tensor | np.generic) -> bool:
    return value.numel() == 1 if isinstance(value, Tensor) else True


def _require_finite(task: TrainTask, trained: AdapterState, steps: int) -> None:
    """Refuse NaN and infinities, by the name of the tensor."""
    for name, value in trained.items():
        if wrong := int((~torch.isfinite(value)).sum()):
            got = f"{wrong} of {value.numel()} values that are not"
            raise diverged(task, steps, f"value everywhere in {name}", got, HINT)


@contextlib.contextmanager
def _masking(part: TrainablePart) -> Iterator[None]:
    """Inside, no gradient reaches values that the plan leaves out, whoever steps."""
    handles = [
        parameter.register_hook(  # type: ignore[no-untyped-call]  # torch leaves it untyped
            lambda slope, outside=outside: slope.masked_fill(outside, 0.0)
        )
        for parameter, outside, _ in part.masked
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and torch's global generators from ``seed``; as they were afterwards."""
    before = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
