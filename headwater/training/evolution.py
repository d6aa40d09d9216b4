"""evolution(): a CMA-ES that draws from a key, prints nothing and writes nothing."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from headwater.seeds.keys import Key

Floats = npt.NDArray[np.float64]


class Search(Protocol):
    """What is used of ``cma.CMAEvolutionStrategy``."""

    mean: Floats
    """float64 [dimensions], of the search distribution."""
    stds: Floats
    """float64 [dimensions], standard deviations of its coordinates."""
    sp: Any
    """Its parameters."""

    def ask(self) -> list[Floats]:
        """A generation's candidates."""

    def tell(self, candidates: list[Floats], losses: list[float]) -> None:
        """What became of them."""


def evolution(
    dimensions: int, sigma: float, key: Key, *, population: int | None = None, bound: float | None = None
) -> Search:
    """A search that starts at 0.

    Args:
        dimensions: of a candidate.
        sigma: the first standard deviation of its coordinates.
        key: of all that is drawn.
        population: candidates of a generation; the library's choice if None.
        bound: no coordinate is larger; None for none.
    """
    import cma  # a second to import: for those who search

    generator = key.numpy()
    options = {
        "seed": math.nan,  # leave NumPy's global generator alone
        "randn": lambda *shape: generator.standard_normal(shape),
        "verbose": -9,
        "verb_log": 0,
        "verb_disp": 0,
        **({} if population is None else {"popsize": population}),
        **({} if bound is None else {"bounds": [-bound, bound]}),
    }
    with silent():
        search: Search = cma.CMAEvolutionStrategy(dimensions * [0.0], sigma, options)
    return search


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Overflows, which NumPy warns of in a search that diverges, are checked for; flat losses do no harm."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "overflow encountered", RuntimeWarning)
        warnings.filterwarnings("ignore", ".*[Ff]lat ")  # cma
        yield
