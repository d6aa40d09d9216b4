"""Plans and updates of federations whose clients train in different ways."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from headwater.errors import ConfigError, HeadwaterError
from headwater.merging import Merged
from headwater.merging.coverage import layers_of
from headwater.merging.plan import NoisePlan, Update
from headwater.protocol.messages import ClientProfile
from headwater.seeds.coefficients import FINE_BITS, SeedCoefficients
from headwater.seeds.draw_weights import weights_of
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.strategies import FederatedStrategy, ServerState
from headwater.strategies.strategy import RoundPlan
from tests.strategies.test_federated import federation

SPEC = StateSpec.of(
    [
        TensorSpec(f"layer.{i}.{r}", (3, 4), "lora_a" if r == "a" else "lora_b")
        for i in (0, 1, 2)
        for r in "ab"
    ]
    + [TensorSpec("head", (5,), "head")]
)
ZERO = AdapterState.zeros(SPEC)
KSEED = {"kind": "kseed", "seeds": 16, "max_steps": 5, "learning_rate": 0.5}
NAMES = ("big-1", "big-2", "jvp-1", "jvp-2", "seed-1", "seed-2")
MIXED: dict[str, Any] = {
    "codec": {"up": {"kind": "compeft", "density": 1.0}},
    "methods": {
        "jvp": {"training": {"kind": "spry"}, "rank": 2, "max_bytes_up": 543},
        "seeds": {"training": KSEED},
        "late": {"training": {"kind": "backprop"}, "last_layers": 1},
    },
    "assignment": {"kind": "clients", "clients": {"jvp-*": "jvp", "seed-*": "seeds", "*-2": "late"}},
}


def profiles(*names: str) -> dict[str, ClientProfile]:
    return {n: ClientProfile(n, 10 + i, 2, "0" * 64, SPEC.fingerprint()) for i, n in enumerate(names)}


def planned(strategy: FederatedStrategy, server: ServerState, **options: Any) -> RoundPlan:
    return strategy.plan(server, profiles(*NAMES), key=Key.root(0), **options)


def test_every_client_gets_its_method() -> None:
    strategy = FederatedStrategy(federation(**MIXED))
    plan = planned(strategy, strategy.init(ZERO))
    assert {n: p.method for n, p in plan.clients.items()} == {
        "big-1": "default", "big-2": "late", "jvp-1": "jvp", "jvp-2": "jvp",
        "seed-1": "seeds", "seed-2": "seeds",
    }  # fmt: skip
    assert plan.clients["jvp-1"].rank == 2
    assert plan.clients["jvp-1"].codec.density < 1.0  # type: ignore[union-attr]  # compeft
    assert plan.clients["big-1"].codec.density == 1.0  # type: ignore[union-attr]  # compeft
    late, one, other = (plan.clients[n].tensors for n in ("big-2", "jvp-1", "jvp-2"))
    assert late is not None
    assert one is not None
    assert other is not None
    assert layers_of(late) == [2]
    assert len(layers_of(one)) == len(layers_of(other)) == 1
    assert layers_of(one) != layers_of(other)
    assert plan.merge.tensors == {"big-2": late, "jvp-1": one, "jvp-2": other}
    assert plan.merge.ranks == {"jvp-1": 2, "jvp-2": 2}
    seeds = plan.clients["seed-1"].seeds
    assert plan.merge.seeds == seeds == plan.clients["seed-2"].seeds
    assert plan.clients["big-1"].seeds is None
    assert plan.merge.directions is not None
    assert plan.merge.directions.size == SPEC.numel
    assert plan.merge.weights == {n: 10 + i for i, n in enumerate(NAMES)}


def test_a_round_without_scalar_clients_has_no_seeds() -> None:
    strategy = FederatedStrategy(federation(**MIXED))
    plan = strategy.plan(strategy.init(ZERO), profiles("big-1", "jvp-1"), key=Key.root(0))
    assert plan.merge.seeds is None
    assert plan.merge.directions is None


def test_rates_fall_for_every_method_over_batches() -> None:
    falling = {"kind": "mezo", "final_learning_rate_fraction": 0.2}
    strategy = FederatedStrategy(federation(training=falling))
    plan = planned(strategy, ServerState(4, ZERO))
    assert plan.clients["big-1"].learning_rate_factor == pytest.approx(0.2)


def test_noise_is_weighed_where_somebody_has_some_and_the_file_does_not_forbid_it() -> None:
    before, told = NoisePlan(2.0, {"default": 0.5}), NoisePlan(3.0, {"default": 1.0, "late": 0.0})
    merged = Merged(ZERO, NAMES, 1, noise=told)
    methods = {
        "methods": {"late": {"training": {"kind": "backprop"}}},
        "assignment": {"kind": "clients", "clients": {"*-2": "late"}},
    }
    noisy = FederatedStrategy(federation(training={"kind": "mezo"}, **methods))
    server = noisy.update(ServerState(1, ZERO, noise=before), merged)
    assert server.noise == told
    assert noisy.update(server, replace(merged, noise=None)).noise == told  # a round of one method
    assert planned(noisy, server).merge.noise == server.noise
    assert set(planned(noisy, server).merge.groups.values()) == {"default", "late"}
    for quiet in (
        FederatedStrategy(federation()),
        FederatedStrategy(federation(training={"kind": "mezo"})),  # one method: all weigh the same
        FederatedStrategy(
            federation(training={"kind": "mezo"}, strategy={"kind": "mean", "noise": "ignore"}, **methods)
        ),
    ):
        assert quiet.update(ServerState(1, ZERO), replace(merged, noise=None)).noise is None
        plan = planned(quiet, ServerState(1, ZERO, noise=before))
        assert plan.merge.noise is None
        assert not plan.merge.weighs
        assert plan.merge.weights["big-1"] == 10


def test_a_claim_of_many_examples_costs_resolution_not_the_run() -> None:
    strategy = FederatedStrategy(federation(training=KSEED))
    many = {n: ClientProfile(n, 2**40, 2, "0" * 64, SPEC.fingerprint()) for n in map(str, range(1000))}
    plan = strategy.plan(strategy.init(ZERO), many, key=Key.root(0))
    assert set(plan.merge.weights.values()) == {2**24}
    strategy.aggregator(plan, ZERO).init(plan.merge)


def fold(strategy: FederatedStrategy, server: ServerState, steps: dict[str, list[tuple[int, int]]]) -> Merged:
    plan = planned(strategy, server)
    rule, seeds = strategy.aggregator(plan, server.state), plan.merge.seeds
    assert seeds is not None
    acc = rule.init(plan.merge)
    for name, taken in steps.items():
        scalars = SeedCoefficients.of(seeds, taken)
        update = Update(name, plan.round, scalars, 10, noise=scalars.noise(SPEC.numel))
        acc = rule.add(acc, update)
    return rule.finalize(acc)


def test_a_seeds_only_server_moves_coefficients_and_its_state_is_what_they_make() -> None:
    strategy = FederatedStrategy(federation(training=KSEED, strategy={"kind": "mean", "weighting": "equal"}))
    origin = AdapterState.from_vector(SPEC, torch.linspace(-1, 1, SPEC.numel))
    server = strategy.init(origin)
    assert server.seeded_state is not None
    for _ in range(3):
        steps = {"big-1": [(3, 4000), (3, 500), (9, -2)], "seed-1": [(3, 300), (0, 12_000)]}
        server = strategy.update(server, fold(strategy, server, steps))
        assert server.seeded_state is not None
        assert server.state == server.seeded_state.state()
    first = strategy.init(origin)
    merged = fold(strategy, first, {"big-1": [(3, 4000)], "seed-1": [(3, 301)]})
    moved = strategy.update(first, merged).seeded_state
    assert moved is not None
    assert moved.sums[3] == round((4000 + 301) / 2 * 2**FINE_BITS)
    assert np.count_nonzero(moved.sums) == 1


def test_the_servers_rate_multiplies_coefficients() -> None:
    half = {"kind": "mean", "weighting": "equal", "server_learning_rate": 0.5}
    strategy = FederatedStrategy(federation(training=KSEED, strategy=half))
    server = strategy.init(ZERO)
    moved = strategy.update(server, fold(strategy, server, {"big-1": [(3, 4000)]})).seeded_state
    assert moved is not None
    assert moved.sums[3] == 2000 * 2**FINE_BITS


def test_decomfl_appends_each_rounds_seeds() -> None:
    decomfl = {"kind": "decomfl", "max_steps": 2, "directions": 2}
    strategy = FederatedStrategy(federation(training=decomfl))
    server = strategy.init(ZERO)
    for number in (1, 2):
        seeds = range(4 * (number - 1), 4 * number)
        server = strategy.update(server, fold(strategy, server, {"big-1": [(s, 7) for s in seeds]}))
    assert server.seeded_state is not None
    assert server.seeded_state.sums.tolist() == [7 * 2**FINE_BITS] * 8


def test_values_in_a_seeds_only_round_are_a_clear_error() -> None:
    strategy = FederatedStrategy(federation(training=KSEED))
    with pytest.raises(HeadwaterError, match="coefficients of seeds alone"):
        strategy.update(strategy.init(ZERO), Merged(ZERO, ("a",), 1))


def test_after_a_rollback_the_server_goes_on_dense() -> None:
    strategy = FederatedStrategy(federation(training=KSEED))
    server = strategy.init(ZERO)
    merged = fold(strategy, server, {"big-1": [(3, 4000)]})
    back = strategy.rolled_back(strategy.update(server, merged), ZERO)
    assert (back.seeded_state, back.state, back.round) == (None, ZERO, 1)
    assert strategy.update(back, merged).state == ZERO + merged.delta


def test_a_budget_that_no_update_can_keep_is_named() -> None:
    methods = {"m": {"training": KSEED, "max_bytes_up": 300}}
    strategy = FederatedStrategy(
        federation(training=KSEED, methods=methods, assignment={"kind": "shares", "shares": {"m": 1.0}})
    )
    with pytest.raises(ConfigError, match=r"methods\.m\.max_bytes_up"):
        planned(strategy, strategy.init(ZERO))


def test_pro_draws_steep_seeds_more_often_in_later_rounds() -> None:
    """What all clients' slopes were, in units of the first round's rate, whatever the rate is by now."""
    falling = {**KSEED, "pro": True, "final_learning_rate_fraction": 0.5}
    strategy = FederatedStrategy(federation(training=falling))
    rounds = strategy.federation.federation.rounds
    server = strategy.init(ZERO)
    plan = planned(strategy, server)
    assert plan.clients["big-1"].seeds is not None
    assert plan.clients["big-1"].seeds.odds == b""
    assert plan.merge.use
    server = strategy.update(server, fold(strategy, server, {"big-1": [(3, 4000), (3, -2000), (9, 1000)]}))
    assert server.seed_slopes is not None
    assert server.seed_slopes.means()[[3, 9]].tolist() == [3000, 1000]
    server = strategy.update(server, fold(strategy, server, {"seed-1": [(9, -1000), (0, 1)]}))
    factor = 1 - 0.5 / (rounds - 1)
    assert server.seed_slopes is not None
    assert server.seed_slopes.means()[9] == pytest.approx((1000 + 1000 / factor) / 2)
    plan = planned(strategy, server)
    seeds = plan.clients["seed-2"].seeds
    assert seeds == plan.merge.seeds
    assert seeds is not None
    weights = weights_of(seeds.odds, 16)
    assert weights[3] == weights.max() > weights[9] > weights[0] == weights.min()
    assert weights[1] == weights[2]  # never used: the mean of the others
    plain = FederatedStrategy(federation(training=KSEED))
    assert plain.init(ZERO).seed_slopes is None
    assert not planned(plain, plain.init(ZERO)).merge.use


def test_coefficients_that_do_not_travel_any_more_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """decomfl's seeds are new ones in every round: the span would grow for ever."""
    monkeypatch.setattr("headwater.strategies.federated.MAX_SUMS", 50)
    training = {"kind": "decomfl", "max_steps": 4, "directions": 5, "learning_rate": 0.5}
    strategy = FederatedStrategy(federation(training=training))
    server = strategy.init(ZERO)
    states = []
    for _ in range(4):
        first = planned(strategy, server).merge.seeds
        assert first is not None
        steps = [(first.first + i, 100 * i - 700) for i in range(20)]
        server = strategy.update(server, fold(strategy, server, {"big-1": steps}))
        states.append(server)
    assert [s.seeded_state is None for s in states] == [False, False, True, True]
    assert (states[3].state - states[2].state).max_abs() > 0


