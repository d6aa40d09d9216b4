"""DiscoveredClients: who takes part over a network, where clients come, go, and change their data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from headwater import __version__
from headwater.config.federation import Federation
from headwater.errors import HeadwaterError
from headwater.protocol.failures import UNSPECIFIED, Failure
from headwater.protocol.messages import ClientProfile, ProfileRequest, Request
from headwater.server.clients.client_pool import AWAY_S, ClientPool
from headwater.server.clients.exchange import Exchange, ReceivedReply
from headwater.server.clients.handshake import profile_of
from headwater.server.clients.run_control import RunControl
from headwater.server.events import ClientFailed, ClientKnown, Observer
from headwater.server.storage.profiles import load_profiles, save_profiles
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
    """

    sessions: Callable[[], Mapping[str, int]]
    enrolled: Callable[[str], bool]
    names: Callable[[], Iterable[str]] = tuple


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
        federation = settings.model_dump_json(exclude_none=True)
        self._request = ProfileRequest(run, federation, context.base_sha256, __version__)
        self._known = load_profiles(path)
        self._unsaved = False
        self._unfit: dict[str, str] = {}  # whose last answer was no profile that fits, and why
        self._short: dict[str, str] = {}  # of those, and of those who could not work: why, in few words
        self._greeted: dict[str, int] = {}  # the session in which a client was last asked
        self._retry_at_s: dict[str, float] = {}  # when to ask a client once more that has not answered well

    def profiles(self) -> Mapping[str, ClientProfile]:  # noqa: D102 - inherited
        return {name: p for name, p in sorted(self._known.items()) if self._enrolled.enrolled(name)}

    def ready(self) -> Mapping[str, ClientProfile]:  # noqa: D102 - inherited
        online = self._online()
        return {
            name: profile
            for name, profile in self.profiles().items()
            if name in online and self._greeted.get(name) == online[name] and name not in self._retry_at_s
        }

    def is_away(self, client: str) -> bool:  # noqa: D102 - inherited
        if client in self._online():
            return False
        return client in self._seen or self._control.clock() > self._began_s + AWAY_S

    def lost(self) -> Mapping[str, str]:  # noqa: D102 - inherited
        online = self._online()
        unfit = sorted(self._unfit.items())
        return {n: why for n, why in unfit if n in online and self._enrolled.enrolled(n)}

    def missing(self) -> Mapping[str, str]:  # noqa: D102 - inherited
        online, ready = self._online(), self.ready()
        return {
            name: self._why_not_ready(name, online)
            for name in sorted({*self._enrolled.names(), *self.profiles()} - ready.keys())
        }

    def _why_not_ready(self, name: str, online: Mapping[str, int]) -> str:
        if name not in online:
            return "offline"
        return self._short.get(name, "has not said yet what it has")

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
        self._greeted.pop(client, None)
        self._short[client] = _in_short(error)

    def _request_profiles(self) -> None:
        now = self._control.clock()
        for name, session in self._online().items():
            again = self._retry_at_s.get(name)
            if self._greeted.get(name) != session or (again is not None and now >= again):
                self._greeted[name] = session
                self._retry_at_s[name] = now + RETRY_AFTER_S
                self.exchange.forget_address(ProfileRequest, name)
                self.exchange.send([(name, self._request)], 0)

    def _take_profile(self, incoming: ReceivedReply) -> None:
        name = incoming.address
        try:
            profile = profile_of(incoming, self._context, self._request.run, client=name)
        except HeadwaterError as error:
            self._retry_at_s[name] = self._control.clock() + RETRY_AFTER_S  # until then it is not ready
            self._unfit[name], self._short[name] = str(error), _in_short(error)
            self._observer(ClientFailed(0, name, str(error)))
            return
        self._unfit.pop(name, None)
        self._short.pop(name, None)
        self._retry_at_s.pop(name, None)
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
