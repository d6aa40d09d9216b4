"""Events: what a federation has told of its owners' data, apart from what that costs.

An event says which noise was added to a sum of which sensitivity, and how those who are in the sum were
drawn. :mod:`.accounting` prices it; :mod:`.ledger` keeps it. So a ledger can be priced anew when bounds get
better, and an accountant be exchanged without a change of the federation (as in ``dp_accounting``).

A sequence whose noise is correlated (matrix mechanisms) is one event for all of it, written before its first
release; then a line for each position that was drawn, at no price. Another kind is one class here, a line in
:data:`EVENTS` and one in :data:`headwater.privacy.accounting.PRICES`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, TypeAlias

from headwater.errors import ConfigError, StorageError
from headwater.privacy.correlated.kinds import described, mechanism_of
from headwater.privacy.correlated.mechanism import Mechanism, Participation


@dataclass(frozen=True, slots=True)
class Everyone:
    """All owners who can are in the sum: nobody's part is hidden by chance."""

    kind: ClassVar[str] = "everyone"


@dataclass(frozen=True, slots=True)
class PoissonSample:
    """Each owner is drawn by itself, whoever else is.

    Args:
        rate: q, in (0, 1].
    """

    kind: ClassVar[str] = "poisson"
    rate: float

    def __post_init__(self) -> None:
        _require(0 < self.rate <= 1, f"rate {self.rate}")


@dataclass(frozen=True, slots=True)
class FixedSample:
    """So many owners are drawn without replacement: whether one is in hangs on who else is.

    Args:
        size: how many are drawn.
        population: of how many, at least.
    """

    kind: ClassVar[str] = "fixed"
    size: int
    population: int

    def __post_init__(self) -> None:
        _require(1 <= self.size <= self.population, f"{self.size} of {self.population}")


Sampling: TypeAlias = Everyone | PoissonSample | FixedSample


@dataclass(frozen=True, slots=True)
class SumReleased:
    """A sum of clipped updates left the round with Gaussian noise of its own.

    Args:
        round: its number.
        release: an id: one release has one, also after a crash.
        clip: C, no owner's part of the sum is longer in L2 norm.
        noise_multiplier: z, such that the noise's standard deviation is z·C in every coordinate. What else of
            the round was released with noise (how many updates were short, with adaptive clipping) is in it.
        sampling: how the owners in the sum were drawn.
        reproducible: the noise can be drawn again from the file's seed: **no privacy**.
    """

    kind: ClassVar[str] = "sum"
    round: int
    release: str
    clip: float
    noise_multiplier: float
    sampling: Sampling
    reproducible: bool = False

    def __post_init__(self) -> None:
        _require(self.round >= 1 and bool(self.release), f"round {self.round}, release {self.release!r}")
        for value in (self.clip, self.noise_multiplier):
            _require(0 < value < math.inf, f"{value}")


@dataclass(frozen=True, slots=True)
class SharesReleased:
    """A sum of clipped updates left the clients under masks, each with a share of the noise of its own.

    Args:
        round: its number.
        release: an id. All attempts at the sum of a round are one release: a client sends its vector in one.
        clip: C, no honest owner's part of the sum is longer in L2 norm.
        noise_multiplier: z, such that the honest clients' shares together have a standard deviation of z·C.
        honest: H, how many honest clients are in the sum at least.
        sigma: of one share, in whole units of the sum.
        values: how many there are.
        reproducible: the noise can be drawn again from the file's seed: **no privacy**.
    """

    kind: ClassVar[str] = "shares"
    round: int
    release: str
    clip: float
    noise_multiplier: float
    honest: int
    sigma: int
    values: int
    reproducible: bool = False

    def __post_init__(self) -> None:
        _require(self.round >= 1 and bool(self.release), f"round {self.round}, release {self.release!r}")
        for value in (self.clip, self.noise_multiplier):
            _require(0 < value < math.inf, f"{value}")
        for count in (self.honest, self.sigma, self.values):
            _require(isinstance(count, int) and count >= 1, f"{count}")

    @property
    def gap(self) -> float:
        """How far a sum of H shares is from one discrete Gaussian, as an ε over all values: d·τ, never 0.

        No probability of one value differs by more than a factor of e^(τ/2), with
        τ = 10·Σ e^(-2π²σ²k/(k + 1)) over k = 1 … H - 1 (Kairouz, Liu, Steinke 2021, arXiv 2102.06387, theorem
        1; for σ ≥ ½). Here each term is the first, the largest, and rounded up to the least float there is.
        """
        if self.honest == 1:
            return 0.0
        largest = max(math.exp(-((math.pi * self.sigma) ** 2)), sys.float_info.min)
        return self.values * 10 * (self.honest - 1) * largest

    def same(self, other: Event) -> bool:
        """Whether the other is of the same sum."""
        return isinstance(other, SharesReleased) and replace(other, release=self.release) == self


