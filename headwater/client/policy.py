"""Policy: what the owner of a device allows. :meth:`Policy.check` refuses by name and number. Pure.

Each rule is a short method that gives a :class:`Refusal`, or nothing. A task that is refused is answered at
once, so that nobody waits for it, and its owner is shown all the rules that forbid it, not one after another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

from headwater.client.usage import DayUsage
from headwater.config.agent import PolicySettings
from headwater.config.federation import Federation
from headwater.config.training import Training
from headwater.protocol.failures import Failure, FailureCode
from headwater.protocol.messages import EvaluateRequest, MaskRequest, Request, TrainRequest

MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the owner does not allow.

    Args:
        text: for the owner: the rule by its key, and what it met; a line for each rule.
        failure: for the organiser: the first of them.
    """

    text: str
    failure: Failure


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
    ) -> Refusal | None:
        """Why ``request`` is refused, or None.

        Args:
            request: the task.
            federation: the settings of its run.
            usage: what today has cost, without this request.
            now: local time.
            size: bytes of the request.
            examples: the owner's training examples in this run; None before they are known.
        """
        if isinstance(request, MaskRequest):  # a step of a sum of what was trained under the other rules
            return self.asleep(now) or self._spent(usage, size)
        lasting = (
            self._masks(federation),
            self._rank(request, federation),
            *self._work(request, federation, examples),
        )
        broken = [refusal for refusal in lasting if refusal is not None]
        if broken:  # before what passes by itself: only the owner ends these
            return Refusal("\n".join(refusal.text for refusal in broken), broken[0].failure)
        return self.asleep(now) or self._spent(usage, size)

    def allows(self, federation: Federation, method: str, examples: int, batch_size: int) -> bool:
        """Whether the rules on work allow a round of ``method`` on so many examples, with such batches."""
        training, limit, rank = federation.trainings[method], self.settings.max_rank, None
        if not self.settings.allows_training(training.kind):
            return False
        if federation.adapter is not None and (whole := federation.adapter.factor_rank):
            part = federation.methods[method].rank if method in federation.methods else None
            rank = min(part or whole, whole)
        few = self.settings.max_examples is None or examples <= self.settings.max_examples
        thin = limit is None or rank is None or rank <= limit
        return few and thin and self._steps(training, examples, max(1, batch_size)) is None

    def asleep(self, now: datetime) -> Refusal | None:
        """Whether ``now`` lies outside ``hours``."""
        if self._seconds_awake(now) > 0:
            return None
        text = f"policy hours {self.settings.hours}: it is {now:%H:%M} here"
        return Refusal(text, Failure(FailureCode.POLICY_HOURS, self._minutes(now)))

    def exhausted(self, usage: DayUsage) -> Refusal | None:
        """Whether nothing more may be fetched today."""
        return self._spent(usage, 1)

    def seconds_left(self, usage: DayUsage, now: datetime) -> tuple[float, Refusal]:
        """How long a task that starts now may take, and the rule that ends it then."""
        awake, limit = self._seconds_awake(now), self.settings.max_work_s_per_day
        work = math.inf if limit is None else max(0.0, limit - usage.work_s)
        if work <= awake:
            text = f"policy max_work_s_per_day {limit or 0:g}: used up in the middle of the task"
            numbers = (int(limit or 0), int(limit or 0))
            return work, Refusal(text, Failure(FailureCode.POLICY_WORK_PER_DAY, numbers))
        text = f"policy hours {self.settings.hours}: over in the middle of the task"
        return awake, Refusal(text, Failure(FailureCode.POLICY_HOURS, self._minutes(now)))

    def _minutes(self, now: datetime) -> tuple[int, ...]:
        """Start and end of ``hours`` and ``now``, in minutes of the day."""
        return tuple(60 * t.hour + t.minute for t in (*(self.settings.window() or ()), now.time()))

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

    def _spent(self, usage: DayUsage, size: int) -> Refusal | None:
        limit, work = self.settings.max_mb_per_day, self.settings.max_work_s_per_day
        if usage.unknown and (limit is not None or work is not None):
            rule = f"max_work_s_per_day {work:g}" if limit is None else f"max_mb_per_day {limit:g}"
            text = f"policy {rule}: what today has cost is not known here, so it counts as used up"
            return Refusal(text, Failure(FailureCode.POLICY_DAY_UNKNOWN))
        if limit is not None and usage.bytes + size > limit * MB:
            text = (
                f"policy max_mb_per_day {limit:g}: {usage.bytes / MB:.1f} MB are used today "
                f"and this is {size / MB:.1f} MB more"
            )
            numbers = (int(limit * MB), usage.bytes, size)
            return Refusal(text, Failure(FailureCode.POLICY_BYTES_PER_DAY, numbers))
        if work is not None and usage.work_s >= work:
            text = f"policy max_work_s_per_day {work:g}: {usage.work_s:.0f} s are used today"
            return Refusal(text, Failure(FailureCode.POLICY_WORK_PER_DAY, (int(work), int(usage.work_s))))
        return None

    def _masks(self, federation: Federation) -> Refusal | None:
        """Whether updates would leave otherwise than in a masked sum of enough clients."""
        wanted = self.settings.min_masked_clients
        least = federation.cohort.min_clients if federation.privacy.masks else 0
        if wanted is None or least >= wanted:
            return None
        failure = Failure(FailureCode.POLICY_MASKS, (wanted, least))
        stated = f"it masks sums of at least {least}" if least else "it has none (privacy.masks)"
        return Refusal(
            f"policy min_masked_clients {wanted}: the run must mask updates, and {stated}", failure
        )

    def _rank(self, request: Request, federation: Federation) -> Refusal | None:
        limit = self.settings.max_rank
        whole = 0 if federation.adapter is None else federation.adapter.factor_rank
        if limit is None or not whole:
            return None
        parts = [None, *(m.rank for m in federation.methods.values())]
        if isinstance(request, TrainRequest):
            parts = [request.plan.rank]
        wanted = min(whole if part is None else min(part, whole) for part in parts)
        if wanted <= limit:
            return None
        failure = Failure(FailureCode.POLICY_RANK, (limit, wanted))
        return Refusal(f"policy max_rank {limit}: the task wants {wanted}", failure)

    def _work(
        self, request: Request, federation: Federation, examples: int | None
    ) -> tuple[Refusal | None, ...]:
        if isinstance(request, EvaluateRequest):
            if self.settings.allow_evaluate:
                return ()
            text = "policy allow_evaluate false: no evaluation here"
            return (Refusal(text, Failure(FailureCode.POLICY_EVALUATE)),)
        # before the first round a federation is refused only if none of its methods may be used
        offered = list(federation.trainings.values())
        if isinstance(request, TrainRequest):
            offered = [request.plan.training]
        allowed = [training for training in offered if self.settings.allows_training(training.kind)]
        steps = None
        if examples is not None or isinstance(request, TrainRequest):
            said = [self._steps(training, examples) for training in allowed or offered]
            steps = None if None in said else said[0]
        kind = None if allowed else self._kind(offered[0])
        return kind, self._examples(examples), steps

    def _kind(self, training: Training) -> Refusal:
        text = f"policy training {list(self.settings.training)}: the task wants '{training.kind}'"
        return Refusal(text, Failure(FailureCode.POLICY_TRAINING))

    def _examples(self, examples: int | None) -> Refusal | None:
        most = self.settings.max_examples
        if most is None or examples is None or examples <= most:
            return None
        text = f"policy max_examples {most}: the task takes all {examples} of this device"
        return Refusal(text, Failure(FailureCode.POLICY_EXAMPLES, (most, examples)))

    def _steps(
        self, training: Training, examples: int | None, batch_size: int | None = None
    ) -> Refusal | None:
        limit = self.settings.max_steps
        if limit is None:
            return None
        steps = training.steps_of(examples, batch_size)
        if steps is None:
            text = f"policy max_steps {limit}: the task does not say how many steps it takes"
            return Refusal(text, Failure(FailureCode.POLICY_STEPS_UNKNOWN, (limit,)))
        if steps <= limit:
            return None
        failure = Failure(FailureCode.POLICY_STEPS, (limit, steps))
        return Refusal(f"policy max_steps {limit}: the task wants {steps}", failure)
