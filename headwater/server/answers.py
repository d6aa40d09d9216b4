"""Answers: who of the clients that evaluate is still waited for, and for how long."""

from __future__ import annotations

from collections.abc import Iterable

from headwater.protocol.messages import EvaluateRequest
from headwater.server.conversation import LOOK_S, STOP_PATIENCE_S
from headwater.server.events import ClientFailed, Notice, Waiting
from headwater.server.members import Members
from headwater.server.watch import Watch

STOP_AT_MOST_S = 600.0
"""After a stop was asked for, clients that are there may go on evaluating this long."""


class Unmeasured(Exception):
    """A stop was asked for and the evaluation cannot end: its round is left open. No error."""


class Answers:
    """One evaluation's wait.

    Args:
        number: the round that is evaluated.
        asked: the clients.
        members: the same, as they come and go.
        watch: time, stop and observer.
        deadline_s: so long they are waited for.
        lasting: whether clients may go away, and a round that is left open goes on at the next start.
    """

    def __init__(
        self,
        number: int,
        asked: Iterable[str],
        members: Members,
        watch: Watch,
        deadline_s: float,
        *,
        lasting: bool,
    ) -> None:
        self._number, self._members, self._watch, self._lasting = number, members, watch, lasting
        self._missing = set(asked)
        self._need, self._deadline_s = len(self._missing), deadline_s
        self._ends_s = watch.clock() + deadline_s
        self._looked_s = -float("inf")
        self._give_up_s: float | None = None
        self._latest_s = float("inf")
        self._told: tuple[str, ...] = ()

    def heard(self, client: str) -> None:
        """This client is not waited for any more."""
        self._missing.discard(client)

    def over(self) -> bool:
        """Whether the deadline has passed; those that are missing are named then.

        Raises:
            Unmeasured: a stop was asked for, and who is missing is away or takes too long.
        """
        now = self._watch.clock()
        if now >= self._ends_s:
            for client in sorted(self._missing):
                self._failed(client, f"no evaluation within {self._deadline_s:g} s")
            return True
        if self._lasting and now >= self._looked_s + LOOK_S:
            self._looked_s = now
            self._look(now)
        return False

    def end(self) -> None:
        """Tell that nobody is waited for any more."""
        self._tell(())

    def _look(self, now: float) -> None:
        """Who is enrolled no more, who is away, and is the run to end?"""
        for client in sorted(self._missing - self._members.profiles().keys()):
            self._failed(client, "no longer enrolled")
            self._members.exchange.forget_address(EvaluateRequest, client)
            self._missing.discard(client)
        away = self._missing - self._members.ready().keys()
        self._tell(tuple(sorted(away)))
        if not self._watch.should_stop():
            return
        if self._give_up_s is None:
            self._watch.observer(Notice(f"stopping after the evaluation of round {self._number}"))
            self._give_up_s, self._latest_s = now + STOP_PATIENCE_S, now + STOP_AT_MOST_S
        elif self._missing - away:
            self._give_up_s = now + STOP_PATIENCE_S
        if self._missing and now > min(self._give_up_s, self._latest_s):
            names = ", ".join(sorted(self._missing))
            self._watch.observer(
                Notice(
                    f"round {self._number} stays open: it is not evaluated without {names}; "
                    "a resume merges the same updates and evaluates again"
                )
            )
            raise Unmeasured

    def _tell(self, away: tuple[str, ...]) -> None:
        if away != self._told:
            self._told = away
            self._watch.observer(Waiting(self._need - len(away), self._need, away))

    def _failed(self, client: str, reason: str) -> None:
        self._watch.observer(ClientFailed(self._number, client, reason))
