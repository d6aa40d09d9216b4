"""MaskingClient: one client's side of one masked sum, a method for each message, each of which works once.

``advertise`` → ``share`` → ``mask`` → ``sign_list`` → ``reveal``. What a lying server must not get
decides the refusals: a client masks and shares for one list of signed keys only, signs one list of
survivors only, and gives of each neighbour the share of its self-mask's seed or of its mask key, never
both, after a quorum of the group has signed the very list. What it has told in a round outlives the sum
(:mod:`~headwater.security.secagg.memory`): one vector, and one list. It takes part in no group smaller than
stated. Whatever is refused ends the sum for this client and its secrets are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from headwater.errors import HeadwaterError, UpdateRejected
from headwater.security.public_keys import verify_ed25519
from headwater.security.secagg.agreement import AgreementKey, seal, unseal
from headwater.security.secagg.group import (
    ADVERT_DOMAIN,
    Advert,
    Flags,
    Group,
    SumRound,
    commitment,
    mask_info,
    seal_info,
)
from headwater.security.secagg.memory import Memory, Told, digest_of_names, digest_of_values
from headwater.security.secagg.messages import Delivery, Reveal
from headwater.security.secagg.ring import Integers
from headwater.security.secagg.secret import Secret
from headwater.security.secagg.shamir import SHARE_BYTES, split
from headwater.security.secagg.stream import add_masks

_STAGES = "advertise", "share", "mask", "sign_list", "reveal", "nothing more"


class MaskingClient:
    """One client in one sum.

    Args:
        sum_round: which sum.
        name: the client's.
        sign: signs bytes with the client's enrolled key.
        enrolled: the signing keys that this client knows the others by.
        memory: what it has told in rounds; it adds to it.
        once: its vector of a round leaves in one attempt only, whatever becomes of that. It has noise for
            one sum: of two with the same noise, each would tell of the other's.

    Raises:
        UpdateRejected: the client is not in the round, its names are not in their one order or too few, or
            it has signed a list of it before and the round does not say that it has the same survivors.
    """

    def __init__(
        self,
        sum_round: SumRound,
        name: str,
        sign: Callable[[bytes], bytes],
        enrolled: Mapping[str, bytes],
        memory: Memory,
        *,
        once: bool = False,
    ) -> None:
        names, exactly = sum_round.names, sum_round.exactly
        ordered = all(list(some) == sorted(set(some)) for some in (names, exactly))
        if name not in names or not ordered or not set(exactly) <= set(names):
            raise UpdateRejected(
                f"masked sum, client {name}", expected="sorted names, its own among them", got="others"
            )
        self._round, self._name, self._memory = sum_round, name, memory
        if len(sum_round.names) < (least := sum_round.promise.least):
            raise self._refusal(
                f"at least {least} clients, as the federation states", str(len(sum_round.names))
            )
        told, self._once = memory.of(*self._key), once
        self._require_first(told)
        if told is not None and told.survivors and told.survivors != digest_of_names(sum_round.exactly):
            raise self._refusal("a round that it was in no sum of", "one that it has signed the survivors of")
        self._sign, self._enrolled = sign, enrolled
        self._index, self._stage = sum_round.names.index(name), 0
        self._seal, self._mask = AgreementKey.create(), AgreementKey.create()
        self._seed = Secret.create()
        self._seed_shares: dict[int, bytes] = {}
        self._key_shares: dict[int, bytes] = {}

    @property
    def members(self) -> int:
        """Of the group, once it is known."""
        return len(self._group.adverts)

    @property
    def _key(self) -> tuple[str, int]:
        return self._round.run, self._round.round

    def advertise(self) -> Advert:
        """The keys of this round, signed."""
        with self._step("advertise"):
            draft = Advert(self._index, self._seal.public, self._mask.public, commitment(self._seed), b"")
            signature = self._sign(ADVERT_DOMAIN + self._round.digest + draft.body)
            return Advert(draft.index, draft.seal_key, draft.mask_key, draft.commitment, signature)

    def share(self, group: Group) -> dict[int, bytes]:
        """Sealed shares of both secrets, for each neighbour.

        Args:
            group: who advertised, by the server's word.

        Raises:
            UpdateRejected: a neighbour's keys that are not signed, another key of this client's, too few
                members, or bounds that keep not what the federation states.
        """
        with self._step("share"):
            promise, asked = self._round.promise, len(self._round.names)
            group.bounds.require_private(promise)
            if len(group.adverts) < asked - promise.dropped(asked):
                raise self._refusal(
                    f"at least {asked - promise.dropped(asked)} members", str(len(group.adverts))
                )
            own = [i for i, advert in enumerate(group.adverts) if advert.index == self._index]
            if not own or group.adverts[own[0]].mask_key != self._mask.public:
                raise self._refusal("its own keys among them", "others")
            self._group, self._own = group, own[0]
            self._neighbours = group.neighbours(self._own)
            for neighbour in self._neighbours:  # the others' are checked by theirs, and the list is one
                group.adverts[neighbour].require_signed(self._round, self._enrolled)
            points = [neighbour + 1 for neighbour in self._neighbours]
            seeds = split(self._seed, points, group.bounds.threshold)
            keys = split(self._mask.secret, points, group.bounds.threshold)
            return {
                neighbour: seal(self._seal_key(self._own, neighbour), seed + key, group.digest)
                for neighbour, seed, key in zip(self._neighbours, seeds, keys, strict=True)
            }

    def mask(self, delivery: Delivery, values: Sequence[Integers]) -> bytes:
        """The vector plus the self-mask and a mask for each neighbour who shared, packed.

        Args:
            delivery: the neighbours' shares.
            values: int64, as the round's layout says.

        Raises:
            UpdateRejected: shares are missing, too few, or do not open; in this round another vector, or this
                one in a later attempt, has left before.
            ConfigError: values that no sum may have.
            StorageError: it cannot be kept that this one leaves.
        """
        with self._step("mask"):
            shared, group = delivery.shared, self._group
            present = [neighbour for neighbour in self._neighbours if shared[neighbour]]
            if not shared[self._own] or sorted(delivery.sealed) != present:
                raise self._refusal("the shares of all neighbours that shared", "others")
            group.require_enough(shared, self._round.promise)
            if len(present) < group.bounds.threshold:
                raise self._refusal(f"{group.bounds.threshold} neighbours", str(len(present)))
            for neighbour, sealed in delivery.sealed.items():
                who = f"masked sum, shares of {self._name_of(neighbour)}"
                text = unseal(self._seal_key(neighbour, self._own), sealed, group.digest, who)
                if len(text) != 2 * SHARE_BYTES:
                    raise UpdateRejected(who, expected="two shares", got=f"{len(text)} bytes")
                self._seed_shares[neighbour] = text[:SHARE_BYTES]
                self._key_shares[neighbour] = text[SHARE_BYTES:]
            if self._round.exactly and self._name not in self._round.exactly:
                raise self._refusal(
                    "to be asked for shares alone, as it is not in the list", "for its vector"
                )
            words = self._round.layout.to_words(values)
            self._note_vector(digest_of_values(values))
            masks = [(self._seed.value, False)]
            for neighbour in present:
                other = group.adverts[neighbour].mask_key
                info = mask_info(group, self._mask.public, other)
                seed = self._mask.agree(other, info, f"masked sum, keys of {self._name_of(neighbour)}")
                masks.append((seed, self._own > neighbour))
            add_masks(words, masks)
            self._shared = shared.copy()
            return self._round.layout.pack(words)

    def sign_list(self, survivors: Flags) -> bytes:
        """The signature over the one list of survivors that this client goes by.

        Args:
            survivors: whose vectors are in the sum.

        Raises:
            UpdateRejected: it is not among them, they did not all share, too few are left to hide it, or
                they are others than the round says or than it has signed before.
            StorageError: it cannot be kept that it signs.
        """
        with self._step("sign_list"):
            if not survivors[self._own] or bool((survivors & ~self._shared).any()):
                raise self._refusal("survivors that shared, itself among them", "others")
            self._group.require_enough(survivors, self._round.promise)
            self._survivors = survivors.copy()
            self._note_list([self._name_of(member) for member, survived in enumerate(survivors) if survived])
            return self._sign(self._group.list_text(self._round, self._shared, self._survivors))

    def reveal(self, signatures: Mapping[int, bytes]) -> Reveal:
        """Of each neighbour one share: of the seed if it survived, of the mask key if it dropped out.

        Args:
            signatures: over the list that this client signed, by member.

        Raises:
            UpdateRejected: fewer than the quorum, one that is not its member's, or too few neighbours left.
        """
        with self._step("reveal"):
            quorum = self._round.promise.quorum(self.members)
            text = self._group.list_text(self._round, self._shared, self._survivors)
            for member, signature in signatures.items():
                key = self._enrolled.get(self._name_of(member), b"")
                if not self._survivors[member] or not verify_ed25519(key, signature, text):
                    raise self._refusal(
                        "signatures of survivors over the list that it was shown",
                        f"another of {self._name_of(member)}",
                    )
            if len(signatures) < quorum:
                raise self._refusal(f"signatures of {quorum} members", str(len(signatures)))
            seeds = {n: share for n, share in self._seed_shares.items() if self._survivors[n]}
            keys = {n: share for n, share in self._key_shares.items() if not self._survivors[n]}
            self._forget()
            return Reveal(seeds, keys)

    def _note_vector(self, values: bytes) -> None:
        """Keep which vector leaves: of one round the same under ever later keys."""
        told, attempt = self._memory.of(*self._key), self._round.attempt
        self._require_first(told)
        if told is not None and told.values != values:
            raise self._refusal("the vector that it has sent in this round", "another of its own")
        if told is not None and told.attempt >= attempt:
            raise self._refusal("an attempt after the last one that it has sent its vector in", "an earlier")
        survivors = b"" if told is None else told.survivors
        self._memory.note(*self._key, Told(attempt, values, survivors))

    def _require_first(self, told: Told | None) -> None:
        """Where its vector leaves once, that it has not left."""
        if self._once and told is not None:
            raise self._refusal("a round that it has not sent its noised vector in", "one that it has")

    def _note_list(self, names: list[str]) -> None:
        """Keep which list it signs, not only when it reveals: others' shares are enough for the sum."""
        told, found = self._memory.of(*self._key), digest_of_names(names)
        if told is None or told.attempt != self._round.attempt:
            raise self._refusal("the last attempt that it has sent its vector in", "an earlier one")
        if self._round.exactly and names != list(self._round.exactly):
            raise self._refusal("the survivors that the round says", "others")
        if told.survivors and told.survivors != found:
            raise self._refusal("the survivors that it has signed in this round", "others")
        self._memory.note(*self._key, replace(told, survivors=found))

    def _seal_key(self, sender: int, receiver: int) -> bytes:
        other = receiver if sender == self._own else sender
        public = self._group.adverts[other].seal_key
        info = seal_info(self._group, sender, receiver)
        return self._seal.agree(public, info, f"masked sum, keys of {self._name_of(other)}")

    def _name_of(self, member: int) -> str:
        return self._round.names[self._group.adverts[member].index]

    def _refusal(self, expected: str, got: str) -> UpdateRejected:
        return UpdateRejected(
            f"masked sum of round {self._round.round}, client {self._name}", expected=expected, got=got,
            hint="The client tells nothing more of this round; the server begins it anew.",
        )  # fmt: skip

    @contextmanager
    def _step(self, what: str) -> Iterator[None]:
        """Each step once and in order; after an error none."""
        if _STAGES[self._stage] != what:
            self._forget()
            raise self._refusal(f"a server that asks each step once ({_STAGES[self._stage]})", what)
        self._stage += 1
        try:
            yield
        except HeadwaterError:
            self._forget()
            raise

    def _forget(self) -> None:
        self._stage = len(_STAGES) - 1
        self._seed_shares, self._key_shares = {}, {}
        for secret in ("_seal", "_mask", "_seed"):
            self.__dict__.pop(secret, None)
