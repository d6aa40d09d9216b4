"""Accounting: what events cost, as (ε, δ), by ``dp_accounting`` (the extra ``headwater[privacy]``).

Two bounds, where both exist: by Rényi divergences (RDP; Mironov 2017, arXiv 1702.07476) and by privacy loss
distributions (PLD; Doroshenko et al. 2022, arXiv 2207.04380). Both are computed of the continuous Gaussian.
For the discrete one (:mod:`.noise`) RDP holds exactly at whole orders, and everything else but for a rounding
of the continuous one to a unit, which at the σ of a round's sums, above 2^20 units, changes a probability by
less than 2^-33 of itself within 16 σ. :attr:`Price.epsilon` is the smaller bound.

**The relation.** ε is stated for one owner's whole data: added or removed, or replaced by anybody else's; of
a sequence, for all its updates set to nothing while the same owners are asked (*zero-out*; 2408.08868). A
cohort of fixed size has a bound for replacing only, which moves a sum twice as far as adding.
``dp_accounting`` takes a ``GaussianDpEvent`` under ``REPLACE_ONE`` as noise over the *sensitivity* in its RDP
and as noise over the *norm* in its PLD, so this module halves the multiplier itself and asks neither to.

**Shares.** A sum of discrete Gaussians is none, but each probability is within e^(gap/2) of one's
(:attr:`~headwater.privacy.events.SharesReleased.gap`). With G the sum of all gaps, P ≤ e^(G/2)·P' and
Q' ≤ e^(G/2)·Q, whatever was chosen after whatever left: (ε', δ') of Gaussians is
(ε' + G, e^(G/2)·δ') of shares.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any, Literal

from headwater.errors import ConfigError, MissingDependency
from headwater.privacy.events import (
    Event,
    Everyone,
    FixedSample,
    PoissonSample,
    PositionReleased,
    Sampling,
    SequenceReleased,
    SharesReleased,
    StepsReleased,
    SumReleased,
)

Relation = Literal["add-or-remove", "replace-one", "zero-out"]
Bound = Literal["rdp", "pld"]
BOUNDS: tuple[Bound, Bound] = ("rdp", "pld")
_MOST_MULTIPLIER = 2**14
IN_WORDS: Mapping[Relation, str] = {
    "add-or-remove": "{} added or removed",
    "replace-one": "{} replaced",
    "zero-out": "all updates of {} set to nothing",
}
_INTERVAL = 1e-3
"""Between the losses that a PLD tells apart, rounded up: ten times the library's, eight times as fast, and ε
is higher by less than 1e-3."""


@dataclass(frozen=True, slots=True)
class Price:
    """What events cost at one δ.

    Args:
        rdp: ε by Rényi divergences.
        pld: ε by privacy loss distributions; None where there is no such bound.
        delta: δ.
        relation: whose difference ε bounds.
        reproducible: some noise can be drawn again from a seed: ε says what it would be, and there is none.
    """

    rdp: float
    pld: float | None
    delta: float
    relation: Relation
    reproducible: bool = False

    @property
    def epsilon(self) -> float:
        """The smaller bound: both hold."""
        return self.rdp if self.pld is None else min(self.rdp, self.pld)


@dataclass(frozen=True, slots=True)
class _Priced:
    """An event as an accountant takes it: so many Gaussians over a sensitivity, drawn in one way."""

    ratio: float
    sampling: Sampling


def relation_of(sampling: Sampling) -> Relation:
    """The relation for which a way of drawing is priced."""
    return "replace-one" if isinstance(sampling, FixedSample) else "add-or-remove"


def relation_for(event: Event) -> Relation:
    """The relation for which an event is priced."""
    if isinstance(event, SequenceReleased | PositionReleased | SharesReleased):
        return "zero-out"
    return relation_of(event.sampling)


def price(events: Iterable[Event], delta: float, relation: Relation) -> Price:
    """What the events cost together; the order does not matter, and each may depend on those before.

    Args:
        events: all that happened.
        delta: δ, in (0, 1).
        relation: whose difference is bounded.

    Raises:
        ConfigError: an event has no bound under this relation.
        MissingDependency: without ``dp_accounting``.
    """
    known = tuple(events)
    parts = Counter[_Priced]()
    for event in known:
        if (priced := PRICES[type(event)](event, relation)) is not None:
            part, times = priced
            parts[part] += times
    if not parts:
        return Price(0.0, 0.0, delta, relation)
    ordered = tuple(sorted(parts.items(), key=repr))
    gap = math.fsum(event.gap for event in known if isinstance(event, SharesReleased))
    of = delta * math.exp(-gap)
    rdp, pld = (_epsilon(ordered, of, relation, bound) for bound in BOUNDS)
    assert rdp is not None, "every kind of sampling has this bound"
    rdp, pld = rdp + gap, None if pld is None else pld + gap
    return Price(rdp, pld, delta, relation, any(event.reproducible for event in known))


def in_words(spent: Price, budget: float | None, whose: str = "owner") -> str:
    """What was spent, in a line: ``ε 1.234 of 4 spent, at δ 1e-05, one owner added or removed``."""
    of = "" if budget is None else f" of {budget:g}"
    relation = IN_WORDS[spent.relation].format(f"one {whose}")
    text = f"ε {spent.epsilon:.3f}{of} spent, at δ {spent.delta:g}, {relation}"
    return f"{text}; reproducible noise: no privacy" if spent.reproducible else text


@lru_cache(maxsize=64)
def noise_multiplier_for(epsilon_of_budget: float, delta: float, rounds: int, sampling: Sampling) -> float:
    """The least z, to three digits after the point, with which so many rounds cost at most ε.

    Args:
        epsilon_of_budget: ε.
        delta: δ.
        rounds: how many sums are released.
        sampling: how each one's owners are drawn.

    Raises:
        ConfigError: no z up to 2^14 is enough.
        MissingDependency: without ``dp_accounting``.
    """
    relation = relation_of(sampling)

    def epsilon(thousandths: int, which: Bound) -> float:
        event = SumReleased(1, "planned", 1.0, thousandths / 1000, sampling)
        found = _epsilon(((_gaussian(event, relation), rounds),), delta, relation, which)
        return math.inf if found is None else found

    low, high = 0, 256
    while epsilon(high, "rdp") > epsilon_of_budget:
        low, high = high, 2 * high
        if high > _MOST_MULTIPLIER * 1000:
            raise ConfigError(
                "privacy.epsilon",
                expected=f"a budget that noise can keep over {rounds} rounds",
                got=f"ε {epsilon_of_budget:g} at δ {delta:g}",
                hint="Raise epsilon, or ask fewer owners in a round, or have fewer rounds.",
            )
    bound: Bound
    for bound in ("rdp", "pld"):  # the second is tighter, and slower
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if epsilon(middle, bound) <= epsilon_of_budget else (middle, high)
        low = high * 3 // 4
        while bound == "rdp" and epsilon(low, "pld") <= epsilon_of_budget:
            low, high = low // 2, low
    return high / 1000


def _of_sum(event: SumReleased, relation: Relation) -> tuple[_Priced, int]:
    """Of one owner more the sum moves by C; of one in place of another by 2C."""
    return _gaussian(event, relation), 1


def _of_shares(event: SharesReleased, relation: Relation) -> tuple[_Priced, int]:
    """Without a gap: one Gaussian, over an update that is set to nothing. The server knows who was asked."""
    _require_relation("a sum with noise in shares", relation, "zero-out")
    return _Priced(event.noise_multiplier, Everyone()), 1


def _of_steps(event: StepsReleased, relation: Relation) -> tuple[_Priced, int]:
    """The same of one example, at every step."""
    return _gaussian(event, relation), event.steps


def _of_sequence(event: SequenceReleased, relation: Relation) -> tuple[_Priced, int]:
    """All sums together move by Δ·C at most, whatever left before (:mod:`.correlated.noise`)."""
    _require_relation("a sequence", relation, "zero-out")
    return _Priced(event.noise_multiplier, Everyone()), 1


def _of_position(event: PositionReleased, relation: Relation) -> None:
    """Its sequence has paid."""


def _gaussian(event: SumReleased | StepsReleased, relation: Relation) -> _Priced:
    halved = relation == "replace-one"
    return _Priced(event.noise_multiplier / (2 if halved else 1), event.sampling)


PRICES: Mapping[type[Event], Callable[[Any, Relation], tuple[_Priced, int] | None]] = {
    SumReleased: _of_sum,
    SharesReleased: _of_shares,
    StepsReleased: _of_steps,
    SequenceReleased: _of_sequence,
    PositionReleased: _of_position,
}
"""How each kind of event is priced: as what, and how many times; None is free. One not here cannot be."""


@lru_cache(maxsize=4096)
def _epsilon(
    parts: tuple[tuple[_Priced, int], ...], delta: float, relation: Relation, bound: Bound
) -> float | None:
    """One bound of ε; None where there is no such bound."""
    dp = library()
    from dp_accounting import pld, rdp

    relations = dp.NeighboringRelation
    if bound == "pld":  # the shift is in the ratio: under either relation a Gaussian moves by 1
        if any(part.sampling.kind == FixedSample.kind for part, _ in parts):
            return None
        accountant = pld.PLDAccountant(value_discretization_interval=_INTERVAL)
    else:
        replaced = relation == "replace-one"
        accountant = rdp.RdpAccountant(
            neighboring_relation=relations.REPLACE_ONE if replaced else relations.ADD_OR_REMOVE_ONE
        )
    for part, count in parts:
        event = dp.GaussianDpEvent(part.ratio)
        if isinstance(part.sampling, PoissonSample):
            _require_relation(f"{part.sampling.kind} sampling", relation, "add-or-remove")
            event = dp.PoissonSampledDpEvent(part.sampling.rate, event)
        elif isinstance(part.sampling, FixedSample):
            _require_relation(f"{part.sampling.kind} sampling", relation, "replace-one")
            event = dp.SampledWithoutReplacementDpEvent(part.sampling.population, part.sampling.size, event)
        with _silenced():
            accountant.compose(dp.SelfComposedDpEvent(event, count))
    return float(accountant.get_epsilon(delta))


@contextmanager
def _silenced() -> Iterator[None]:
    """Without a warning for each order that RDP leaves out: the others' bounds hold."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _require_relation(what: str, relation: Relation, needed: Relation) -> None:
    if relation != needed:
        raise ConfigError(
            f"accounting of {what}",
            expected=f"relation '{needed}', for which there is a bound",
            got=f"'{relation}'",
        )


def library() -> ModuleType:
    """``dp_accounting``.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        import dp_accounting
    except ImportError as error:
        raise MissingDependency(
            "[privacy] with noise",
            expected="the package dp-accounting, which tells what is spent",
            got="none",
            hint='Install it: pip install "headwater[privacy]"',
        ) from error
    module: ModuleType = dp_accounting
    return module
