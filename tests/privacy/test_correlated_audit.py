"""An attacker with all releases and the matrix, on whole runs' noise: never above the price, and near it."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from headwater.privacy.accounting import price
from headwater.privacy.audit.intervals import binomial_interval
from headwater.privacy.audit.one_run import epsilon_at
from headwater.privacy.correlated.blt import BufferedToeplitz
from headwater.privacy.correlated.mechanism import Participation
from headwater.privacy.correlated.noise import CorrelatedNoise
from headwater.privacy.correlated.toeplitz import Banded
from headwater.privacy.correlated.tree import Tree
from headwater.privacy.events import SequenceReleased
from headwater.privacy.noise import ReproducibleRandomness
from headwater.seeds.keys import Key

pytest.importorskip("dp_accounting", reason="the extra headwater[privacy]")
WHO, WORLDS, Z, DELTA, LONGEST = Participation(12, 4), 20_000, 1.0, 1e-5, 2.0**24
KINDS = {
    "tree": Tree(12),
    "banded": Banded((1.0, 0.5, 0.375, 0.3)),
    "blt": BufferedToeplitz((0.97, 0.5), (0.1, 0.4)),
}


def audited(mechanism, pattern, seed=1):
    """ε from below: of so many worlds, by a coin each, an owner's longest parts are in these rounds or not.

    The attacker takes off the noise's memory (C·R), adds up what the parts would have moved, and guesses all.
    """
    source = CorrelatedNoise(mechanism, WHO, WORLDS, Z, LONGEST)
    randomness = ReproducibleRandomness(Key.root(seed).child("audit"))
    present = np.random.default_rng(seed).integers(0, 2, WORLDS)
    moved = mechanism.materialize(WHO.rounds) @ pattern * LONGEST
    memory, seen, score = source.init(), mechanism.init(WORLDS), np.zeros(WORLDS)
    for part, shift in zip(pattern, moved, strict=True):
        noise, memory = source.next(memory, randomness)
        whitened, seen = mechanism.multiply(seen, noise + present * part * LONGEST)
        score += whitened * shift
    right = int(((score > moved @ moved / 2) == present).sum())
    share = binomial_interval(right, WORLDS, 0.999).low  # Φ(μ/2) at most, of any attack on a μ-GDP mechanism
    return epsilon_at(2 * statistics.NormalDist().inv_cdf(share), DELTA)


@pytest.mark.parametrize("kind", ["tree", "banded", "blt"])
def test_no_attack_on_turns_that_are_kept_is_above_the_price(kind):
    mechanism = KINDS[kind]
    spent = price([SequenceReleased(1, "a", 0.5, Z, mechanism, WHO)], DELTA, "zero-out").epsilon
    found = audited(mechanism, np.array([1.0, 0, 0, 0] * 3))
    assert found <= spent
    assert found > 0.85 * spent


@pytest.mark.parametrize("kind", ["banded", "blt"])
def test_an_owner_out_of_turn_would_be_above_it(kind):
    mechanism = KINDS[kind]
    spent = price([SequenceReleased(1, "a", 0.5, Z, mechanism, WHO)], DELTA, "zero-out").epsilon
    assert audited(mechanism, np.array([1.0, 1, 0, 0] * 3)) > spent
