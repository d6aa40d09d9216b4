"""Who can take part: :class:`ClientPool`, and :class:`FixedClients` for those who were asked once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from headwater.errors import HeadwaterError
from headwater.protocol.messages import ClientProfile, Request
from headwater.server.clients.exchange import Exchange, ReceivedReply
from headwater.server.round_record import RoundDraft

AWAY_S = 90.0
"""So long a client that went away is waited for where only its evaluation is missing, and one that has not
been here since the daemon began. Agents try to come back at least once a minute."""
POLL_CLIENTS_S = 1.0
"""Pause between two looks at who came and who was revoked."""


@dataclass(frozen=True, slots=True)
class LeftAtWork:
    """A client that an earlier process asked, and whose reply comes to this one.

    Args:
        client: its name.
        round: the version that it started from.
        base_sha256: of the state that it started from.
        asked_s: when it was asked, on the run control's clock.
    """

    client: str
    round: int
    base_sha256: str
    asked_s: float


class ClientPool(ABC):
    """The clients of a run and the way to them.

    Attributes:
        exchange: requests go out and replies come in here.
    """

    exchange: Exchange

    @abstractmethod
    def profiles(self) -> Mapping[str, ClientProfile]:
        """Every client that has said what it has and may take part, by name, sorted."""

    @abstractmethod
    def ready(self) -> Mapping[str, ClientProfile]:
        """Those of them that can be reached now."""

    def is_away(self, client: str) -> bool:
        """Whether the client has left, or is not heard of any more: what it is asked would wait for it.

        One that has not been here since the process began is given :data:`AWAY_S` to come back. Nobody
        is ever away in a simulation.
        """
        return False

    def moved(self) -> Collection[str]:
        """Who came or went since this was last asked, which is in simulated time only."""
        return ()

    def at_work(self) -> Sequence[LeftAtWork]:
        """Who is at work since before this process; said once. Only in simulated time."""
        return ()

    def round_closed(self) -> None:  # noqa: B027 - nothing to do but in simulated time
        """A round's updates are in; what follows is merging and evaluation."""

    def describe(self, draft: RoundDraft) -> None:  # noqa: B027 - likewise
        """Add to a round's record, before it is written, what only the way to the clients knows."""

    def uploads(self) -> Mapping[str, Sequence[int]]:
        """How fast updates came since this was last asked, in bytes/s by client: over links, or pretended."""
        return self.exchange.speeds.take()

    def missing(self) -> Mapping[str, str]:
        """Who may take part and is not among :meth:`ready`, by name, sorted: why not, in a few words."""
        return {}

    def lost(self) -> Mapping[str, str]:
        """Clients that cannot take part, and why: failures by name of every round."""
        return {}

    def signing_keys(self) -> Mapping[str, bytes]:
        """The Ed25519 keys that clients are enrolled with, by name; none where they sign nothing."""
        return {}

    @abstractmethod
    def poll(self, *kinds: type[Request]) -> Iterator[ReceivedReply]:
        """Replies to requests of these kinds that are there now. Introductions are dealt with on the way."""

    @abstractmethod
    def forget_profile(self, client: str, error: HeadwaterError) -> None:
        """``error`` says why the client cannot work (``NOT_READY``): introduce it anew where that can be."""


class FixedClients(ClientPool):
    """Clients that were there at the start and stay: a simulation's.

    Args:
        exchange: with their nodes.
        profiles: by name.
        lost: who did not get so far, and why.
    """

    def __init__(
        self,
        exchange: Exchange,
        profiles: Mapping[str, ClientProfile],
        lost: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.exchange, self._profiles = exchange, dict(sorted(profiles.items()))
        self._lost = dict(sorted(lost.items()))

    def lost(self) -> Mapping[str, str]:  # noqa: D102 - inherited
        return self._lost

    def profiles(self) -> Mapping[str, ClientProfile]:  # noqa: D102 - inherited
        return self._profiles

    def ready(self) -> Mapping[str, ClientProfile]:  # noqa: D102 - inherited
        return self._profiles

    def poll(self, *kinds: type[Request]) -> Iterator[ReceivedReply]:  # noqa: D102 - inherited
        return self.exchange.poll(*kinds)

    def forget_profile(self, client: str, error: HeadwaterError) -> None:
        """Nothing: a client whose profile was collected knows the run."""
