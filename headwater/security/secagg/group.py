"""SumRound and Group: what all clients of a masked sum agree on before any of them sends a value."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from headwater.errors import DecodeError, UpdateRejected
from headwater.security.public_keys import SIGNATURE_BYTES, verify_ed25519
from headwater.security.secagg.agreement import PUBLIC_BYTES
from headwater.security.secagg.bounds import GroupBounds, Promise
from headwater.security.secagg.ring import RingLayout
from headwater.security.secagg.secret import SECRET_BYTES, Secret

Flags = npt.NDArray[np.bool_]

ATTEMPT_BYTES = 16
ADVERT_DOMAIN = b"headwater secagg keys v1\0"
LIST_DOMAIN = b"headwater secagg list v1\0"
COMMIT_DOMAIN = b"headwater secagg commitment v1\0"


@dataclass(frozen=True)
class SumRound:
    """Which sum it is.

    Args:
        run: id of the run.
        round: its number.
        attempt: :data:`ATTEMPT_BYTES` of the server's, greater whenever the round is begun anew
            (:func:`later_attempt`).
        names: who is asked, by enrolled name, sorted.
        layout: of the vectors.
        promise: what the federation states of drop-outs and collusion.
        task: SHA-256 of all that decides what the vectors are of: each client makes it of what it was asked
            itself. A server that had others train from another state, or to nothing, would see one's alone.
        exactly: the survivors, where a list of them has been shown before; empty if nobody has seen one.
    """

    run: str
    round: int
    attempt: bytes
    names: tuple[str, ...]
    layout: RingLayout
    promise: Promise
    task: bytes = b""
    exactly: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all of it, which every signature of the round is over."""
        promise = self.promise
        stated = promise.dropouts, promise.colluding, promise.least
        named = [len(self.names), *self.names, *self.exactly]
        facts = [self.run, self.round, self.attempt.hex(), self.task.hex(), *stated, *named]
        text = json.dumps(facts, separators=(",", ":")).encode()
        return hashlib.sha256(text + b"\n" + self.layout.describe()).digest()


def task_of(common: bytes, plans: Collection[bytes]) -> bytes:
    """:attr:`SumRound.task` of what all start from and sum in, and of what they are asked, each once."""
    return hashlib.sha256(b"headwater secagg task v1\0" + common + b"".join(sorted(plans))).digest()


def later_attempt(than: bytes = b"") -> bytes:
    """An attempt after another, of whatever process: a number that grows with time, and bytes of chance."""
    number = max(int.from_bytes(than[:8], "big") + 1, time.time_ns())
    return number.to_bytes(8, "big") + secrets.token_bytes(ATTEMPT_BYTES - 8)


@dataclass(frozen=True, slots=True)
class Advert:
    """A client's keys of one round.

    Args:
        index: of the client in the round's names.
        seal_key: X25519; seals the shares that go to it.
        mask_key: X25519; agrees on the pairwise masks.
        commitment: to its self-mask's seed.
        signature: of its enrolled key.
    """

    index: int
    seal_key: bytes
    mask_key: bytes
    commitment: bytes
    signature: bytes

    BYTES = 4 + 2 * PUBLIC_BYTES + SECRET_BYTES + SIGNATURE_BYTES

    @property
    def body(self) -> bytes:
        """All but the signature."""
        return self.index.to_bytes(4, "big") + self.seal_key + self.mask_key + self.commitment

    def to_bytes(self) -> bytes:
        """164 bytes."""
        return self.body + self.signature

    @staticmethod
    def from_bytes(data: bytes) -> Advert:
        """The inverse.

        Raises:
            DecodeError: another length.
        """
        if len(data) != Advert.BYTES:
            raise DecodeError("masked sum, keys", expected=f"{Advert.BYTES} bytes", got=str(len(data)))
        index = int.from_bytes(data[:4], "big")
        return Advert(index, data[4:36], data[36:68], data[68:100], data[100:])

    def require_signed(self, sum_round: SumRound, enrolled: Mapping[str, bytes]) -> str:
        """The client's name.

        Raises:
            UpdateRejected: no such client, or another signature than its enrolled key's over this round.
        """
        if self.index >= len(sum_round.names):
            raise UpdateRejected("masked sum, keys", expected="keys of a client of the round", got="others")
        name = sum_round.names[self.index]
        key = enrolled.get(name)
        text = ADVERT_DOMAIN + sum_round.digest + self.body
        if key is None or not verify_ed25519(key, self.signature, text):
            raise UpdateRejected(
                f"masked sum, keys of {name}", expected="a signature of its enrolled key over this round",
                got="none" if key is None else "another",
                hint="Somebody replayed or altered them: this client takes no part in the round.",
            )  # fmt: skip
        return name


