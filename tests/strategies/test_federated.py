from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from headwater.config import Federation
from headwater.errors import ConfigError, FederationStopped, SpecMismatch
from headwater.merging import FisherAggregator, MeanAggregator, MedianAggregator, Merged, TiesAggregator
from headwater.protocol.messages import ClientProfile, FisherPlan
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.strategies import FederatedStrategy, ServerState, rule_for

SPEC = StateSpec.of([TensorSpec("v", (2,), "vector")])
KEY = Key.root(7)


def federation(**tables: Any) -> Federation:
    raw = {
        "federation": {"name": "t", "rounds": 5},
        "model": {"kind": "encoder", "path": "m"},
        "adapter": {"kind": "lora"},
        "data": {
            "kind": "classification",
            "path": "d.jsonl",
            "labels": ["a", "b"],
            "partition": {"kind": "iid", "clients": 3},
        },
        "training": {"kind": "backprop"},
    }
    return Federation.model_validate({**raw, **tables}, strict=False)


def vector(*values: float) -> AdapterState:
    return AdapterState.from_vector(SPEC, torch.tensor(values, dtype=torch.float32))


def profiles(**examples: int) -> dict[str, ClientProfile]:
    return {n: ClientProfile(n, e, 2, "0" * 64, SPEC.fingerprint()) for n, e in examples.items()}


def after(strategy: FederatedStrategy, *deltas: AdapterState) -> ServerState:
    server = strategy.init(vector(0.0, 1.0))
    for delta in deltas:
        server = strategy.update(server, Merged(delta, ("a",), 1))
    return server


def test_weights_are_examples_and_clients_without_any_are_not_asked() -> None:
    strategy = FederatedStrategy(federation(privacy={"clip_l2": 2.0}))
    plan = strategy.plan(after(strategy), profiles(b=20, a=10, empty=0), key=KEY)
    assert plan.round == 1
    assert plan.merge.weights == {"a": 10, "b": 20}
    assert list(plan.clients) == ["a", "b"]
    assert plan.merge.spec == SPEC
    assert plan.merge.value_bound == 16.0
    assert plan.clients["a"].clip_l2 == 2.0
    assert plan.clients["a"].codec.kind == "compeft"
    assert plan.clients["a"].fisher is None


def test_all_clients_of_a_round_share_their_random_places_where_the_file_says_so() -> None:
    codec = {"kind": "randk", "shared": True}
    strategy = FederatedStrategy(federation(codec={"up": codec}))
    first, second = after(strategy), after(strategy, vector(1.0, 1.0))
    plans = [strategy.plan(server, profiles(a=1, b=2), key=KEY).clients for server in (first, second)]
    assert plans[0]["a"].codec == plans[0]["b"].codec != plans[1]["a"].codec
    assert plans[0]["a"].codec.is_of_a_round()
    alone = FederatedStrategy(federation(codec={"up": {"kind": "randk"}}))
    assert not alone.plan(first, profiles(a=1), key=KEY).clients["a"].codec.is_of_a_round()
    with pytest.raises(ValidationError, match="places are what the server writes"):
        federation(codec={"up": {**codec, "places": "0" * 32}})


def test_equal_weighting() -> None:
    strategy = FederatedStrategy(federation(strategy={"kind": "mean", "weighting": "equal"}))
    assert strategy.plan(after(strategy), profiles(b=20, a=10), key=KEY).merge.weights == {"a": 1, "b": 1}


def test_weighting_by_targets() -> None:
    strategy = FederatedStrategy(federation(strategy={"kind": "mean", "weighting": "targets"}))
    there = {n: replace(p, train_targets=7 * p.train_examples) for n, p in profiles(b=20, a=10).items()}
    assert strategy.plan(after(strategy), there, key=KEY).merge.weights == {"a": 70, "b": 140}


def test_the_cohort_is_a_function_of_key_round_and_names() -> None:
    strategy = FederatedStrategy(federation(cohort={"clients_per_round": 3}))
    everyone = profiles(**{f"c{i}": i + 1 for i in range(12)})
    server = after(strategy)
    first = strategy.plan(server, everyone, key=KEY)
    assert len(first.clients) == 3
    assert list(first.clients) == sorted(first.clients)
    assert strategy.plan(server, dict(reversed(everyone.items())), key=KEY) == first
    moved = [list(strategy.plan(ServerState(r, server.state), everyone, key=KEY).clients) for r in range(20)]
    assert len({tuple(names) for names in moved}) > 5
    assert {name for names in moved for name in names} == set(everyone)
    assert len(strategy.plan(server, profiles(a=1, b=1), key=KEY).clients) == 2


def test_nobody_to_ask_stops_the_federation() -> None:
    strategy = FederatedStrategy(federation())
    with pytest.raises(FederationStopped, match="training examples"):
        strategy.plan(after(strategy), profiles(a=0), key=KEY)


