"""``[simulation] cohort = "auto"``: :func:`measured`, how many clients are trained fastest as one batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from headwater.client.device.memory import available_memory
from headwater.client.device.trial import plan_of
from headwater.client.execution.runtime import ClientRuntime
from headwater.config.training import MinibatchTraining
from headwater.process_memory import status_bytes
from headwater.protocol.messages import ClientPlan
from headwater.seeds.coefficients import directions_of
from headwater.simulation.cohort_record import CohortRecord, Timed
from headwater.strategies.seeding import seed_plan
from headwater.tasks.batches import Example
from headwater.training.batched.groups import FEWEST, MOST_TOKENS
from headwater.training.cohort import TrainTask
from headwater.training.memory_estimate import method_bytes

SECONDS = 3.0
"""What the measurement may take, but for the first try of one client."""
MOST = 64
GAIN = 0.97
"""A size must take at most this share of the time of a smaller one to be taken instead."""
_STEPS = 1


def measured(runtime: ClientRuntime, workers: int) -> CohortRecord:
    """Try a few sizes of batches on the run's own rows. Nothing of the run changes.

    Args:
        runtime: model and data; some of its trainings can be batches.
        workers: processes that train; each is to have a batch.
    """
    trial, model = _Trial(runtime), runtime.context.model
    if model is None or not (sizes := trial.sizes(workers)):
        return CohortRecord(1)
    before = model.read()
    timed = times(trial.seconds, sizes, SECONDS)
    model.load(before)
    return CohortRecord(fastest(timed), timed)


def fastest(timed: Sequence[Timed]) -> int:
    """The size to take: never one that took longer than clients one by one."""
    best = Timed(1, math.inf)
    for one in sorted(timed, key=lambda t: t.clients):
        if one.ms < GAIN * best.ms:
            best = one
    return best.clients


def times(
    seconds: Callable[[int], float],
    sizes: Sequence[int],
    budget_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timed]:
    """Sizes in turn, each twice, one by one first; the less of the two.

    What cannot be tried within the budget is not, nor what is larger than a size that could not be trained.

    Args:
        seconds: trains so many clients as one batch: of a client's step; infinity if it cannot.
        sizes: above 1, ascending.
        budget_s: of all, but for a first try of one, which is not counted.
        clock: seconds.
    """
    best: dict[int, float] = {}
    step_s, ends_s = seconds(1), clock() + budget_s
    for _ in range(2):
        for size in (1, *sizes):
            if clock() + _STEPS * size * step_s > ends_s:
                break
            found = seconds(size)
            if found == math.inf:
                best = {smaller: s for smaller, s in best.items() if smaller < size}
                break
            best[size] = min(best.get(size, math.inf), found)
            step_s = min(step_s, found)
    if 1 not in best:
        return []
    return [Timed(size, round(1e3 * found, 3)) for size, found in sorted(best.items())]


class _Trial:
    """Trains clients of the run for nothing."""

    def __init__(self, runtime: ClientRuntime) -> None:
        self._runtime, self._tasks = runtime, list[TrainTask]()
        trainings = runtime.context.loaded.settings.trainings.items()
        self._name, self._training = next(one for one in trainings if runtime.context.batches(one[1]))
        if isinstance(self._training, MinibatchTraining):
            cut = min(self._training.max_steps or _STEPS, _STEPS)
            self._training = self._training.model_copy(update={"max_steps": cut})

    def sizes(self, workers: int) -> list[int]:
        """What is worth a try: no more than a round has, a batch has room for and memory allows."""
        context, training = self._runtime.context, self._training
        settings = context.loaded.settings
        names = self._runtime.data.clients
        asked = min(settings.cohort.clients_per_round or len(names), len(names))
        if context.model is None or not isinstance(training, MinibatchTraining):
            return []
        most = min(MOST, math.ceil(asked / workers))
        rows = [self._runtime.data.client(name).train for name in names[:most]]
        lengths = [len(example.tokens) for own in rows for example in own]
        if not lengths:
            return []
        mean, longest = math.ceil(sum(lengths) / len(lengths)), max(lengths)
        room = MOST_TOKENS // (training.batch_size * (mean + context.model.virtual_tokens))
        plan = plan_of(settings, context.spec, self._name)
        one = method_bytes(context.model, plan, training.batch_size, longest)
        free = max(0, available_memory() - status_bytes("VmRSS")) // 2 // workers
        top = min(most, room, free // max(1, one))
        if room < FEWEST or top < 2:
            return []
        self._tasks = [self._task(name, own) for name, own in zip(names, rows[:top], strict=False)]
        return sorted({size for size in (4, 8, 16, 32, 64) if size < top} | {top})

    def _task(self, name: str, rows: Sequence[Example]) -> TrainTask:
        context, training = self._runtime.context, self._training
        assert isinstance(training, MinibatchTraining), "or there are no sizes"
        seeds = seed_plan(training, 1)
        plan = ClientPlan(training, context.loaded.settings.codec.up, seeds=seeds)
        directions = directions_of(seeds, self._runtime.root, context.spec.numel) if seeds else None
        return TrainTask(
            name, context.initial_state(), rows[: _STEPS * training.batch_size], plan, directions
        )

    def seconds(self, clients: int) -> float:
        """Of a client's step, in a batch of so many."""
        tasks, key = self._tasks[:clients], self._runtime.root.child("cohort")
        trainer = replace(self._runtime.context, cohort=clients).trainer(self._training)
        began = time.perf_counter()
        try:
            results = list(trainer.train(tasks, key=key))
        except (RuntimeError, MemoryError):  # torch's own: for want of memory above all
            return math.inf
        took = time.perf_counter() - began
        if any(result.delta is None for result in results):
            return math.inf
        return took / sum(result.steps for result in results)