@dataclass(frozen=True, slots=True)
class StepsReleased:
    """A client's local training left it: steps of DP-SGD, each of which told a noised sum of gradients.

    Args:
        round: its number.
        release: an id.
        steps: how many.
        clip: C, no example's gradient is longer in L2 norm.
        noise_multiplier: z, such that each sum's noise has a standard deviation of z·C in every coordinate.
        sampling: how each step's examples were drawn.
        reproducible: noise and examples can be drawn again from the file's seed: **no privacy**.
    """

    kind: ClassVar[str] = "steps"
    round: int
    release: str
    steps: int
    clip: float
    noise_multiplier: float
    sampling: Sampling
    reproducible: bool = False

    def __post_init__(self) -> None:
        _require(self.round >= 1 and bool(self.release), f"round {self.round}, release {self.release!r}")
        _require(self.steps >= 1, f"{self.steps} steps")
        for value in (self.clip, self.noise_multiplier):
            _require(0 < value < math.inf, f"{value}")


@dataclass(frozen=True, slots=True)
class SequenceReleased:
    """Sums of clipped updates leave with noise that is correlated over rounds: all of them, as one event.

    Args:
        round: of its first sum.
        release: an id of the sequence.
        clip: C, no owner's part of one sum is longer in L2 norm.
        noise_multiplier: z, of the whole: what is drawn in each round has a standard deviation of z·Δ·C, with
            Δ the mechanism's sensitivity.
        mechanism: the matrix.
        participation: over how many rounds, and in which of them one owner can be.
        reproducible: the noise can be drawn again from the file's seed: **no privacy**.
    """

    kind: ClassVar[str] = "sequence"
    round: int
    release: str
    clip: float
    noise_multiplier: float
    mechanism: Mechanism
    participation: Participation
    reproducible: bool = False

    def __post_init__(self) -> None:
        _require(self.round >= 1 and bool(self.release), f"round {self.round}, release {self.release!r}")
        for value in (self.clip, self.noise_multiplier):
            _require(0 < value < math.inf, f"{value}")

    def same(self, other: SequenceReleased) -> bool:
        """Whether the other has the same noise, wherever it began."""
        return replace(self, round=other.round, release=other.release) == other


@dataclass(frozen=True, slots=True)
class PositionReleased:
    """A sequence's sum was made, with the noise of one position, which is not drawn again. It costs nothing.

    Args:
        round: its number.
        release: an id.
        sequence: the id of the sequence that pays for it.
        step: how many of the sequence were made, this one with them.
    """

    kind: ClassVar[str] = "position"
    reproducible: ClassVar[bool] = False
    round: int
    release: str
    sequence: str
    step: int

    def __post_init__(self) -> None:
        _require(self.round >= 1 and self.step >= 1, f"round {self.round}, step {self.step}")
        _require(bool(self.release) and bool(self.sequence), f"{self.release!r} of {self.sequence!r}")


Event: TypeAlias = SumReleased | SharesReleased | StepsReleased | SequenceReleased | PositionReleased
EVENTS: Mapping[str, type[Event]] = {
    kind.kind: kind
    for kind in (SumReleased, SharesReleased, StepsReleased, SequenceReleased, PositionReleased)
}
SAMPLINGS: Mapping[str, type[Any]] = {s.kind: s for s in (Everyone, PoissonSample, FixedSample)}


def to_json(event: Event) -> bytes:
    """One line, without a line feed."""
    content = {"event": event.kind, **asdict(event)}
    if isinstance(event, SequenceReleased):
        content["mechanism"] = described(event.mechanism)
    elif not isinstance(event, PositionReleased | SharesReleased):
        content["sampling"] = {"kind": event.sampling.kind, **content["sampling"]}
    return json.dumps(content).encode()


def from_json(line: bytes, where: str) -> Event:
    """What :func:`to_json` wrote.

    Args:
        line: the line.
        where: the file and line, for the message.

    Raises:
        StorageError: anything else. An event that cannot be read cannot be priced, so nothing may follow it.
    """
    try:
        content = json.loads(line)
        kind = EVENTS[content.pop("event")]
        return kind(**{n: _READ[n](v) if n in _READ else v for n, v in content.items()})
    except (ValueError, LookupError, TypeError, AttributeError, ConfigError) as error:
        raise StorageError(
            where,
            expected="an event of this version of headwater",
            got=f"{line[:80]!r} ({error})",
            hint="What was spent cannot be told without it: restore the ledger from a backup, or use the "
            "version that wrote it.",
        ) from error


def _sampling(content: Mapping[str, Any]) -> Sampling:
    drawn: Sampling = SAMPLINGS[content["kind"]](**{n: v for n, v in content.items() if n != "kind"})
    return drawn


_READ: Mapping[str, Callable[[Any], Any]] = {
    "sampling": _sampling,
    "mechanism": mechanism_of,
    "participation": lambda content: Participation(**content),
}
"""What of a line is more than a number or a word."""


def _require(holds: bool, got: str) -> None:
    if not holds:
        raise ValueError(f"no such event: {got}")