def test_learning_rates_fall_linearly_to_the_last_round() -> None:
    strategy = FederatedStrategy(
        federation(training={"kind": "backprop", "final_learning_rate_fraction": 0.2})
    )
    factors = [
        strategy.plan(ServerState(r, vector(0, 0)), profiles(a=1), key=KEY).clients["a"].learning_rate_factor
        for r in range(7)
    ]
    assert factors == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2])


def test_one_round_has_the_full_learning_rate() -> None:
    training = {"kind": "backprop", "final_learning_rate_fraction": 0.2}
    strategy = FederatedStrategy(federation(federation={"name": "t", "rounds": 1}, training=training))
    plan = strategy.plan(after(strategy), profiles(a=1), key=KEY)
    assert plan.clients["a"].learning_rate_factor == 1.0


def test_plain_fedavg_adds_the_delta() -> None:
    server = after(FederatedStrategy(federation()), vector(0.5, -1.0), vector(0.25, 0.0))
    assert server == ServerState(2, server.state, None)
    assert server.state.vector().tolist() == [0.75, 0.0]


def test_momentum_is_fedavgm() -> None:
    settings = {"kind": "mean", "server_momentum": 0.5, "server_learning_rate": 2.0}
    server = after(FederatedStrategy(federation(strategy=settings)), vector(1.0, 0.0), vector(1.0, 1.0))
    assert server.momentum is not None
    assert server.momentum.vector().tolist() == [1.5, 1.0]  # 0.5·1 + 1
    assert server.state.vector().tolist() == [2.0 + 3.0, 1.0 + 2.0]


def test_another_spec_is_refused() -> None:
    other = AdapterState.zeros(StateSpec.of([TensorSpec("w", (2,), "vector")]))
    strategy = FederatedStrategy(federation())
    with pytest.raises(SpecMismatch):
        strategy.update(after(strategy), Merged(other, ("a",), 1))


def test_every_rule_of_the_file_has_an_aggregator() -> None:
    mean = FederatedStrategy(federation())
    server = after(mean)
    assert isinstance(
        mean.aggregator(mean.plan(server, profiles(a=1), key=KEY), server.state), MeanAggregator
    )
    ties = rule_for(federation(strategy={"kind": "ties", "density": 0.3}).strategy)
    assert isinstance(ties, TiesAggregator)
    assert ties.density == 0.3
    median = rule_for(federation(strategy={"kind": "median", "max_kept_mb": 3}).strategy)
    assert isinstance(median, MedianAggregator)
    assert median.most_bytes == 3 * 2**20
    settings = federation(strategy={"kind": "fisher", "cap": 32.0, "examples": 9})
    fisher = rule_for(settings.strategy)
    assert isinstance(fisher, FisherAggregator)
    assert fisher.cap == 32.0
    strategy = FederatedStrategy(settings)
    plan = strategy.plan(after(strategy), profiles(a=1), key=KEY)
    assert plan.clients["a"].fisher == FisherPlan(examples=9, cap=32.0)


def test_an_unregistered_kind_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"strategy\.kind"):
        rule_for(object())  # type: ignore[arg-type]  # what a forgotten line in the table would pass


BIG = StateSpec.of([TensorSpec("v", (2**18,), "vector")])  # 1 MiB


def big(**tables: Any) -> tuple[FederatedStrategy, ServerState]:
    tables = {"strategy": {"kind": "median", "max_kept_mb": 4}, **tables}
    strategy = FederatedStrategy(federation(**tables))
    return strategy, strategy.init(AdapterState.zeros(BIG))


def test_a_round_whose_updates_the_rule_may_not_keep_is_refused_before_anybody_is_asked() -> None:
    strategy, server = big()
    four, five = profiles(a=1, b=1, c=1, d=1), profiles(a=1, b=1, c=1, d=1, e=1)
    assert len(strategy.plan(server, four, key=KEY).clients) == 4
    assert strategy.kept_bytes(BIG, 4) == 4 * 2**20
    with pytest.raises(ConfigError, match=r"5 clients x 1\.05 MB = 5\.24 MB"):
        strategy.plan(server, five, key=KEY)
    for fits in (
        {"cohort": {"clients_per_round": 4}},
        {"schedule": {"kind": "buffered", "buffer": 4}},
        {"strategy": {"kind": "median", "max_kept_mb": 5}},
        {"strategy": {"kind": "mean"}},
    ):
        strategy, server = big(**fits)
        assert strategy.plan(server, five, key=KEY).round == 1
    assert strategy.kept_bytes(BIG, 5) is None  # a mean keeps none


def test_a_cohort_that_can_never_fit_is_refused_before_the_first_round() -> None:
    with pytest.raises(ConfigError, match="max_kept_mb"):
        big(cohort={"min_clients": 5})
