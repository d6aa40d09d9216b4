"""Backoff: work that failed again and again is tried later, and later each time. Pure; no clock, no files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headwater.protocol.failures import FailureCode

FIRST_S, LONGEST_S = 60.0, 3600.0
"""The pause after the second failure in a row, and the longest; each is twice the one before."""
NO_WORK = frozenset(
    {
        FailureCode.MODEL_MISSING,
        FailureCode.WEIGHTS_CHANGED,
        FailureCode.ANOTHER_VERSION,
        FailureCode.PLUGIN_MISSING,
    }
)
"""Failures that are found without any work: there is nothing to save."""
AT_ONCE = frozenset({FailureCode.DISK_FULL})
"""Failures that come again for certain: they are waited for after the first one."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Work that is not tried again before ``until``, or before ``inputs`` change.

    Args:
        code: of the last failure.
        failures: in a row.
        until: in the clock's seconds.
        inputs: what the owner's files were like (:func:`headwater.client.agent.data_stamp.stamp`).
    """

    code: FailureCode
    failures: int
    until: float
    inputs: str


class Backoff:
    """By run and kind of task. Nothing is kept on disk: a restart tries at once."""

    def __init__(self) -> None:
        self._pauses: dict[tuple[str, str], Pause] = {}

    def failed(self, run: str, kind: str, code: FailureCode, now: float, inputs: str) -> float:
        """Note a failure; return in how many seconds such a task is done again, 0 for at the next request."""
        if code in NO_WORK:
            return 0.0
        before = self._pauses.get((run, kind))
        count = 1 if before is None or before.inputs != inputs else before.failures + 1
        doubled = count - (1 if code in AT_ONCE else 2)
        seconds = 0.0 if doubled < 0 else min(LONGEST_S, FIRST_S * 2.0 ** min(doubled, 10))
        self._pauses[run, kind] = Pause(code, count, now + seconds, inputs)
        return seconds

    def succeeded(self, run: str, kind: str) -> None:
        """Note that such a task succeeded."""
        self._pauses.pop((run, kind), None)

    def pause(self, run: str, kind: str, now: float, inputs: Callable[[], str]) -> Pause | None:
        """The pause that such a task must still wait for. A profile also waits where training does.

        Else the server would take this device for ready and ask it in every round for nothing.

        Args:
            run: id of the run.
            kind: of the task.
            now: in the clock's seconds.
            inputs: looks what the owner's files are like now.
        """
        kinds = (kind, "train") if kind == "profile" else (kind,)
        found = [self._pauses[run, k] for k in kinds if (run, k) in self._pauses]
        waits = [p for p in found if p.until > now]
        if not waits:
            return None
        files = inputs()
        return max((p for p in waits if p.inputs == files), key=lambda p: p.until, default=None)
