"""Setbacks: what this device could not do: told to its owner, kept until it is mended, tried again later.

One line in the log for each, with the whole text where it is new; a :class:`Problem` for ``client status``
where the owner must do something; a pause where the same work failed again and again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from datetime import datetime

from headwater.client.agent.backoff import Backoff
from headwater.client.agent.data_stamp import stamp
from headwater.client.agent.disk_room import free_bytes, needed_bytes, require_room
from headwater.client.agent.models import LocalModels
from headwater.client.agent.problems import OF_FILES, OF_POLICY, PASSING, Problem, Problems, first_line
from headwater.config.agent import AgentSettings
from headwater.protocol.failures import Failure, FailureCode
from headwater.protocol.messages import MaskRequest, ProfileRequest, Request, TrainRequest


class NotDone(Exception):
    """A task that is not done.

    Args:
        failure: for the server.
        text: why, in full, for the owner.
    """

    def __init__(self, failure: Failure, text: str) -> None:
        super().__init__(text)
        self.failure, self.text = failure, text


class Setbacks:
    """For one owner.

    Args:
        settings: the owner's file.
        models: the owner's base models.
        say: takes a line for the owner's log.
        now: local time.
        clock: seconds that only grow.

    Attributes:
        problems: what keeps the device from its work.
    """

    def __init__(
        self,
        settings: AgentSettings,
        models: LocalModels,
        say: Callable[[str], None],
        now: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:
        self.problems = Problems(settings.state / "problems.json", say)
        self._backoff = Backoff()
        self._settings, self._models = settings, models
        self._say, self._now, self._clock = say, now, clock
        self._rules = hashlib.sha256(settings.file.policy.model_dump_json().encode()).hexdigest()[:32]
        self._said: dict[tuple[str, str], str] = {}
        self._pausing: set[tuple[str, str]] = set()
        # the rules are read at the start: a problem with earlier ones is not known to be one any more
        self.problems.remove([p for p in self.problems if p.code in OF_POLICY and p.policy != self._rules])

    def met(self, request: Request | None, failure: Failure, text: str) -> Failure:
        """Tell the owner why ``request`` is not done; what the server is told of it.

        Args:
            request: the task; None for bytes that are none.
            failure: what was found.
            text: all of it.
        """
        cap = self._settings.file.policy.memory_mb
        if failure.code is FailureCode.OUT_OF_MEMORY and cap is not None:
            text = f"policy memory_mb {cap}: the task wants more ({text})"
            failure = Failure(FailureCode.POLICY_MEMORY, (cap,))
        if failure.code is FailureCode.DISK_FULL and isinstance(request, TrainRequest):
            failure = self._measured(request, failure)
        run, kind = ("", "") if request is None else (request.run, kind_of(request))
        if failure.code in PASSING:
            if failure.code is not FailureCode.TRIES_LATER or (run, kind) not in self._pausing:
                self._say(f"{describe(request)}: refused: {text}")
            if failure.code is FailureCode.TRIES_LATER:  # once in a pause
                self._pausing.add((run, kind))
            return failure
        self._pausing.discard((run, kind))
        inputs, pause_s, now = self._inputs(run), 0.0, self._now().timestamp()
        if failure.code not in OF_POLICY:
            pause_s = self._backoff.failed(run, kind, failure.code, self._clock(), inputs)
        problem = self.problems.met(
            Problem(
                run, kind, failure.code, text, now, now, 1, failure.numbers, inputs, self._rules,
                again=now + pause_s if pause_s else 0.0,
            )
        )  # fmt: skip
        self._tell(request, problem, pause_s)
        return failure

    def _tell(self, request: Request | None, problem: Problem, pause_s: float) -> None:
        """The whole text once; afterwards that it is as before."""
        later = f"; tried again in {pause_s:,.0f} s, or when your files change" if pause_s else ""
        key = problem.run, problem.kind
        if self._said.get(key) == problem.text:
            since = f"{datetime.fromtimestamp(problem.since):%Y-%m-%d %H:%M:%S}"
            times = f"as before, {problem.count} times since {since}"
            first = first_line(problem.text)
            first = first.rstrip(".:") if later else first
            self._say(f"{describe(request)}: refused {times}: {first}{later}")
        else:
            text = problem.text.rstrip(".") if later else problem.text
            self._say(f"{describe(request)}: refused: {text}{later}")
        self._said[key] = problem.text

    def done(self, request: Request, runs: list[str]) -> None:
        """Note that a task succeeded: its problem is over. ``runs`` are those that the device knows."""
        self._backoff.succeeded(request.run, kind_of(request))
        self.problems.done(request.run, kind_of(request))
        self.problems.keep_runs(runs)
        self._said.pop((request.run, kind_of(request)), None)

    def require_no_pause(self, request: Request) -> None:
        """Refuse, without any work, what failed before and would fail again.

        Raises:
            NotDone: with TRIES_LATER.
        """
        self.look_at_disk()
        run, kind = request.run, kind_of(request)
        pause = self._backoff.pause(run, kind, self._clock(), lambda: self._inputs(run))
        if pause is not None:
            seconds = math.ceil(pause.until - self._clock())
            code = pause.code.name.lower()
            times = "once" if pause.failures == 1 else f"{pause.failures} times"
            text = f"it failed {times} with {code} and is tried again in {seconds:,} s"
            raise NotDone(Failure(FailureCode.TRIES_LATER, (pause.code, seconds)), text)

    def require_room(self, request: TrainRequest) -> None:
        """Refuse a training whose result could not be kept.

        Raises:
            StorageError: with DISK_FULL.
        """
        require_room(request, self._settings.state)

    def look_at_disk(self) -> None:
        """End the problem of a full disk, and its pause, where there is room again."""
        full = [p for p in self.problems if p.code is FailureCode.DISK_FULL and p.numbers[0]]
        if full:
            free = free_bytes(self._settings.state)
            mended = [p for p in full if p.numbers[0] <= free]
            for problem in mended:
                self._backoff.succeeded(problem.run, problem.kind)
            self.problems.remove(mended)

    def worth_another_look(self) -> list[str]:
        """The runs with problems of files that have changed since."""
        found = [p for p in self.problems if p.code in OF_FILES]
        return sorted({p.run for p in found if p.inputs != self._inputs(p.run)})

    def _measured(self, request: TrainRequest, failure: Failure) -> Failure:
        """A full disk that was met while writing, with its numbers; none where there seems to be room."""
        needed, free = needed_bytes(request, self._settings.state), free_bytes(self._settings.state)
        return Failure(failure.code, (needed, free)) if free < needed else failure

    def _inputs(self, run: str) -> str:
        """What the files are like that decide whether a task of this run can be done."""
        state = self._settings.state
        folder = state / "runs" / run
        kept = (
            [path for kind in ("feedback", "own") for path in sorted(folder.glob(f"*.{kind}"))] if run else []
        )
        return stamp([self._settings.data, *self._models.candidates(), *kept], skip=state)


def kind_of(request: Request) -> str:
    """``profile``, ``train``, ``evaluate`` or ``masks``."""
    if isinstance(request, ProfileRequest):
        return "profile"
    if isinstance(request, MaskRequest):
        return "masks"
    return "train" if isinstance(request, TrainRequest) else "evaluate"


def describe(request: Request | None) -> str:
    """Which task, for the owner."""
    if request is None:
        return "a message"
    if isinstance(request, ProfileRequest):
        return f"run {request.run}: profile"
    return f"run {request.run} round {request.round}: {kind_of(request)}"