@dataclass(frozen=True)
class Group:
    """The clients whose keys are known, in order, and who is whose neighbour.

    Args:
        adverts: ordered by index.
        bounds: of so many clients.
    """

    adverts: tuple[Advert, ...]
    bounds: GroupBounds

    def __post_init__(self) -> None:
        indices = [advert.index for advert in self.adverts]
        if sorted(set(indices)) != indices or len(indices) != self.bounds.clients:
            raise DecodeError("masked sum, group", expected="each client once, in order", got="others")

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of keys and bounds: shares and masks are for this list of participants only."""
        facts = repr((self.bounds.clients, self.bounds.neighbours, self.bounds.threshold, self.bounds.window))
        keys = b"".join(advert.to_bytes() for advert in self.adverts)
        return hashlib.sha256(facts.encode() + b"\n" + keys).digest()

    @cached_property
    def ring(self) -> list[int]:
        """Members, by number in the list, in an order that all their keys decide.

        A server that made keys of its own clients until it liked the order must try as often as
        :data:`~headwater.security.secagg.bounds.PRIVACY_BITS` makes rare.
        """
        marks = [
            hashlib.sha256(self.digest + i.to_bytes(4, "big")).digest() for i in range(len(self.adverts))
        ]
        return sorted(range(len(self.adverts)), key=marks.__getitem__)

    @cached_property
    def _places(self) -> dict[int, int]:
        return {member: place for place, member in enumerate(self.ring)}

    def neighbours(self, member: int) -> list[int]:
        """Those of a member, by number in the list, ascending."""
        n, k, place = len(self.adverts), self.bounds.neighbours, self._places[member]
        if self.bounds.complete:
            return [other for other in range(n) if other != member]
        steps = [step for step in range(-(k // 2), k // 2 + 1) if step]
        return sorted(self.ring[(place + step) % n] for step in steps)

    def require_enough(self, survivors: Flags, promise: Promise) -> None:
        """Refuse survivors of whom too few are left to hide each other.

        Raises:
            UpdateRejected: too few in all, or in a row.
        """
        fewest = promise.fewest(len(self.adverts))
        if (count := int(survivors.sum())) < fewest:
            raise UpdateRejected(
                "masked sum, survivors", expected=f"at least {fewest} of {len(self.adverts)}", got=str(count),
                hint="More clients dropped out than the federation states in privacy.masks.dropouts.",
            )  # fmt: skip
        half = self.bounds.neighbours // 2
        around = np.concatenate([survivors[self.ring], survivors[self.ring][: half - 1]]).astype(np.int64)
        totals = np.concatenate([[0], np.cumsum(around)])
        if not self.bounds.complete and int((totals[half:] - totals[:-half]).min()) < self.bounds.window:
            raise UpdateRejected(
                "masked sum, survivors",
                expected=f"at least {self.bounds.window} of any {half} neighbours in a row",
                got="fewer", hint="Such survivors could be told apart in groups: the round is begun anew.",
            )  # fmt: skip

    def list_text(self, sum_round: SumRound, shared: Flags, survivors: Flags) -> bytes:
        """What a client signs who has seen this list of survivors."""
        lists = np.packbits(shared).tobytes() + np.packbits(survivors).tobytes()
        return LIST_DOMAIN + sum_round.digest + self.digest + lists


def commitment(seed: Secret) -> bytes:
    """What shows later that a self-mask's seed was put together rightly."""
    return hashlib.sha256(COMMIT_DOMAIN + seed.value).digest()


def mask_info(group: Group, left: bytes, right: bytes) -> bytes:
    """What the agreed key of two members' masks is for: the same from both sides."""
    return b"headwater secagg mask v1\0" + group.digest + min(left, right) + max(left, right)


def seal_info(group: Group, sender: int, receiver: int) -> bytes:
    """What a sealed share's key is for."""
    places = sender.to_bytes(4, "big") + receiver.to_bytes(4, "big")
    return b"headwater secagg shares v1\0" + group.digest + places
