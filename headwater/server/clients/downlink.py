"""Downlink: how the global adapter travels to each client: as little as it can be made from.

Nothing where the client has it, what was added since the state that it holds (``since.v1``), the whole
adapter, or the coefficients of its seeds that changed (``seeds.v1``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from headwater.compression.codec import Codec as BytesCodec
from headwater.compression.codecs.lossless import LosslessCodec
from headwater.compression.dense import DenseCodec
from headwater.compression.seed_state import MAX_SUMS, encode_sums
from headwater.compression.since import MOST, SINCE, encode_since, increments, name_of, since_bytes
from headwater.compression.table import codec_for
from headwater.config.codec import Codec
from headwater.errors import HeadwaterError
from headwater.protocol.failures import FailureCode, reported_code
from headwater.protocol.messages import ClientProfile, Payload
from headwater.seeds.directions import Integers
from headwater.seeds.keys import Key
from headwater.seeds.seeded_state import SeededState
from headwater.server.round_record import SentStates, Way
from headwater.server.storage.down_record import DownRecord
from headwater.state import AdapterState
from headwater.strategies.strategy import ServerState

READ_BY_ALL = ("dense-bf16.v1", "dense-fp32.v1")
"""Codecs of states that clients read which do not say what they read."""
_DENSE, _LOSSLESS = DenseCodec("fp32"), LosslessCodec()
KEPT_VERSIONS = 8
"""Versions whose coefficients are kept: a client that holds an older one is sent all of them."""


@dataclass
class Outgoing:
    """One version of the adapter, ready to be sent.

    Args:
        base: the adapter as every client decodes it.
        sent: its payload where it travels whole; what it is made of where coefficients do.
        held: of which version a client holds the coefficients; 0 if it may have none.
        known: the coefficients of earlier versions.
        instead: what a client is sent that has a use for less than ``sent``, or cannot read it.
        behind: stands behind every payload: the server's control variate.
        version: its number.
        is_new: whether a client has had no state before.
    """

    base: AdapterState
    sent: Payload | SeededState
    held: Callable[[str], int] = lambda client: 0
    known: Mapping[int, Integers] = field(default_factory=dict)
    instead: Callable[[str], Payload | None] = lambda client: None
    behind: bytes = b""
    version: int = 0
    is_new: Callable[[str], bool] = lambda client: False
    _made: dict[int, Payload] = field(default_factory=dict, repr=False)
    _with_behind: dict[Payload, Payload] = field(default_factory=dict, repr=False)

    def payload(self, client: str) -> Payload:
        """What this client is sent."""
        if isinstance(self.sent, Payload):
            payload = self.instead(client) or self.sent
            if not self.behind:
                return payload
            if payload not in self._with_behind:  # one copy for all who are sent the same
                self._with_behind[payload] = Payload(payload.codec, payload.body + self.behind)
            return self._with_behind[payload]
        since = self._since(client)
        if since not in self._made:
            self._made[since] = encode_sums(
                self.sent.sums,
                self.known.get(since),
                version=since,
                distribution=self.sent.directions.distribution,
                unit_bits=self.sent.unit_bits,
            )
        return self._made[since]

    def count(self, client: str, payload: Payload, states: SentStates) -> None:
        """Note how the state travelled to this client, as ``payload``."""
        if isinstance(self.sent, Payload):
            behind = increments(payload) if payload.codec == SINCE else None
        else:
            since = self._since(client)
            behind = self.version - since if since else None
        way: Way = "whole" if behind is None else "since"
        if behind == 0:
            way = "nothing"
        elif self.is_new(client):
            way = "first"
        states.add(way, behind or 0 if way == "since" else 0, len(payload.body))

    def _since(self, client: str) -> int:
        since = self.held(client)
        return since if since in self.known else 0


class Downlink:
    """The way down over a run: remembers what clients hold.

    A client holds what it has answered from: the state that its accepted update started from, or that it
    evaluated. That much is certain, and what was added since is enough for it. All hold the initial state,
    which they make as the server does. One that lost it, or makes another, says so (NEEDS_FULL_STATE is its
    failure's code), and is sent everything until it has answered again.

    Args:
        root: the federation's root key.
        origin: hash of the initial state; empty if clients cannot make it.
    """

    def __init__(self, root: Key, origin: str = "") -> None:
        self._root, self._origin = root, name_of(origin)
        self._sums: dict[int, Integers] = {}
        self._lost: dict[str, int] = {}  # by client: its last accepted round then
        self._path: list[str] = []
        self._links: list[Payload] = []
        self._held: dict[str, str] = {}
        self._full: set[str] = set()
        self._made: dict[int, Payload] = {}  # by place in the path
        self._coded: dict[str, Payload] = {}  # the present state, by codec

    def restore(self, record: DownRecord) -> None:
        """Go on with what an earlier process knew."""
        self._path, self._links = list(record.path), list(record.links)
        self._held, self._full = dict(record.held), set(record.full)

    def record(self) -> DownRecord:
        """What a later process must know."""
        return DownRecord(tuple(self._path), tuple(self._links), dict(self._held), tuple(sorted(self._full)))

    def open(
        self,
        server: ServerState,
        settings: Codec,
        accepted: Mapping[str, int],
        profiles: Mapping[str, ClientProfile] | None = None,
    ) -> Outgoing:
        """The adapter after ``server.round``, for whoever trains or evaluates from it.

        Args:
            server: the strategy's state.
            settings: ``[codec.down]``.
            accepted: for each client, the last round whose update was accepted.
            profiles: of the clients; who has none is sent the whole adapter.
        """
        version, seeded_state = server.round, server.seeded_state
        if seeded_state is None or len(seeded_state.sums) > MAX_SUMS:
            self._sums.clear()
            codec = codec_for(settings) if settings.whole else _DENSE
            whole = codec.encode(server.state, key=self._root.child("down", version + 1))
            base = codec.decode(whole, server.state.spec)
            self._stand_at(name_of(base.sha256()))
            instead = partial(self._instead, profiles or {}, whole, base, exact=not settings.whole)
            is_new = partial(self._is_new, accepted)
            return Outgoing(base, whole, instead=instead, version=version, is_new=is_new)
        self._path, self._links, self._held = [], [], {}
        self._sums[version] = seeded_state.sums
        self._sums = {v: s for v, s in self._sums.items() if version - KEPT_VERSIONS < v <= version}
        known = {v: s for v, s in self._sums.items() if 0 < v < version}
        return Outgoing(
            server.state,
            seeded_state,
            lambda client: self._holds(client, accepted),
            known,
            version=version,
            is_new=partial(self._is_new, accepted),
        )

    def moved(self, before: AdapterState, after: AdapterState, increment: Payload) -> None:
        """The global adapter was moved by what ``increment`` decodes to."""
        self._stand_at(name_of(before.sha256()))
        self._path.append(name_of(after.sha256()))
        self._links.append(increment)
        while self._links and (len(self._links) > MOST or since_bytes(self._links) >= before.spec.nbytes):
            del self._path[0], self._links[0]  # no client is sent so much, while the whole is less
        self._forget_others()

    def note_held(self, sha256s: Mapping[str, str]) -> None:
        """Clients have answered from the states of these hashes, each from its own."""
        place = {name: i for i, name in enumerate(self._path)}
        for client, sha256 in sha256s.items():
            name = name_of(sha256)
            if name in place:
                self._full.discard(client)
                if place[name] > place.get(self._held.get(client, ""), -1):
                    self._held[client] = name

    def needs_full(self, client: str, error: HeadwaterError, accepted: int) -> bool:
        """Take note of a client's failure: does it need everything?

        Args:
            client: whose it is.
            error: what was raised for it.
            accepted: the last round whose update from this client was accepted; 0 if none.

        Returns:
            Whether it does and that was not known: it can be asked again at once.
        """
        if reported_code(error) is not FailureCode.NEEDS_FULL_STATE:
            return False
        known = client in self._full and self._lost.get(client) == accepted
        self._lost[client] = accepted
        self._full.add(client)
        self._held.pop(client, None)
        return not known

    def _is_new(self, accepted: Mapping[str, int], client: str) -> bool:
        """Whether a client has never answered from a state, as far as is known, nor lost one."""
        return not (accepted.get(client, 0) or client in self._held or client in self._full)

    def _holds(self, client: str, accepted: Mapping[str, int]) -> int:
        last = accepted.get(client, 0)
        return 0 if self._lost.get(client) == last else last - 1

    def _stand_at(self, name: str) -> None:
        """Make this state the present one: the path ends with it, or begins there."""
        if self._path and self._path[-1] == name:
            return
        if name in self._path:
            place = self._path.index(name)
            self._path, self._links = self._path[: place + 1], self._links[:place]
        else:
            self._path, self._links = [name], []
        self._forget_others()

    def _forget_others(self) -> None:
        """What leads nowhere any more: the path has changed."""
        there = set(self._path)
        self._held = {client: held for client, held in self._held.items() if held in there}
        self._made.clear()
        self._coded.clear()

    def _instead(
        self,
        profiles: Mapping[str, ClientProfile],
        whole: Payload,
        base: AdapterState,
        client: str,
        *,
        exact: bool,
    ) -> Payload | None:
        """What this client is sent instead of ``whole``, which is longer, or which it cannot read.

        Args:
            profiles: of the clients.
            whole: the present state.
            base: the same, decoded.
            client: who is asked.
            exact: whether it may travel entropy-coded.
        """
        profile = profiles.get(client)
        reads = profile.reads if profile is not None and profile.reads else READ_BY_ALL
        if whole.codec not in reads:
            return self._coded_as(_DENSE, base)
        best = None if profile is None else self._since(profile, client)
        if exact and _LOSSLESS.id in reads and (best is None or 2 * len(best.body) > len(whole.body)):
            coded = self._coded_as(_LOSSLESS, base)
            best = coded if best is None or len(coded.body) < len(best.body) else best
        return best if best is not None and len(best.body) < len(whole.body) else None

    def _coded_as(self, codec: BytesCodec, base: AdapterState) -> Payload:
        """The present state in another codec, which draws nothing."""
        if codec.id not in self._coded:
            self._coded[codec.id] = codec.encode(base, key=self._root)
        return self._coded[codec.id]

    def _since(self, profile: ClientProfile, client: str) -> Payload | None:
        """What makes the present state of the one that this client holds, if it can read that.

        The initial state is no base for who is behind an edge aggregator, which has no model to make it.
        """
        if client in self._full or SINCE not in profile.reads:
            return None
        base = self._held.get(client)
        if base is None and self._path[0] == self._origin and not profile.edge:
            base = self._origin
        if base is None:
            return None
        place = self._path.index(base)
        links = self._links[place:]
        if not {one.codec for one in links} <= set(profile.reads):
            return None
        if place not in self._made:
            self._made[place] = encode_since(base, links)
        return self._made[place]
