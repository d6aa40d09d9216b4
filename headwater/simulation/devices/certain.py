"""CertainTasks: which trainings of a round are executed whatever happens until then."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from headwater.simulation.devices.clock import NEVER, micros
from headwater.simulation.devices.tasks import SimulatedTask


class CertainTasks:
    """Says which trainings an engine may work on ahead of simulated time.

    A training that was executed leaves something with its client, such as what its update could not carry.
    So what is executed may hang on simulated time alone, not on how far an engine came before a round closed.

    Args:
        target: updates with which a round closes; None if it waits for all.
        deadline_s: after which it closes with whoever has answered; None for never.
    """

    def __init__(self, target: int | None = None, deadline_s: float | None = None) -> None:
        self._target = target
        self._deadline = NEVER if deadline_s is None else micros(deadline_s)
        self._round, self._ends, self._asked = -1, NEVER, set[str]()

    def among(
        self, tasks: Sequence[SimulatedTask], out: Iterable[SimulatedTask], *, round: int, now: int
    ) -> list[bool]:
        """Of each of these trainings, whether it is certain.

        Args:
            tasks: that are sent now.
            out: trainings that are out besides.
            round: of ``tasks``.
            now: microseconds.
        """
        if round != self._round:
            self._round, self._ends, self._asked = round, now + self._deadline, set()
        if self._target is None:
            return [task.computed < self._ends for task in tasks]
        self._asked |= {task.client for task in tasks}
        working = sorted((t.computed, t.client) for t in (*out, *tasks) if not t.failure)
        place = {task: i for i, task in enumerate(working)}
        # whoever was asked may be in before, but for those that compute longer, and itself
        before = len(self._asked) - len(working)
        return [
            not task.failure
            and task.computed < self._ends
            and before + place[task.computed, task.client] < self._target
            for task in tasks
        ]
