"""DiscoveredClients: who takes part over a network, where clients come, go, and change their data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from headwater import __version__
from headwater.config.federation import Federation
from headwater.errors import DecodeError, HeadwaterError, UpdateRejected
from headwater.proto.group_wire import decode_group_reply
from headwater.proto.wire import decode_reply
from headwater.protocol.failures import UNSPECIFIED, Failure
from headwater.protocol.messages import ClientProfile, ProfileRequest, Request
from headwater.security.claims import NAME_RULE, valid_name
from headwater.server.clients.client_pool import AWAY_S, ClientPool
from headwater.server.clients.exchange import Exchange, ReceivedReply
from headwater.server.clients.handshake import profile_of
from headwater.server.clients.run_control import RunControl
from headwater.server.events import ClientFailed, ClientKnown, Observer
from headwater.server.storage.profiles import load_profiles, save_profiles
from headwater.strategies.summing import why_no_sums
from headwater.training.context import TrainingContext

RETRY_AFTER_S = 60.0
"""A client that is silent, or refused, or does not fit, is asked again after this long: that may change."""


@dataclass(frozen=True)
class EnrolledClients:
    """Who may take part, and who of them is online now.

    Args:
        sessions: for every enrolled client that is online, a number that changes when it comes back.
        enrolled: whether a name may take part.
        names: every enrolled name.
        edges: the enrolled names that are edge aggregators, each with how many clients it may speak for.
        keys: the signing key of every enrolled name.
    """

    sessions: Callable[[], Mapping[str, int]]
    enrolled: Callable[[str], bool]
    names: Callable[[], Iterable[str]] = tuple
    edges: Mapping[str, int] = field(default_factory=dict)
    keys: Callable[[], Mapping[str, bytes]] = dict


class DiscoveredClients(ClientPool):
    """Asks every client that comes online who it is; what it said is kept in a file.

    Args:
        exchange: addresses are enrolled names.
        run: id of the run.
        settings: of the federation, sent to the clients.
        context: the base model and spec that clients must share.
        enrolled: who may take part, and who is online.
        path: the file.
        control: time and observer.
    """

    def __init__(
        self,
        exchange: Exchange,
        run: str,
        settings: Federation,
        context: TrainingContext,
        enrolled: EnrolledClients,
        path: Path,
        control: RunControl,
    ) -> None:
        self.exchange = exchange
        self._context, self._enrolled, self._path, self._control = context, enrolled, path, control
        self._began_s = control.clock()
        self._seen: set[str] = set()  # clients that were online since then
        self._observer: Observer = control.observer
        start = context.start
        federation = settings.told_to_devices("" if start is None else start.sha256)
        sent = b"" if start is None else start.to_bytes()
        self._request = ProfileRequest(run, federation, context.base_sha256, __version__, sent)
        self._known = load_profiles(path)
        self._unsaved, self._settings = False, settings
        self._unfit: dict[str, str] = {}  # whose last answer was no profile that fits, and why
        self._short: dict[str, str] = {}  # of those, and of those who could not work: why, in few words
        self._greeted: dict[str, int] = {}  # the session in which a client was last asked
        self._behind: dict[str, frozenset[str]] = {}  # by edge aggregator: who has answered it
        self._via: dict[str, str] = {}  # by client that it spoke of, the edge aggregator
        self._retry_at_s: dict[str, float] = {}  # when to ask a client once more that has not answered well

    def profiles(self) -> Mapping[str, ClientProfile]:  # noqa: D102 - inherited
        return {name: p for name, p in sorted(self._known.items()) if self._may(name, p.edge)}

    def ready(self) -> Mapping[str, ClientProfile]:  # noqa: D102 - inherited
        online = self._online()
        return {
            name: profile
            for name, profile in self.profiles().items()
            if self._is_ready(name, profile.edge, online)
        }

    def _may(self, name: str, edge: str) -> bool:
        """Whether a client may take part: enrolled here, or behind an edge aggregator that is."""
        enrolled = self._enrolled.enrolled
        edges = self._enrolled.edges
        return enrolled(edge) and edge in edges if edge else enrolled(name) and name not in edges

    def _is_ready(self, name: str, edge: str, online: Mapping[str, int]) -> bool:
        via = edge or name
        if via not in online or self._greeted.get(via) != online[via]:
            return False
        return name in self._behind.get(edge, ()) if edge else name not in self._retry_at_s

    def edge_of(self, client: str) -> str:
        """The edge aggregator that a client is behind; empty for one that is reached directly."""
        known = self._known.get(client)
        return self._via.get(client, "") if known is None else known.edge

    def is_away(self, client: str) -> bool:  # noqa: D102 - inherited
        via = self.edge_of(client) or client
        if via in self._online():
            return False
        return via in self._seen or self._control.clock() > self._began_s + AWAY_S

    def signing_keys(self) -> Mapping[str, bytes]:  # noqa: D102 - inherited
        return self._enrolled.keys()

    def lost(self) -> Mapping[str, str]:  # noqa: D102 - inherited
        online = self._online()
        unfit = sorted(self._unfit.items())
        via = {n: self._via.get(n, "") for n, _ in unfit}
        return {n: why for n, why in unfit if (via[n] or n) in online and self._may(n, via[n])}

    def missing(self) -> Mapping[str, str]:  # noqa: D102 - inherited
        online, ready = self._online(), self.ready()
        return {
            name: self._why_not_ready(name, online)
            for name in sorted({*self._enrolled.names(), *self.profiles(), *self._via} - ready.keys())
            if name not in self._enrolled.edges
        }

    def _why_not_ready(self, name: str, online: Mapping[str, int]) -> str:
        edge = self.edge_of(name)
        if (edge or name) not in online:
            return f"offline: its edge aggregator {edge}" if edge else "offline"
        unknown = f"not at its edge aggregator {edge}" if edge else "has not said yet what it has"
        return self._short.get(name, unknown)

    def _online(self) -> Mapping[str, int]:
        online = self._enrolled.sessions()
        self._seen.update(online)
        return online

    def poll(self, *kinds: type[Request]) -> Iterator[ReceivedReply]:  # noqa: D102 - inherited
        self._request_profiles()
        for incoming in self.exchange.poll(ProfileRequest, *kinds):
            if incoming.kind is ProfileRequest:
                self._take_profile(incoming)
            else:
                yield incoming
        if self._unsaved:  # once for all that came: with hundreds the file is long
            save_profiles(self._path, self._known)
            self._unsaved = False

    def forget_profile(self, client: str, error: HeadwaterError) -> None:  # noqa: D102 - inherited
        self._greeted.pop(self.edge_of(client) or client, None)
        self._short[client] = _in_short(error)

    def _request_profiles(self) -> None:
        now = self._control.clock()
        for name, session in self._online().items():
            again = self._retry_at_s.get(name)
            if self._greeted.get(name) != session or (again is not None and now >= again):
                if self._greeted.get(name) != session:
                    self._behind.pop(name, None)
                self._greeted[name] = session
                self._retry_at_s[name] = now + RETRY_AFTER_S
                self.exchange.forget_address(ProfileRequest, name)
                self.exchange.send([(name, self._request)], 0)

    def _take_profile(self, incoming: ReceivedReply) -> None:
        name = incoming.address
        if name in self._enrolled.edges:
            self._take_members(incoming)
            return
        try:
            profile = profile_of(incoming, self._context, self._request.run, client=name)
        except HeadwaterError as error:
            self._retry_at_s[name] = self._control.clock() + RETRY_AFTER_S  # until then it is not ready
            self._unfit[name], self._short[name] = str(error), _in_short(error)
            self._observer(ClientFailed(0, name, str(error)))
            return
        self._retry_at_s.pop(name, None)
        self._learn(name, profile)

    def _take_members(self, incoming: ReceivedReply) -> None:
        """The profiles of the clients behind an edge aggregator, as far as it may speak for them."""
        edge, behind, again = incoming.address, set[str](), False
        try:
            group, most = opened_profiles(incoming, self._request.run), self._enrolled.edges[edge]
        except HeadwaterError as error:
            self._retry_at_s[edge] = self._control.clock() + RETRY_AFTER_S
            self._observer(ClientFailed(0, edge, str(error)))
            return
        self._retry_at_s.pop(edge, None)
        for name, reply in sorted(group.items()):
            try:
                self._require_member(edge, name, len(behind), most)
                profile = profile_of(reply, self._context, self._request.run, client=name)
            except HeadwaterError as error:
                if not self._enrolled.enrolled(name) and self.edge_of(name) in ("", edge):
                    self._via[name], self._unfit[name], self._short[name] = edge, str(error), _in_short(error)
                self._observer(ClientFailed(0, name, str(error)))
                again = True
                continue
            self._via[name] = edge
            behind.add(name)
            self._learn(name, replace(profile, edge=edge))
        self._behind[edge] = frozenset(behind)
        if again:
            self._retry_at_s[edge] = self._control.clock() + RETRY_AFTER_S

    def _require_member(self, edge: str, name: str, behind: int, most: int) -> None:
        """Refuse a client that is none of this edge aggregator's.

        Raises:
            UpdateRejected: says why.
        """
        who, other = f"client {name} of edge aggregator {edge}", self.edge_of(name)
        if not valid_name(name):
            raise UpdateRejected(who, expected=f"a name of {NAME_RULE}", got=ascii(name[:64]))
        if self._enrolled.enrolled(name) or name in self._enrolled.edges:
            raise UpdateRejected(who, expected="a client of its own", got="one that is enrolled here")
        if other not in ("", edge) and self._may(name, other):
            raise UpdateRejected(who, expected="a client of its own", got=f"one of edge aggregator {other}")
        if behind >= most:
            raise UpdateRejected(who, expected=f"at most {most} clients behind it", got="one more")
        if (why := why_no_sums(self._settings)) is not None:
            raise UpdateRejected(who, expected="a federation whose rounds take sums", got=why)

    def _learn(self, name: str, profile: ClientProfile) -> None:
        self._unfit.pop(name, None)
        self._short.pop(name, None)
        self._observer(ClientKnown(name, profile.version, profile.train_examples))
        if self._known.get(name) != profile:
            self._known[name] = profile
            self._unsaved = True


def _in_short(error: HeadwaterError) -> str:
    """Why a client cannot work: what the code that it reported says, if it reported one."""
    failure = error.failure
    if isinstance(failure, Failure) and failure != UNSPECIFIED:
        return failure.sentence()
    return "does not fit this run"


def opened_profiles(incoming: ReceivedReply, run: str) -> dict[str, ReceivedReply]:
    """By client behind an edge aggregator, what it answered when it was asked for its profile.

    Raises:
        DecodeError: not such a reply.
    """
    who = f"edge aggregator {incoming.address}"
    if incoming.error:
        raise DecodeError(who, expected="its clients' profiles", got=incoming.error)
    group = decode_group_reply(incoming.data, max_bytes=0)
    if (group.client, group.run) != (incoming.address, run):
        raise DecodeError(who, expected=f"its reply in run {run}", got=f"{group.client}, {group.run}"[:80])
    found = {}
    for data in group.replies:
        name = decode_reply(data, max_bytes=0).client
        found[name] = replace(incoming, address=name, data=data, bytes_up=len(data), raw=b"", remote=True)
    return found
