"""Turns: whom correlated noise lets a round ask; no pattern that comes of it moves more than is priced."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from headwater.config import load_federation
from headwater.errors import ConfigError
from headwater.merging.aggregator import Merged
from headwater.privacy.correlated.blt import BufferedToeplitz
from headwater.privacy.events import SequenceReleased
from headwater.protocol.messages import ClientProfile
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.strategies.federated import FederatedStrategy
from headwater.training.context import TrainingContext
from tests.support.runs import bare_federation

pytest.importorskip("dp_accounting", reason="the extra headwater[privacy]")
ROOT = Key.root(1)
BLT = BufferedToeplitz((0.95, 0.4), (0.15, 0.3))


def strategy_of(folder, *, rounds=7, size=3, each=3, owners=30, **privacy):
    """A strategy, and its server before round 1."""
    loaded = load_federation(
        bare_federation(
            folder,
            size=size,
            federation={"rounds": rounds},
            strategy={"kind": "mean", "weighting": "equal"},
            codec={"up": {"kind": "dense"}},
            cohort={"clients_per_round": each, "population": owners},
            privacy={"clip_l2": 0.5, "noise_multiplier": 1.0, "delta": 1e-5, "mechanism": "tree", **privacy},
        )
    )
    strategy = FederatedStrategy(loaded.settings)
    return strategy, strategy.init(TrainingContext.open(loaded).initial_state())


def profiles(names):
    return {name: ClientProfile(name, 5, 0, "0" * 64, "spec") for name in names}


def plan(strategy, server, names):
    return list(strategy.plan(server, profiles(names), key=ROOT).clients)


def after(strategy, server, asked):
    zero = AdapterState.from_vector(server.state.spec, torch.zeros(server.state.spec.numel))
    return strategy.update(server, Merged(zero, (), 0.0, {}, asked=tuple(asked)))


def patterns(strategy, server, rounds):
    """In which rounds the planner asks ``a``, over all ways for it to be there or not."""
    found = set()
    for there in itertools.product((0, 1), repeat=rounds):
        state, asked = server, []
        for number, is_there in enumerate(there):
            names = plan(strategy, state, [f"other{number}", *["a"] * is_there])
            state = after(strategy, state, names)
            asked.append(int("a" in names))
        found.add(tuple(asked))
    return found


def allowed(rounds, apart, most):
    """Every pattern with ``apart`` from one 1 to the next, and ``most`` of them."""
    found = set()
    for row in itertools.product((0, 1), repeat=rounds):
        ones = [i for i, one in enumerate(row) if one]
        if len(ones) <= (most or rounds) and all(b - a >= apart for a, b in itertools.pairwise(ones)):
            found.add(row)
    return found


@pytest.mark.parametrize(("apart", "most"), [(1, 2), (2, None), (3, 1), (3, None)])
def test_the_planner_asks_by_every_pattern_that_is_priced_and_by_no_other(tmp_path, apart, most):
    privacy = {"min_separation": apart, **({} if most is None else {"max_participations": most})}
    strategy, server = strategy_of(tmp_path, rounds=5, each=2, **privacy)
    found = patterns(strategy, server, 5)
    assert found == allowed(5, apart, most)
    for kind in ("tree", "banded"):
        other, start = strategy_of(tmp_path, rounds=5, each=2, **privacy, mechanism=kind)
        event = other.release(start, "r")
        assert isinstance(event, SequenceReleased)
        require_priced(event.mechanism, event.participation, found)
    require_priced(BLT, event.participation, found)


def require_priced(mechanism, participation, found):
    """No pattern moves C·G further than its sensitivity, which of a Toeplitz matrix is exact."""
    worst = max(float(np.linalg.norm(mechanism.materialize(5) @ np.array(row))) for row in found)
    bound = mechanism.sensitivity(participation)
    assert worst <= bound * (1 + 1e-12)
    if mechanism.kind != "tree":
        assert worst == pytest.approx(bound, rel=1e-12)


def test_a_round_that_was_drawn_before_asks_nobody_out_of_turn(tmp_path):
    """A record that was tampered with, or is of another life of the run."""
    strategy, server = strategy_of(tmp_path, min_separation=3)
    server = after(strategy, server, ["a"])
    drawn = FederatedStrategy(strategy.federation, drawn=True)
    assert plan(drawn, server, ["a", "b"]) == ["b"]


def test_asked_counts_whoever_answered(tmp_path):
    strategy, server = strategy_of(tmp_path, min_separation=2)
    asked = plan(strategy, server, ["a", "b", "c"])
    assert asked == ["a", "b", "c"]
    server = after(strategy, server, asked)  # nobody answered: Merged.clients is empty
    assert plan(strategy, server, ["a", "b", "c", "d"]) == ["d"]


def test_why_an_owner_is_not_asked_and_from_when_on_it_may_be(tmp_path):
    strategy, server = strategy_of(tmp_path, min_separation=3, max_participations=2)
    server = after(strategy, server, ["a"])
    told = {"a": "was asked in round 1, and may be again from round 4 on"}
    assert strategy.not_in_turn(server, ["a", "b"]) == told
    for asked in ([], [], ["a"], [], []):
        server = after(strategy, server, asked)
    assert strategy.not_in_turn(server, ["a"]) == {
        "a": "was asked in 2 rounds, and privacy.max_participations is 2"
    }


def test_who_was_asked_least_is_asked_first_so_that_the_rounds_of_the_file_have_enough(tmp_path):
    """9 owners twice each are 9 rounds of 2; by chance alone most such runs end with too few."""
    strategy, server = strategy_of(
        tmp_path, rounds=9, each=2, owners=9, min_separation=3, max_participations=2
    )
    names = [f"c{i}" for i in range(9)]
    for _ in range(5):
        state = server
        for _ in range(9):
            asked = plan(strategy, state, names)
            assert len(asked) == 2
            state = after(strategy, state, asked)
        assert set(state.privacy.asked.values()) >= {(9, 2)}
        assert {times for _, times in state.privacy.asked.values()} == {2}


def test_rounds_that_are_added_are_of_another_sequence(tmp_path):
    strategy, server = strategy_of(tmp_path, rounds=4, min_separation=2)
    for _ in range(4):
        server = after(strategy, server, [])
    more = strategy.federation.federation.model_copy(update={"rounds": 7})
    strategy = FederatedStrategy(strategy.federation.model_copy(update={"federation": more}))
    event = strategy.release(server, "r")
    assert (event.round, event.participation.rounds) == (5, 3)
    private = strategy.plan(server, profiles("a"), key=ROOT).merge.private
    drawn = event.noise_multiplier * event.mechanism.sensitivity(event.participation)
    assert private.multiplier == pytest.approx(drawn)  # units leave room for what is drawn in one round
    assert after(strategy, server, []).privacy.sequence.first == 5


def test_who_leaves_takes_no_turn_of_others_away_and_noise_goes_on(tmp_path):
    strategy, server = strategy_of(tmp_path, min_separation=3)
    server = after(strategy, server, ["a", "b"])
    assert strategy.begun_again(server, server.state, "a").privacy == server.privacy
    assert strategy.rolled_back(server, server.state).privacy == server.privacy


def test_noise_that_rounding_would_make_useless_is_refused_before_anybody_works(tmp_path):
    strategy, server = strategy_of(tmp_path, rounds=7, noise_multiplier=50.0)
    many = strategy.federation.federation.model_copy(update={"rounds": 40_000})
    strategy = FederatedStrategy(strategy.federation.model_copy(update={"federation": many}))
    with pytest.raises(ConfigError, match="rounding"):
        strategy.init(server.state)
