"""MaskingServer: the server's side of one masked sum. It holds one vector: the sum of what has come.

Each ``take_…`` is one client's answer, each ``close_…`` ends a phase and gives what is sent next. A
client that is not in when a phase closes has dropped out. Nothing is kept that could be gone on with
after a crash: a round that ended in any phase is begun anew, with another :attr:`SumRound.attempt` and
other keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from headwater.errors import ConfigError, EmptyRound, HeadwaterError, UpdateRejected
from headwater.security.public_keys import verify_ed25519
from headwater.security.secagg.agreement import AgreementKey
from headwater.security.secagg.bounds import choose
from headwater.security.secagg.group import Advert, Group, SumRound, commitment, mask_info
from headwater.security.secagg.messages import SEALED_BYTES, Delivery, Reveal
from headwater.security.secagg.ring import Integers
from headwater.security.secagg.secret import Secret
from headwater.security.secagg.shamir import join
from headwater.security.secagg.stream import add_masks


@dataclass(frozen=True)
class MaskedSum:
    """What the server learns.

    Args:
        names: whose vectors are in it, sorted.
        values: int64, as the round's layout says.
    """

    names: tuple[str, ...]
    values: list[Integers]


class MaskingServer:
    """The server of one sum.

    Args:
        sum_round: which sum.
        enrolled: signing keys by name.
    """

    def __init__(self, sum_round: SumRound, enrolled: Mapping[str, bytes]) -> None:
        self.round, self._enrolled = sum_round, enrolled
        self._adverts: dict[int, Advert] = {}
        self._inboxes: dict[int, dict[int, bytes]] = {}
        self._signatures: dict[int, bytes] = {}
        self._reveals: dict[int, Reveal] = {}

    def take_advert(self, name: str, advert: Advert) -> None:
        """A client's keys.

        Raises:
            UpdateRejected: another client's, not signed, or its second ones.
        """
        if advert.require_signed(self.round, self._enrolled) != name or advert.index in self._adverts:
            raise _refused(name, "its own keys, once", "others")
        self._adverts[advert.index] = advert

    def close_adverts(self) -> Group:
        """The group, for all its members.

        Raises:
            EmptyRound: too few clients for what the federation states.
        """
        asked, adverts = len(self.round.names), [self._adverts[i] for i in sorted(self._adverts)]
        self._require(len(adverts), asked - self.round.promise.dropped(asked), "keys")
        try:
            bounds = choose(len(adverts), self.round.promise)
        except ConfigError as error:
            raise EmptyRound(error.who, expected=error.expected, got=error.got, hint=error.hint) from error
        self.group = Group(tuple(adverts), bounds)
        names = [self.round.names[advert.index] for advert in adverts]
        self._names, self._members = names, {name: i for i, name in enumerate(names)}
        self._neighbours = [self.group.neighbours(i) for i in range(len(names))]
        self.shared = np.zeros(len(names), np.bool_)
        self.survivors = self.shared.copy()
        return self.group

    def take_shares(self, name: str, sealed: Mapping[int, bytes]) -> None:
        """A client's sealed shares.

        Raises:
            UpdateRejected: it is no member, has sent some before, or not for each neighbour.
        """
        member = self._member(name)
        whole = sorted(sealed) == self._neighbours[member]
        if self.shared[member] or not whole or any(len(row) != SEALED_BYTES for row in sealed.values()):
            raise _refused(name, "shares for each of its neighbours, once", "others")
        self.shared[member] = True
        for neighbour, row in sealed.items():
            self._inboxes.setdefault(neighbour, {})[member] = row

    def close_shares(self) -> dict[str, Delivery]:
        """What each client gets who shared.

        Raises:
            EmptyRound: too few did.
        """
        self._require_group(self.shared, "shares")
        self._words = self.round.layout.zeros()
        inboxes, self._inboxes = self._inboxes, {}
        found = {}
        for member in np.flatnonzero(self.shared).tolist():
            found[self._names[member]] = Delivery(self.shared, inboxes.get(member, {}))
        return found

    def take_masked(self, name: str, data: bytes) -> None:
        """Add a client's masked vector.

        Raises:
            UpdateRejected: it did not share, or has sent one before.
            DecodeError: another length.
        """
        member = self._member(name)
        if not self.shared[member] or self.survivors[member]:
            raise _refused(name, "one vector of a client that shared", "another")
        for total, words in zip(self._words, self.round.layout.unpack(data, f"client {name}"), strict=True):
            np.add(total, words, out=total)
        self.survivors[member] = True

    def close_masked(self) -> None:
        """End the wait for vectors: :attr:`survivors` is what all of them are asked to sign.

        Raises:
            EmptyRound: too few are left, or not exactly those that an earlier attempt has shown.
        """
        self._require_group(self.survivors, "vectors")
        exactly = self.round.exactly
        if exactly and exactly != self.survivor_names:
            lacking = len(set(exactly) - set(self.survivor_names))
            raise EmptyRound(
                f"masked sum of round {self.round.round}, vectors",
                expected="all survivors of the list that some have signed", got=f"{lacking} of them lack",
            )  # fmt: skip

    @property
    def survivor_names(self) -> tuple[str, ...]:
        """Whose vectors are in the sum, sorted."""
        return tuple(self._names[member] for member in np.flatnonzero(self.survivors).tolist())

    def take_signature(self, name: str, signature: bytes) -> None:
        """A survivor's signature over the list.

        Raises:
            UpdateRejected: it is no survivor, or signed something else.
        """
        member = self._member(name)
        text = self.group.list_text(self.round, self.shared, self.survivors)
        if not self.survivors[member] or not verify_ed25519(self._enrolled[name], signature, text):
            raise _refused(name, "a survivor's signature over the list", "another")
        self._signatures[member] = signature

    def close_signatures(self) -> dict[int, bytes]:
        """The quorum's signatures, for all who signed.

        Raises:
            EmptyRound: too few signed.
        """
        quorum = self.round.promise.quorum(len(self._names))
        self._require(len(self._signatures), quorum, "signatures")
        return dict(sorted(self._signatures.items())[:quorum])

    def take_reveal(self, name: str, reveal: Reveal) -> None:
        """A survivor's shares.

        Raises:
            UpdateRejected: others than it was asked for, or its second ones.
        """
        member = self._member(name)
        near = [n for n in self._neighbours[member] if self.shared[n]]
        seeds = [n for n in near if self.survivors[n]]
        keys = [n for n in near if not self.survivors[n]]
        given = (sorted(reveal.seeds), sorted(reveal.keys))
        if member not in self._signatures or member in self._reveals or given != (seeds, keys):
            raise _refused(name, "one share of each neighbour, once", "others")
        self._reveals[member] = reveal

    def finish(self) -> MaskedSum:
        """The sum of the survivors' vectors.

        Raises:
            EmptyRound: too few shares of a secret came, or they do not fit together.
        """
        masks = list[tuple[bytes, bool]]()
        for member in np.flatnonzero(self.shared).tolist():
            if self.survivors[member]:
                seed = self._rebuilt(member, of_seed=True)
                if commitment(seed) != self.group.adverts[member].commitment:
                    raise self._misfit(member)
                masks.append((seed.value, True))
            else:
                masks += self._pairs_of(member)
        add_masks(self._words, masks)
        return MaskedSum(self.survivor_names, self.round.layout.to_values(self._words))

    def _pairs_of(self, dropped: int) -> Iterator[tuple[bytes, bool]]:
        """What takes the masks away that the survivors share with a client that dropped out."""
        key = AgreementKey(self._rebuilt(dropped, of_seed=False))
        if key.public != self.group.adverts[dropped].mask_key:
            raise self._misfit(dropped)
        for survivor in self._neighbours[dropped]:
            if self.survivors[survivor]:
                other = self.group.adverts[survivor].mask_key
                info = mask_info(self.group, key.public, other)
                seed = key.agree(other, info, f"masked sum, keys of {self._names[survivor]}")
                yield seed, survivor < dropped

    def _rebuilt(self, member: int, *, of_seed: bool) -> Secret:
        threshold, shares = self.group.bounds.threshold, dict[int, bytes]()
        for holder in self._neighbours[member]:
            reveal = self._reveals.get(holder)
            if reveal is not None and len(shares) < threshold:
                shares[holder + 1] = (reveal.seeds if of_seed else reveal.keys)[member]
        self._require(len(shares), threshold, f"shares of {self._names[member]}")
        try:
            return join(shares, f"client {self._names[member]}")
        except HeadwaterError as error:
            raise self._misfit(member) from error

    def _misfit(self, member: int) -> EmptyRound:
        return EmptyRound(
            f"masked sum of round {self.round.round}",
            expected=f"shares that fit the keys of {self._names[member]}",
            got="others", hint="It, or a neighbour, sent false ones. The round is begun anew.",
        )  # fmt: skip

    def _member(self, name: str) -> int:
        if name not in self._members:
            raise _refused(name, "a client whose keys are in the group", "another")
        return self._members[name]

    def _require_group(self, flags: np.ndarray[tuple[int], np.dtype[np.bool_]], what: str) -> None:
        try:
            self.group.require_enough(flags, self.round.promise)
        except UpdateRejected as error:
            raise EmptyRound(
                f"masked sum of round {self.round.round}, {what}",
                expected=error.expected, got=error.got, hint=error.hint,
            ) from error  # fmt: skip

    def _require(self, count: int, fewest: int, what: str) -> None:
        if count < fewest:
            raise EmptyRound(
                f"masked sum of round {self.round.round}, {what}",
                expected=f"those of at least {fewest} clients",
                got=str(count), hint="More clients dropped out than privacy.masks states; it is begun anew.",
            )  # fmt: skip


def _refused(name: str, expected: str, got: str) -> UpdateRejected:
    return UpdateRejected(f"masked sum, client {name}", expected=expected, got=got)
