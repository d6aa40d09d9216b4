"""EvaluationWait: which clients an evaluation still waits for, and for how long."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from headwater.protocol.messages import EvaluateRequest
from headwater.server.clients.client_pool import AWAY_S, POLL_CLIENTS_S, ClientPool
from headwater.server.clients.run_control import RunControl
from headwater.server.events import ClientFailed, Notice
from headwater.server.rounds.round_driver import STOP_PATIENCE_S, WaitNotices

STOP_AT_MOST_S = 600.0
"""After a stop was asked for, clients that are there may go on evaluating this long."""


class EvaluationAborted(Exception):
    """A stop was asked for and the evaluation cannot end: its round is left open. No error."""


class EvaluationWait:
    """One evaluation's wait. Who goes away meanwhile is waited for :data:`AWAY_S`, and not for longer.

    Args:
        number: the round that is evaluated.
        asked: the clients.
        pool: the same, as they come and go.
        control: time, stop and observer.
        deadline_s: so long they are waited for, by now: the organiser may change it meanwhile.
        lasting: whether clients may go away, and a round that is left open goes on at the next start.
    """

    def __init__(
        self,
        number: int,
        asked: Iterable[str],
        pool: ClientPool,
        control: RunControl,
        deadline_s: Callable[[], float],
        *,
        lasting: bool,
    ) -> None:
        self._number, self._pool, self._control, self._lasting = number, pool, control, lasting
        self._missing = set(asked)
        self._deadline_s = deadline_s
        self._began_s = control.clock()
        self._waits = WaitNotices(control.observer, number, "evaluate", self._began_s)
        self._away_s: dict[str, float] = {}  # since when
        self._looked_s = -float("inf")
        self._give_up_s: float | None = None
        self._latest_s = float("inf")
        self.given_up: dict[str, str] = {}
        """Who was asked and is not waited for any longer, and why."""

    def answered(self, client: str) -> None:
        """This client is not waited for any more."""
        self._missing.discard(client)

    @property
    def ends_s(self) -> float:
        """When the deadline passes, by now."""
        return self._began_s + self._deadline_s()

    def over(self) -> bool:
        """Whether the deadline has passed; those that are missing are named then.

        Raises:
            EvaluationAborted: a stop was asked for, and who is missing is away or takes too long.
        """
        now = self._control.clock()
        deadline_s = self._deadline_s()
        if now >= self._began_s + deadline_s:
            for client in sorted(self._missing):
                self._failed(client, f"no evaluation within {deadline_s:g} s")
            return True
        if now >= self._looked_s + POLL_CLIENTS_S and not self._control.simulated:
            self._looked_s = now
            if self._lasting:
                self._check_clients(now)
            ready, why = self._pool.ready(), self._pool.missing()
            self._waits.update(
                {c: "at work" if c in ready else why.get(c, "offline") for c in self._missing}, now
            )
        return False

    def end(self) -> None:
        """Tell that nobody is waited for any more."""
        self._waits.over()

    def _give_up_absent(self, away: set[str], now: float) -> None:
        """Wait no longer for a client that has been away for :data:`AWAY_S`."""
        self._away_s = {client: self._away_s.get(client, now) for client in away}
        for client, since in sorted(self._away_s.items()):
            if now > since + AWAY_S:
                self._failed(client, f"it went away and was not back within {AWAY_S:g} s")
                self._pool.exchange.forget_address(EvaluateRequest, client)
                self._missing.discard(client)
                away.discard(client)

    def _check_clients(self, now: float) -> None:
        """Give up clients that were revoked or stay away; raise if a stop waits too long."""
        for client in sorted(self._missing - self._pool.profiles().keys()):
            self._failed(client, "no longer enrolled")
            self._pool.exchange.forget_address(EvaluateRequest, client)
            self._missing.discard(client)
        away = self._missing - self._pool.ready().keys()
        self._give_up_absent(away, now)
        if not self._control.should_stop():
            return
        if self._give_up_s is None:
            self._control.observer(Notice(f"stopping after the evaluation of round {self._number}"))
            self._give_up_s, self._latest_s = now + STOP_PATIENCE_S, now + STOP_AT_MOST_S
        elif self._missing - away:
            self._give_up_s = now + STOP_PATIENCE_S
        if self._missing and now > min(self._give_up_s, self._latest_s):
            names = ", ".join(sorted(self._missing))
            self._control.observer(
                Notice(
                    f"round {self._number} stays open: it is not evaluated without {names}; "
                    "a resume merges the same updates and evaluates again"
                )
            )
            raise EvaluationAborted

    def _failed(self, client: str, reason: str) -> None:
        self.given_up[client] = reason
        self._control.observer(ClientFailed(self._number, client, reason))
