"""Downlink: how the global adapter travels to each client, dense or as coefficients of seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from headwater.compression.seed_state import MAX_SUMS, encode_sums
from headwater.compression.table import codec_for
from headwater.config.codec import DenseCodec
from headwater.errors import HeadwaterError
from headwater.protocol.failures import FailureCode, reported_code
from headwater.protocol.messages import Payload
from headwater.seeds.directions import Integers
from headwater.seeds.keys import Key
from headwater.seeds.seeded_state import SeededState
from headwater.state import AdapterState
from headwater.strategies.strategy import ServerState

KEPT_VERSIONS = 8
"""Versions whose coefficients are kept: a client that holds an older one is sent all of them."""


@dataclass
class Outgoing:
    """One version of the adapter, ready to be sent.

    Args:
        base: the adapter as every client decodes it.
        sent: its payload where it travels dense; what it is made of where coefficients do.
        held: of which version a client holds the coefficients; 0 if it may have none.
        known: the coefficients of earlier versions.
    """

    base: AdapterState
    sent: Payload | SeededState
    held: Callable[[str], int] = lambda client: 0
    known: Mapping[int, Integers] = field(default_factory=dict)
    _made: dict[int, Payload] = field(default_factory=dict, repr=False)

    def payload(self, client: str) -> Payload:
        """What this client is sent."""
        if isinstance(self.sent, Payload):
            return self.sent
        since = self.held(client)
        since = since if since in self.known else 0
        if since not in self._made:
            self._made[since] = encode_sums(
                self.sent.sums,
                self.known.get(since),
                version=since,
                distribution=self.sent.directions.distribution,
                unit_bits=self.sent.unit_bits,
            )
        return self._made[since]


class Downlink:
    """The way down over a run: remembers what clients hold.

    A client whose update of round r was accepted had version r − 1, the adapter after that round; that
    much is certain. What changed since then is enough for it. A client that lost it says so
    (NEEDS_FULL_STATE is its failure's code), and is sent everything until its next update is accepted.

    Args:
        root: the federation's root key.
    """

    def __init__(self, root: Key) -> None:
        self._root = root
        self._sums: dict[int, Integers] = {}
        self._lost: dict[str, int] = {}  # by client: its last accepted round then

    def open(self, server: ServerState, settings: DenseCodec, accepted: Mapping[str, int]) -> Outgoing:
        """The adapter after ``server.round``, for whoever trains or evaluates from it.

        Args:
            server: the strategy's state.
            settings: how it travels where it is no coefficients.
            accepted: for each client, the last round whose update was accepted.
        """
        version, seeded_state = server.round, server.seeded_state
        if seeded_state is None or len(seeded_state.sums) > MAX_SUMS:
            self._sums.clear()
            codec = codec_for(settings)
            dense = codec.encode(server.state, key=self._root.child("down", version + 1))
            return Outgoing(codec.decode(dense, server.state.spec), dense)
        self._sums[version] = seeded_state.sums
        self._sums = {v: s for v, s in self._sums.items() if version - KEPT_VERSIONS < v <= version}
        known = {v: s for v, s in self._sums.items() if 0 < v < version}
        return Outgoing(server.state, seeded_state, lambda client: self._held(client, accepted), known)

    def _held(self, client: str, accepted: Mapping[str, int]) -> int:
        last = accepted.get(client, 0)
        return 0 if self._lost.get(client) == last else last - 1

    def note_failure(self, client: str, error: HeadwaterError, accepted: int) -> None:
        """Take note of a client's failure: does it need everything?

        Args:
            client: whose it is.
            error: what was raised for it.
            accepted: the last round whose update from this client was accepted; 0 if none.
        """
        if reported_code(error) is FailureCode.NEEDS_FULL_STATE:
            self._lost[client] = accepted
