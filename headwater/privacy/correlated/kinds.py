"""Kinds of mechanisms by name: :func:`best` finds one's parameters; files keep them, since a search may not.

Another machine's search may come to other parameters in the last digit, and those in use are what is priced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from headwater.privacy.correlated.blt import BufferedToeplitz
from headwater.privacy.correlated.mechanism import Mechanism, Participation
from headwater.privacy.correlated.optimise import best_bands, best_blt
from headwater.privacy.correlated.toeplitz import Banded
from headwater.privacy.correlated.tree import Tree

MOST_BANDS = 32
"""Coefficients of a banded matrix at most: it keeps a vector for each."""
MOST_BUFFERS = 3
WORTH = 0.005
"""A BLT has as few buffers as come within this share of the least error: each is a vector as long as the
adapter. Over few rounds a third earns nothing, and the search would leave it with a scale of 1e-20."""


def _fewest_buffers(who: Participation) -> BufferedToeplitz:
    found = [best_blt(who, buffers) for buffers in range(1, MOST_BUFFERS + 1)]
    enough = min(one.max_error(who) for one in found) * (1 + WORTH)
    return next(one for one in found if one.max_error(who) <= enough)


KINDS: Mapping[str, type[Any]] = {kind.kind: kind for kind in (Tree, Banded, BufferedToeplitz)}
_BEST: Mapping[str, Callable[[Participation], Mechanism]] = {
    "tree": lambda who: Tree(who.rounds),
    "banded": lambda who: best_bands(who, min(who.separation, who.rounds, MOST_BANDS)),
    "blt": _fewest_buffers,
}


@lru_cache(maxsize=64)
def best(kind: str, participation: Participation) -> Mechanism:
    """The one of this kind whose worst prefix sum errs least.

    Args:
        kind: one of :data:`KINDS`.
        participation: in which rounds an owner can be.
    """
    return _BEST[kind](participation)


def described(mechanism: Mechanism) -> dict[str, Any]:
    """Its kind and parameters, as JSON takes them."""
    return {"kind": mechanism.kind, **asdict(mechanism)}  # type: ignore[call-overload]  # all are dataclasses


def mechanism_of(content: Mapping[str, Any]) -> Mechanism:
    """What :func:`described` said.

    Raises:
        LookupError: no such kind.
        TypeError: other parameters than the kind has.
        ConfigError: parameters that have no stated sensitivity.
    """
    parameters = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in content.items()
        if name != "kind"
    }
    made: Mechanism = KINDS[content["kind"]](**parameters)
    return made
