"""NoisePositions: where a run's correlated noise stands, so that no position of it is drawn for two sums.

The order, of which a crash may stop any step: the sequence is in the ledger, hence paid; noise is drawn; the
sum and the memory after it are one file; the position is in the ledger; only then does anything leave. So

- before the file is there nothing has left, and the same position may be drawn again;
- once it is, whoever closes the round takes what is in it;
- a memory is gone on from only if it is of the round before and the ledger knows of no later position. Else,
  after an older checkpoint was put back or a file is gone, another sequence begins, and pays.

A rollback goes on in the sequence: each sum may depend on all that left before, so also on a wish to start
from earlier values, and its position is the next. Where a crash left a release whose round did not end, the
round ends first: its position is told, and whom it asked counts. What later noise takes back is then partly
in no value any more: the values err by three worst prefix sums at most, in place of one.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from headwater.errors import HeadwaterError, StorageError
from headwater.privacy.correlated.mechanism import Memory
from headwater.privacy.correlated.noise import CorrelatedNoise
from headwater.privacy.events import PositionReleased, SequenceReleased
from headwater.privacy.ledger import Ledger
from headwater.privacy.noise import Integers, Randomness


@dataclass(frozen=True)
class Place:
    """Where the noise goes on.

    Args:
        sequence: that is paid.
        step: how many of its positions were drawn.
    """

    sequence: SequenceReleased
    step: int


@dataclass(frozen=True)
class _Drawn:
    """A position: of which sequence, what is remembered after it, and the longest part that it was for."""

    place: Place
    after: Memory
    longest: float


class NoisePositions:
    """The positions of one run; :meth:`draw` is the noise of its next sum.

    Args:
        ledger: of the run.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._opened: tuple[Place, Memory | None, float] | None = None
        self._drawn: _Drawn | None = None

    def place(self, following: SequenceReleased, last: dict[str, Any] | None) -> Place | None:
        """Where the round after the last goes on in what is paid; None if another sequence must begin.

        Args:
            following: what that one would be.
            last: what is told of the release before, if it is on disk: ``round`` and :meth:`told`.
        """
        events = self._ledger.events
        begun = [event for event in events if isinstance(event, SequenceReleased)]
        if not begun or not begun[-1].same(following):
            return None
        place = Place(begun[-1], self._used(begun[-1].release))
        if place.step >= place.sequence.participation.rounds:
            return None
        if place.step == 0:
            return place
        if last is None or last["round"] != following.round - 1:
            return None
        told = last.get("sequence")
        return place if told and (told["id"], told["step"]) == (place.sequence.release, place.step) else None

    def open(self, place: Place, buffers: Integers | None, told: dict[str, Any] | None) -> None:
        """Get ready to draw what follows.

        Args:
            place: where it goes on.
            buffers: that the round before left, float64 [buffers, values] as int64 bits; None at first.
            told: of them, by :meth:`told`.

        Raises:
            StorageError: they are not what was written.
        """
        self._drawn = None
        if buffers is None or told is None:
            self._opened = place, None, 0.0
            return
        if _digest(buffers) != told["memory"]:
            raise StorageError(
                "memory of correlated noise",
                expected="what was written",
                got="values that do not match their hash",
                hint="Restore state/release.safetensors, or delete it: another sequence is then paid.",
            )
        memory = Memory(place.step, buffers.view(np.float64))
        self._opened = place, memory, float.fromhex(told["longest"])

    def draw(self, randomness: Randomness, longest: float, size: int) -> tuple[Integers, int]:
        """The noise of the sum that is being released.

        Args:
            randomness: where bits come from.
            longest: of one owner's part, in units, L2.
            size: d.

        Returns:
            int64 [d], and σ of what was drawn for it, in units.

        Raises:
            HeadwaterError: no position is open, or sums of other units came before.
        """
        if self._opened is None or (self._opened[1] is not None and self._opened[2] != longest):
            raise HeadwaterError(
                "correlated noise",
                expected="one sum for a position that is open, in the units of those before",
                got="another" if self._opened else "none open",
                hint="A version of headwater that counts in other units cannot go on: start a new run.",
            )
        place, memory, _ = self._opened
        self._opened = None
        event = place.sequence
        source = CorrelatedNoise(event.mechanism, event.participation, size, event.noise_multiplier, longest)
        noise, after = source.next(memory or source.init(), randomness)
        self._drawn = _Drawn(place, after, longest)
        return noise, source.sigma

    def told(self) -> tuple[dict[str, Any], Integers]:
        """Of the position that was drawn: what a file must say of it, and what is remembered.

        Returns:
            A JSON object, and float64 [buffers, values] as int64 bits.
        """
        drawn = self._drawn
        assert drawn is not None, "the sum was made"
        buffers = np.ascontiguousarray(drawn.after.buffers).view(np.int64)
        about = {
            "id": drawn.place.sequence.release,
            "step": drawn.after.step,
            "longest": drawn.longest.hex(),
            "memory": _digest(buffers),
        }
        return about, buffers

    def close(self, number: int, release: str, told: dict[str, Any]) -> None:
        """Write down that the position is not drawn again; the sum may leave.

        Args:
            number: of the round.
            release: the id of its sum.
            told: by :meth:`told`.
        """
        if self._used(told["id"]) < told["step"]:
            self._ledger.append(PositionReleased(number, release, told["id"], told["step"]))

    def prefix_noise(self, told: dict[str, Any], sigma_of_round: float) -> float:
        """Standard deviation, of a value, of the noise in the sum of all deltas of the sequence so far.

        Args:
            told: by :meth:`told`.
            sigma_of_round: of what was drawn for one round.
        """
        found = next(e for e in self._ledger.events if e.release == told["id"])
        assert isinstance(found, SequenceReleased), "it is paid"
        return sigma_of_round * math.sqrt(float(found.mechanism.prefix_errors(told["step"])[-1]))

    def _used(self, sequence: str) -> int:
        """How many positions of a sequence were released."""
        steps = (
            e.step for e in self._ledger.events if isinstance(e, PositionReleased) and e.sequence == sequence
        )
        return max(steps, default=0)


def _digest(buffers: Integers) -> str:
    return hashlib.sha256(buffers.astype("<i8", copy=False).tobytes()).hexdigest()
