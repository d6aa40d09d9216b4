"""Policy: what the owner of a device allows. :meth:`Policy.check` refuses by name and number. Pure.

Each rule is a short method that gives the sentence the organiser will read, or nothing. A task that is
refused is answered at once, so that nobody waits for it.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta

from headwater.client.usage import DayUsage
from headwater.config.agent import PolicySettings
from headwater.config.federation import Federation, LoraAdapter
from headwater.config.training import BlackboxTraining, DecomflTraining, Passes, Training
from headwater.protocol.messages import EvaluateRequest, Request, TrainRequest

MB = 1_000_000


class Policy:
    """The owner's ``[policy]``."""

    def __init__(self, settings: PolicySettings) -> None:
        self.settings = settings

    def check(
        self,
        request: Request,
        federation: Federation,
        usage: DayUsage,
        now: datetime,
        *,
        size: int = 0,
        examples: int | None = None,
    ) -> str | None:
        """Why ``request`` is refused, or None.

        Args:
            request: the task.
            federation: the settings of its run.
            usage: what today has cost, without this request.
            now: local time.
            size: bytes of the request.
            examples: the owner's training examples in this run; None before they are known.
        """
        return (
            self.asleep(now)
            or self._spent(usage, size)
            or self._rank(request, federation)
            or self._work(request, federation, examples)
        )

    def allows(self, federation: Federation, method: str, examples: int, batch_size: int) -> bool:
        """Whether the rules on work allow a round of ``method`` on so many examples, with such batches."""
        training, limit, rank = federation.trainings[method], self.settings.max_rank, None
        if training.kind not in self.settings.training:
            return False
        if "batch_size" in type(training).model_fields:
            training = training.model_copy(update={"batch_size": max(1, batch_size)})
        if isinstance(federation.adapter, LoraAdapter):
            part = federation.methods[method].rank if method in federation.methods else None
            rank = min(part or federation.adapter.rank, federation.adapter.rank)
        few = self.settings.max_examples is None or examples <= self.settings.max_examples
        thin = limit is None or rank is None or rank <= limit
        return few and thin and self._steps(training, examples) is None

    def asleep(self, now: datetime) -> str | None:
        """Whether ``now`` lies outside ``hours``."""
        if self._seconds_awake(now) > 0:
            return None
        return f"policy hours {self.settings.hours}: it is {now:%H:%M} here"

    def exhausted(self, usage: DayUsage) -> str | None:
        """Whether nothing more may be fetched today."""
        return self._spent(usage, 1)

    def seconds_left(self, usage: DayUsage, now: datetime) -> tuple[float, str]:
        """How long a task that starts now may take, and the rule that says so."""
        awake, limit = self._seconds_awake(now), self.settings.max_work_s_per_day
        work = math.inf if limit is None else max(0.0, limit - usage.work_s)
        if work <= awake:
            return work, f"policy max_work_s_per_day {limit or 0:g}: used up in the middle of the task"
        return awake, f"policy hours {self.settings.hours}: over in the middle of the task"

    def _seconds_awake(self, now: datetime) -> float:
        window = self.settings.window()
        if window is None or window[0] == window[1]:
            return math.inf
        start, end = (datetime.combine(now.date(), t, now.tzinfo) for t in window)
        if end <= start:  # over midnight
            if now < end:
                start -= timedelta(days=1)
            else:
                end += timedelta(days=1)
        return (end - now).total_seconds() if start <= now < end else 0.0

    def _spent(self, usage: DayUsage, size: int) -> str | None:
        limit, work = self.settings.max_mb_per_day, self.settings.max_work_s_per_day
        if usage.unknown and (limit is not None or work is not None):
            rule = f"max_work_s_per_day {work:g}" if limit is None else f"max_mb_per_day {limit:g}"
            return f"policy {rule}: what today has cost is not known here, so it counts as used up"
        if limit is not None and usage.bytes + size > limit * MB:
            return (
                f"policy max_mb_per_day {limit:g}: {usage.bytes / MB:.1f} MB are used today "
                f"and this is {size / MB:.1f} MB more"
            )
        if work is not None and usage.work_s >= work:
            return f"policy max_work_s_per_day {work:g}: {usage.work_s:.0f} s are used today"
        return None

    def _rank(self, request: Request, federation: Federation) -> str | None:
        limit, adapter = self.settings.max_rank, federation.adapter
        if limit is None or not isinstance(adapter, LoraAdapter):
            return None
        parts = [None, *(m.rank for m in federation.methods.values())]
        if isinstance(request, TrainRequest):
            parts = [request.plan.rank]
        wanted = min(adapter.rank if part is None else min(part, adapter.rank) for part in parts)
        return None if wanted <= limit else f"policy max_rank {limit}: the task wants {wanted}"

    def _work(self, request: Request, federation: Federation, examples: int | None) -> str | None:
        if isinstance(request, EvaluateRequest):
            return None if self.settings.allow_evaluate else "policy allow_evaluate false: no evaluation here"
        # before the first round a federation is refused only if none of its methods may be used
        offered = list(federation.trainings.values())
        if isinstance(request, TrainRequest):
            offered = [request.plan.training]
        allowed = [training for training in offered if training.kind in self.settings.training]
        if not allowed:
            return f"policy training {list(self.settings.training)}: the task wants '{offered[0].kind}'"
        most = self.settings.max_examples
        if most is not None and examples is not None and examples > most:
            return f"policy max_examples {most}: the task takes all {examples} of this device"
        if examples is None and not isinstance(request, TrainRequest):
            return None
        said = [self._steps(training, examples) for training in allowed]
        return None if None in said else said[0]

    def _steps(self, training: Training, examples: int | None) -> str | None:
        limit = self.settings.max_steps
        if limit is None:
            return None
        steps = count_steps(training, examples)
        if steps is None:
            return f"policy max_steps {limit}: the task does not say how many steps it takes"
        return None if steps <= limit else f"policy max_steps {limit}: the task wants {steps}"


def count_steps(training: Training, examples: int | None) -> int | None:
    """Optimiser steps of one task, as the trainer takes them; None if they cannot be known."""
    if isinstance(training, BlackboxTraining):
        return training.generations
    if isinstance(training, DecomflTraining):  # its seeds are the round's, however many examples there are
        return training.max_steps
    if not isinstance(training, Passes):
        return 0
    if examples is None:
        return training.max_steps
    return training.steps(examples)
