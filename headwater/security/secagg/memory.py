"""What a client must remember of its masked rounds, so that no two sums of one round tell its vector apart.

Of one round a client sends one vector only, under one set of keys after the other, each attempt greater than
the one before, and signs one list of survivors only. Let H be the honest ones that signed the list of the
earliest of any sums of a round that a lying server has put together: their vectors are in none of the later
ones, and by the quorum they are more than half of that sum's honest clients. So no difference of sums is
without them. The one exception is another sum of the very list, which tells nothing new.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from headwater.security.secagg.ring import Integers


@dataclass(frozen=True, slots=True)
class Told:
    """What a client has told in one round.

    Args:
        attempt: the last one in which it sent its vector; later ones are greater.
        values: SHA-256 of that vector without masks.
        survivors: :func:`digest_of_names` of the list that it signed; empty before.
    """

    attempt: bytes
    values: bytes
    survivors: bytes = b""


class Memory(Protocol):
    """Where a client notes it."""

    def of(self, run: str, round: int) -> Told | None:
        """What it has told in this round; None if nothing."""

    def note(self, run: str, round: int, told: Told) -> None:
        """Keep it, for good when this returns: only then it is told.

        Raises:
            StorageError: it cannot be kept.
        """


class ProcessMemory:
    """Of a client that ends with its process."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, int], Told] = {}

    def of(self, run: str, round: int) -> Told | None:
        """See :class:`Memory`."""
        return self._told.get((run, round))

    def note(self, run: str, round: int, told: Told) -> None:
        """See :class:`Memory`."""
        self._told[run, round] = told

    def forget_unsigned(self, run: str, round: int) -> None:
        """Let a round be planned anew with other values, as a simulation may: it has seen no sum."""
        if (told := self.of(run, round)) is not None and not told.survivors:
            del self._told[run, round]


def digest_of_names(names: Iterable[str]) -> bytes:
    """SHA-256 of a list of clients, in their one order."""
    return hashlib.sha256(json.dumps(sorted(names), separators=(",", ":")).encode()).digest()


def digest_of_values(values: Sequence[Integers]) -> bytes:
    """SHA-256 of a vector."""
    digest = hashlib.sha256()
    for part in values:
        digest.update(part.size.to_bytes(8, "big"))
        digest.update(part.astype("<i8", copy=False).data)
    return digest.digest()
