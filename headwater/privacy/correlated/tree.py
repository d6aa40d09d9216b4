"""Tree: noise of a binary tree's nodes (Dwork et al. 2010; Chan et al. 2011), as a square matrix.

Of the tree only the nodes that some prefix needs are used: one ends at each round t, over the t & −t rounds
up to it (Fenwick 1994). So row t of C has ones there, C⁻¹ is whole as well, and the noise of the first t
rounds together is the sum of as many nodes as t has ones in binary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headwater.privacy.correlated.mechanism import Floats, Mechanism, Memory, Participation, gram_bound


@dataclass(frozen=True, slots=True)
class Tree(Mechanism):
    """The tree over up to ``rounds`` rounds.

    It remembers sums of prefixes: in buffer l the latest one whose number of rounds has l zeros at its end.

    Args:
        rounds: n.
    """

    rounds: int

    @property
    def buffers(self) -> int:
        """⌊log₂ n⌋ + 1: as many as the tree has levels."""
        return self.rounds.bit_length()

    def earlier(self, memory: Memory) -> Floats:
        """The sum of the rounds below the node, but for the last."""
        following = memory.step + 1
        before = _prefix(memory, following & memory.step)  # without its lowest one
        return _prefix(memory, memory.step) - before

    def enter(self, memory: Memory, x: Floats) -> Memory:
        """Store the new prefix in the place of one that no later node begins at."""
        step, buffers = memory.step + 1, memory.buffers.copy()
        buffers[_zeros(step)] = _prefix(memory, memory.step) + x
        return Memory(step, buffers)

    def sensitivity(self, participation: Participation) -> float:
        """A bound from C⊤C; ⌊log₂ n⌋ + 1 under the root for one participation, which is exact."""
        gram = self.materialize(participation.rounds)
        return gram_bound(gram.T @ gram, participation)

    def prefix_errors(self, rounds: int) -> Floats:
        """As many nodes as t has ones."""
        return np.array([t.bit_count() for t in range(1, rounds + 1)], np.float64)


def _zeros(number: int) -> int:
    return (number & -number).bit_length() - 1


def _prefix(memory: Memory, rounds: int) -> Floats:
    if rounds == 0:
        return np.zeros(memory.buffers.shape[1])
    prefix: Floats = memory.buffers[_zeros(rounds)]
    return prefix
