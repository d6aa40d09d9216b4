"""Gate: compiled loops, once NumPy has lost as much time as they take to load.

numba is an extra (``pip install headwater[speed]``). Importing it takes a quarter of a second and the loops'
machine code another half, the first time on a machine some seconds, so that a process which folds little must
never meet it. Each caller says how much longer NumPy takes for the work at hand; while the sum of that is
small, and where numba is missing, it is told to use NumPy. Whoever knows all of its work beforehand says so,
and loses nothing. Bits are the same either way.
"""

from __future__ import annotations

import importlib
import logging
import threading
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

_LOAD, _COMPILE = 1e9, 4e9
"""Nanoseconds that loading kept machine code takes, and that making it takes: what must have been lost."""

log = logging.getLogger(__name__)


class Kernels(Protocol):
    """What :mod:`headwater.kernels.compiled` has; arrays are contiguous."""

    KEPT: bool

    def add_units(
        self,
        sums: npt.NDArray[np.int64],
        values: npt.NDArray[np.float32],
        bits: npt.NDArray[np.int32],
        limit: int,
        scale: float,
        weight: int,
    ) -> int:
        """Add weight·round(values·scale) up to the first stretch with a value beyond ``limit``: how many."""

    def near(
        self, bits: npt.NDArray[Any], low: int, high: int, found: npt.NDArray[Any]
    ) -> tuple[int, int, int]:
        """How many magnitudes are ``high`` or more, how many in [low, high) were found, the largest."""

    def clear(self, bits: npt.NDArray[Any], edge: int) -> None:
        """Set to zero what is smaller than ``edge``."""

    def last_places(self, bits: npt.NDArray[np.int32], edge: int, places: npt.NDArray[np.int64]) -> None:
        """Where the last values are whose magnitude is ``edge``."""

    def elect(
        self,
        positive: npt.NDArray[np.int64],
        negative: npt.NDArray[np.int64],
        for_positive: npt.NDArray[np.int64],
        for_negative: npt.NDArray[np.int64],
        x0: npt.NDArray[np.float32],
        x1: npt.NDArray[np.float32],
        x2: npt.NDArray[np.float32],
        x3: npt.NDArray[np.float32],
        edges: npt.NDArray[np.int64],
        weights: npt.NDArray[np.int64],
        scale: float,
    ) -> None:
        """Add what is kept of four vectors to the sums of TIES."""

    def elect_shares(
        self,
        positive: npt.NDArray[np.float64],
        negative: npt.NDArray[np.float64],
        for_positive: npt.NDArray[np.float64],
        for_negative: npt.NDArray[np.float64],
        values: npt.NDArray[Any],
        weight: float,
    ) -> None:
        """Add a vector to the sums of TIES in float64."""


class Gate:
    """Says who computes.

    Args:
        lost: nanoseconds that NumPy has lost before.
    """

    def __init__(self, lost: float = 0.0) -> None:
        self._lost, self._lock, self._foreseen = lost, threading.Lock(), 0.0
        self._kernels: Kernels | None = None
        self._tried = False

    def open(self) -> Kernels | None:
        """The loops at once; None where there are none."""
        return self.after(float("inf"))

    def expect(self, nanoseconds: float) -> None:
        """Count work that is to come: calls of :meth:`after` for it count no second time.

        Args:
            nanoseconds: by which NumPy takes longer for all of it.
        """
        self.after(nanoseconds)
        with self._lock:
            self._foreseen += nanoseconds

    def after(self, nanoseconds: float) -> Kernels | None:
        """The loops, or None where NumPy is to do the work.

        Args:
            nanoseconds: by which NumPy takes longer for it.
        """
        if self._kernels is None or self._lost < _COMPILE:
            with self._lock:
                known = min(self._foreseen, nanoseconds)
                self._foreseen -= known
                self._lost += nanoseconds - known
                if self._lost >= _LOAD and not self._tried:
                    self._tried, self._kernels = True, _loaded()
        worth = self._kernels is not None and (self._kernels.KEPT or self._lost >= _COMPILE)
        return self._kernels if worth else None


def _loaded() -> Kernels | None:
    try:
        return cast(Kernels, importlib.import_module("headwater.kernels.compiled"))
    except ModuleNotFoundError as error:
        if error.name not in ("numba", "llvmlite"):
            raise
        log.debug("numba is not installed: NumPy folds")
    except Exception:  # whatever ails a compiler and its files, NumPy does the same and the round goes on
        log.warning("compiled loops cannot be had: NumPy folds", exc_info=True)
    return None


GATE = Gate()
"""Of this process."""
