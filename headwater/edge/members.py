"""EdgeMembers: asks the clients behind an edge aggregator, and waits for what they answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from headwater.client.agent.task_clock import AgentStopping
from headwater.flower.fleet_server import FleetServer
from headwater.protocol.messages import Request
from headwater.server.clients.exchange import Exchange, ReceivedReply

POLL_S = 0.05
AWAY_S = 20.0
"""Who is away so long when it is asked, or goes away meanwhile, has failed."""


class EdgeMembers:
    """The way to the clients that are enrolled here.

    Args:
        link: their nodes.
        exchange: with them, by name.
        refresh: takes over what was enrolled or revoked meanwhile.
        should_stop: whether to drop everything.
        clock: seconds that only grow.

    Attributes:
        told: the sessions of those who were there when the server was last told of them; None before.
        max_reply_bytes: of one client's reply, in the present task.
    """

    def __init__(
        self,
        link: FleetServer,
        exchange: Exchange,
        refresh: Callable[[], None],
        should_stop: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link, self._exchange, self._refresh = link, exchange, refresh
        self._should_stop, self._clock = should_stop, clock
        self.told: Mapping[str, int] | None = None
        self.max_reply_bytes = 2**20
        self._changed: tuple[Mapping[str, int], float] = {}, 0.0

    def online(self) -> Mapping[str, int]:
        """Who is there, each with a number that changes when it comes back."""
        self._refresh()
        return self._link.sessions()

    def settled_change(self, quiet_s: float) -> bool:
        """Whether others are here than the server was told of, and have been for so long."""
        now, online = self._clock(), self.online()
        if self.told is None or online == self.told:
            return False
        if self._changed[0] != online:
            self._changed = online, now
        return now >= self._changed[1] + quiet_s

    def ask(
        self,
        requests: Mapping[str, Request],
        kind: type[Request],
        number: int,
        patience_s: float,
        take: Callable[[ReceivedReply], None],
    ) -> dict[str, str]:
        """Send, and hand on each reply as it comes; by name, why no more is waited for.

        Raises:
            AgentStopping: the edge aggregator is to end.
        """
        for name in requests:
            self._exchange.forget_address(kind, name)
        self._exchange.send(requests.items(), number)
        waiting, lost = set(requests), dict[str, str]()
        seen_s = dict.fromkeys(requests, began_s := self._clock())
        while waiting:
            if self._should_stop():
                raise AgentStopping
            quiet = True
            for incoming in self._exchange.poll(kind):
                if incoming.address in waiting and incoming.round == number:
                    waiting.discard(incoming.address)
                    quiet = False
                    take(incoming)
            now, online = self._clock(), self.online()
            seen_s |= {name: now for name in waiting if name in online}
            for name in sorted(waiting):
                if now > began_s + patience_s:
                    lost[name] = f"no answer to its edge aggregator within {patience_s:g} s"
                elif now > seen_s[name] + AWAY_S:
                    lost[name] = "offline behind its edge aggregator"
            waiting -= lost.keys()
            if quiet and waiting:
                time.sleep(POLL_S)
        self._exchange.forget(kind, number)
        return lost
