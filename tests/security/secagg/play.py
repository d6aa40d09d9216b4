"""A masked sum played through: real keys, every message as bytes, clients that stop at a phase."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from headwater.security.secagg import messages
from headwater.security.secagg.bounds import Promise
from headwater.security.secagg.client import MaskingClient
from headwater.security.secagg.group import Advert, SumRound
from headwater.security.secagg.memory import ProcessMemory
from headwater.security.secagg.ring import Integers, RingLayout, RingPart
from headwater.security.secagg.server import MaskedSum, MaskingServer

PHASES = "keys", "shares", "vector", "signature", "reveal"


@lru_cache(maxsize=256)
def enrolled_key(name: str) -> Ed25519PrivateKey:
    """Its enrolled key, in these tests."""
    return Ed25519PrivateKey.generate()


class Play:
    """One sum of clients ``c00``, ``c01`` …

    Args:
        count: of clients.
        promise: of the federation.
        layout: of the vectors.
        round: its number.
    """

    def __init__(
        self, count: int, promise: Promise, layout: RingLayout | None = None, round: int = 1
    ) -> None:
        self.names = tuple(f"c{i:03d}" for i in range(count))
        layout = layout or RingLayout((RingPart("values", 5, -1000 * count, 1000 * count),))
        self.round = SumRound("run", round, bytes([round]) * 16, self.names, layout, promise)
        self.enrolled = {n: enrolled_key(n).public_key().public_bytes_raw() for n in self.names}
        self.server = MaskingServer(self.round, self.enrolled)
        self.memories = {name: ProcessMemory() for name in self.names}
        self.clients = {name: self.client(name) for name in self.names}
        self.sent: dict[str, bytes] = {}

    def client(self, name: str) -> MaskingClient:
        """A client of the round, with keys of its own."""
        sign = enrolled_key(name).sign
        return MaskingClient(self.round, name, sign, self.enrolled, self.memories[name])

    def keys(self, but: Collection[str] = ()) -> None:
        """All but some advertise, and learn the group."""
        for name in self._those(but):
            advert = self.clients[name].advertise().to_bytes()
            self.server.take_advert(name, Advert.from_bytes(advert))
        self.group = messages.load_group(messages.dump_group(self.server.close_adverts()))

    def shares(self, but: Collection[str] = ()) -> None:
        """All but some of the group share."""
        members = [self.names[advert.index] for advert in self.group.adverts]
        for name in self._those(but, members):
            rows = messages.dump_rows(self.clients[name].share(self.group))
            self.server.take_shares(name, messages.load_rows(rows, messages.SEALED_BYTES, len(members)))
        self.deliveries = {
            name: messages.load_delivery(messages.dump_delivery(d), len(members))
            for name, d in self.server.close_shares().items()
        }

    def vectors(self, values: Mapping[str, Sequence[Integers]], but: Collection[str] = ()) -> None:
        """All but some of those that shared send their vectors."""
        for name in self._those(but, self.deliveries):
            self.sent[name] = self.clients[name].mask(self.deliveries[name], values[name])
            self.server.take_masked(name, self.sent[name])
        self.server.close_masked()
        self.survivors = [name for name in self.deliveries if name in self.sent]

    def signatures(self, but: Collection[str] = ()) -> None:
        """All but some of the survivors sign the list."""
        members = len(self.group.adverts)
        flags = messages.load_flags(messages.dump_flags(self.server.survivors), members)
        self.signed = list(self._those(but, self.survivors))
        for name in self.signed:
            self.server.take_signature(name, self.clients[name].sign_list(flags))
        found = messages.dump_rows(self.server.close_signatures())
        self.certificate = messages.load_signatures(found, members)

    def reveals(self, but: Collection[str] = ()) -> MaskedSum:
        """All but some of those that signed reveal; the sum."""
        for name in self._those(but, self.signed):
            data = messages.dump_reveal(self.clients[name].reveal(self.certificate))
            self.server.take_reveal(name, messages.load_reveal(data, len(self.group.adverts)))
        return self.server.finish()

    def whole(
        self, values: Mapping[str, Sequence[Integers]], stops: Mapping[str, str] | None = None
    ) -> MaskedSum:
        """From keys to sum; ``stops`` says at which phase a client is gone."""
        gone = {p: {n for n, at in (stops or {}).items() if at == p} for p in PHASES}
        self.keys(gone["keys"])
        self.shares(gone["shares"])
        self.vectors(values, gone["vector"])
        self.signatures(gone["signature"])
        return self.reveals(gone["reveal"])

    def some_values(self, seed: int = 0) -> dict[str, list[Integers]]:
        """For each client a vector that the layout has room for so many times."""
        draw, count = np.random.default_rng(seed), len(self.names)
        return {
            name: [
                draw.integers(-(-p.low // count), p.high // count, p.size, endpoint=True)  # rounded to 0
                for p in self.round.layout.parts
            ]
            for name in self.names
        }

    def _those(self, but: Collection[str], of: Collection[str] | None = None) -> list[str]:
        return [name for name in (self.names if of is None else of) if name not in but]


def plain_sum(values: Mapping[str, Sequence[Integers]], names: Collection[str]) -> list[Integers]:
    """What the masked sum must be."""
    return [np.sum(parts, axis=0, dtype=np.int64) for parts in zip(*(values[n] for n in names), strict=True)]
