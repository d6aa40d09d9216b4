"""Replay: the global adapter out of coefficients of seeds, for the clients of one process.

The last one stays in memory, with its exact sums, whoever asked for it: the next differs from it in a few
hundred coefficients, and only their directions are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headwater.client.execution.store import ClientStore
from headwater.compression.seed_state import MAX_SUMS, decode_sums, digest, read_header
from headwater.protocol.messages import Payload
from headwater.seeds.coefficients import SeedPlan, directions_of
from headwater.seeds.directions import Directions, Integers, require_summable
from headwater.seeds.keys import Key
from headwater.seeds.seeded_state import SeededState
from headwater.state import AdapterState


@dataclass(frozen=True)
class Rebuilt:
    """A state and what it was made of.

    Args:
        state: float32(w₀ + Σ a·z), exactly as the server has it.
        sums: int64 [n]: a, the coefficients of seeds 0 … n − 1.
        base: the version whose coefficients the payload continued; 0 for none.
    """

    state: AdapterState
    sums: Integers
    base: int


class Replay:
    """Rebuilds states that arrive as ``seeds.v1``.

    Args:
        origin: w₀, the federation's initial state.
        root: the federation's root key.
    """

    def __init__(self, origin: AdapterState, root: Key) -> None:
        self._origin, self._root = origin, root
        self._last: tuple[SeededState, AdapterState] | None = None

    def rebuild(self, payload: Payload, client: str, store: ClientStore) -> Rebuilt:
        """The state in ``payload``, relative to what ``client`` has, or to the last one here.

        The same object again while the coefficients are the same.

        Raises:
            DecodeError: malformed; with the code NEEDS_FULL_STATE if the base is not here.
            ConfigError: coefficients that no sum can carry.
        """
        header, last = read_header(payload, MAX_SUMS), self._last

        def known(version: int) -> Integers | None:
            if last is not None and digest(last[0].sums) == header.base:
                return last[0].sums
            return store.load_sums(client).get(version)

        sums = decode_sums(payload, known, MAX_SUMS)
        plan = SeedPlan(0, len(sums), header.distribution, header.unit_bits, 0)
        directions = directions_of(plan, self._root, self._origin.spec.numel)
        if last is None or not _is(last[0], directions, header.unit_bits, sums):
            seeded_state = self._seeded_state(directions, header.unit_bits, sums)
            last = self._last = seeded_state, seeded_state.state()
        return Rebuilt(last[1], sums, header.version)

    def _seeded_state(self, directions: Directions, unit_bits: int, sums: Integers) -> SeededState:
        """From the last one where that draws fewer directions."""
        require_summable(sums)  # also where only the change is added up
        last = None if self._last is None else self._last[0]
        if last is None or (last.directions, last.unit_bits) != (directions, unit_bits):
            return SeededState(self._origin, directions, unit_bits, sums)
        change = np.zeros(max(len(sums), len(last.sums)), np.int64)
        change[: len(sums)] = sums
        change[: len(last.sums)] -= last.sums
        touched = np.flatnonzero(change)
        if len(touched) >= np.count_nonzero(sums):
            return SeededState(self._origin, directions, unit_bits, sums)
        exact = last.total + directions.combine(touched, change[touched])
        return SeededState(self._origin, directions, unit_bits, sums, exact)


def _is(seeded_state: SeededState, directions: Directions, unit_bits: int, sums: Integers) -> bool:
    return (seeded_state.directions, seeded_state.unit_bits) == (directions, unit_bits) and np.array_equal(
        seeded_state.sums, sums
    )