def test_a_byte_budget_is_that_of_the_methods_own_steps() -> None:
    few = {"training": {**KSEED, "max_steps": 20, "seeds": 4096}, "max_bytes_up": 1500}
    many = {**KSEED, "max_steps": 2000, "seeds": 4096}
    strategy = FederatedStrategy(
        federation(
            training=many,
            methods={"few": few},
            assignment={"kind": "clients", "clients": {"seed-*": "few"}},
        )
    )
    plan = planned(strategy, strategy.init(ZERO))
    assert plan.clients["seed-1"].seeds == plan.clients["big-1"].seeds
    content = strategy.federation.model_dump()
    content["methods"]["few"]["max_bytes_up"] = 520
    tight = FederatedStrategy(type(strategy.federation).model_validate(content))
    with pytest.raises(ConfigError, match=r"methods\.few\.max_bytes_up"):
        planned(tight, strategy.init(ZERO))


@pytest.mark.parametrize(
    ("method", "codec"),
    [
        ({"training": {"kind": "kseed", "max_steps": 200}, "max_bytes_up": 900}, {"kind": "compeft"}),
        ({"training": {"kind": "mezo"}, "max_bytes_up": 300}, {"kind": "dense"}),
        ({"training": {"kind": "mezo"}, "last_layers": 1, "max_bytes_up": 520}, {"kind": "compeft"}),
    ],
)
def test_a_byte_budget_that_cannot_be_kept_is_refused_before_anybody_works(method, codec):
    """And not when a device joins late that is the first to get this method: that ended all others' run."""
    file = federation(
        methods={"m": method}, codec={"up": codec}, assignment={"kind": "planner", "prefer": ["default", "m"]}
    )
    with pytest.raises(ConfigError, match=r"methods\.m\.max_bytes_up: expected at least \d+ bytes"):
        FederatedStrategy(file).init(AdapterState.zeros(SPEC))
