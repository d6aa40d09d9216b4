"""The server's optimisers are the papers', in float32; the strategy keeps their moments, and resets them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, MetricRecord
from flwr.serverapp.strategy import FedAdam as FlowersFedAdam
from flwr.serverapp.strategy import FedAvg

from headwater.config.strategy import MeanStrategy
from headwater.merging import Merged
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.strategies import FederatedStrategy, ServerState
from headwater.strategies.server_optimizers import FedAdam, FedAvgM, Moments, ServerOptimizer, optimizer_for
from tests.strategies.test_federated import federation, vector

ZERO = vector(0, 0)
ADAPTIVE = ["adam", "yogi", "adagrad"]


def golden(name: str) -> ServerOptimizer:
    """Golden vectors F12: η = 0.1, β = 0.9 and 0.99, τ = 10⁻³."""
    settings = {"kind": "mean", "server_optimizer": name, "server_learning_rate": 0.1, "server_tau": 1e-3}
    return optimizer_for(MeanStrategy.model_validate(settings))


def after(optimizer: ServerOptimizer, *deltas: AdapterState) -> tuple[list[float], Moments]:
    state, moments = ZERO, optimizer.init(ZERO.spec)
    for delta in deltas:
        state, moments = optimizer.step(state, moments, delta)
    return state.vector().tolist(), moments


def test_fedadam_gives_the_golden_vectors() -> None:
    delta = vector(0.1, -0.2)
    x, moments = after(golden("adam"), delta)
    assert moments.first is not None
    assert moments.second is not None
    assert moments.first.vector().tolist() == pytest.approx([0.01, -0.02], rel=1e-6)
    assert moments.second.vector().tolist() == pytest.approx([1.0099e-4, 4.0099e-4], rel=1e-6)
    assert x == pytest.approx([0.09050283, -0.09512605], abs=2e-8)
    assert after(golden("adam"), delta, delta)[0] == pytest.approx([0.21598634, -0.22512575], abs=3e-8)


def test_fedyogi_gives_the_golden_vectors() -> None:
    x, moments = after(golden("yogi"), vector(0.1, -0.2))
    assert moments.second is not None
    assert moments.second.vector().tolist() == pytest.approx([1.01e-4, 4.01e-4], rel=1e-6)
    assert x == pytest.approx([0.09049876, -0.09512492], abs=2e-8)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_many_rounds_are_algorithm_2_of_the_paper_in_float64(name: str) -> None:
    draw = np.random.default_rng(5)
    deltas = draw.normal(0, [1e-4, 1e-2], (30, 2)).astype(np.float32)
    x, m, v = np.zeros(2), np.zeros(2), np.full(2, 1e-3**2)
    for delta in deltas.astype(np.float64):
        square = delta**2
        m = 0.9 * m + 0.1 * delta
        v = {
            "adam": 0.99 * v + 0.01 * square,
            "yogi": v - 0.01 * square * np.sign(v - square),
            "adagrad": v + square,
        }[name]
        x = x + 0.1 * m / (np.sqrt(v) + 1e-3)
    found, _ = after(golden(name), *(vector(*d.tolist()) for d in deltas))
    assert found == pytest.approx(x.tolist(), rel=1e-4, abs=1e-6)


def test_flowers_fedadam_differs_in_its_first_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its v begins at 0, and it corrects the rate by √(1 − β₂ᵗ⁺¹)/(1 − β₁ᵗ⁺¹): the paper does neither."""
    delta = np.array([0.1, -0.2])
    flowers = FlowersFedAdam(eta=0.1, beta_1=0.9, beta_2=0.99, tau=1e-3)
    x, theirs = np.zeros(2), []
    for t in (1, 2):
        trained = ArrayRecord({"v": Array(x + delta)})
        monkeypatch.setattr(FedAvg, "aggregate_train", lambda *_, found=trained: (found, MetricRecord()))
        flowers.current_arrays = {"v": x}
        arrays, _ = flowers.aggregate_train(t, [])
        assert arrays is not None
        x = arrays["v"].numpy()
        theirs.append(x.tolist())
    ours = [after(golden("adam"), *[vector(0.1, -0.2)] * t)[0] for t in (1, 2)]
    v1, v2 = 0.01 * delta**2, 0.0199 * delta**2
    first = 0.1 * np.sqrt(1 - 0.99**2) / (1 - 0.9**2) * 0.1 * delta / (np.sqrt(v1) + 1e-3)
    second = 0.1 * np.sqrt(1 - 0.99**3) / (1 - 0.9**3) * 0.19 * delta / (np.sqrt(v2) + 1e-3)
    assert theirs[0] == pytest.approx(first.tolist(), rel=1e-6)
    assert theirs[1] == pytest.approx((first + second).tolist(), rel=1e-6)
    assert ours[0][0] > 1.2 * theirs[0][0]
    assert ours[1][0] > 1.2 * theirs[1][0]


def test_fedyogi_forgets_a_large_change_slower_than_fedadam() -> None:
    small = [vector(1e-4, 1e-4)] * 200
    seen = {n: after(golden(n), vector(1.0, 1.0), *small)[1].second for n in ("adam", "yogi")}
    assert seen["yogi"].vector().min() > 0.99 * 0.01  # type: ignore[union-attr]  # an adaptive one has it
    assert seen["adam"].vector().max() < 0.2 * 0.01  # type: ignore[union-attr]


def test_a_tau_far_above_the_changes_makes_it_fedavgm() -> None:
    delta = vector(1e-5, -3e-6)
    adam = FedAdam(0.01, 0.9, 0.99, 1.0)
    m, steps = np.zeros(2), np.zeros(2)
    for _ in range(5):
        m = 0.9 * m + 0.1 * np.array([1e-5, -3e-6])
        steps += 0.01 * m / 2  # √v is τ, too, until Δ² tells
    assert after(adam, *[delta] * 5)[0] == pytest.approx(steps.tolist(), rel=0.03)


def test_momentum_has_the_bits_it_always_had() -> None:
    draw = torch.Generator().manual_seed(1)
    spec = StateSpec.of([TensorSpec("v", (257,), "vector")])
    deltas = [AdapterState.from_vector(spec, torch.randn(257, generator=draw)) for _ in range(3)]
    x, m = AdapterState.zeros(spec), AdapterState.zeros(spec)
    state, moments, optimizer = x, Moments(m), FedAvgM(0.3, 0.9)
    for delta in deltas:
        m = m * 0.9 + delta
        x = x + m * 0.3
        state, moments = optimizer.step(state, moments, delta)
    assert (state, moments) == (x, Moments(m))
    assert FedAvgM(1.0).init(spec) == Moments()


def strategy(**more: Any) -> FederatedStrategy:
    settings = {"kind": "mean", "server_optimizer": "adam", "server_learning_rate": 0.01, **more}
    return FederatedStrategy(federation(strategy=settings))


@pytest.mark.parametrize("schedule", [{"kind": "synchronous"}, {"kind": "buffered", "buffer": 2}])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_strategy_steps_with_it_whatever_the_schedule(name: str, schedule: dict[str, Any]) -> None:
    settings = {"kind": "median", "server_optimizer": name, "server_learning_rate": 0.01}
    made = FederatedStrategy(federation(strategy=settings, schedule=schedule))
    server, moments = made.init(ZERO), optimizer_for(made.federation.strategy).init(ZERO.spec)
    x = ZERO
    for delta in (vector(1e-4, 0), vector(0, -1e-3)):
        server = made.update(server, Merged(delta, ("a",), 1))
        x, moments = optimizer_for(made.federation.strategy).step(x, moments, delta)
    assert (server.round, server.state) == (2, x)
    assert Moments(server.momentum, server.second_moment) == moments


def test_a_rollback_resets_the_moments() -> None:
    made = strategy(server_tau=1e-4)
    begun = made.init(ZERO)
    moved = made.update(begun, Merged(vector(1, 1), ("a",), 1))
    back = made.rolled_back(moved, ZERO)
    assert back == ServerState(1, ZERO, begun.momentum, second_moment=begun.second_moment)
    assert back.second_moment is not None
    assert back.second_moment.vector().tolist() == pytest.approx([1e-8, 1e-8])
    kept = strategy(server_optimizer="momentum", server_momentum=0.9)
    moved = kept.update(kept.init(ZERO), Merged(vector(1, 1), ("a",), 1))
    assert kept.rolled_back(moved, ZERO) == ServerState(1, ZERO, ZERO)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"server_momentum": 0.9}, "server_beta1"),
        ({"server_learning_rate": 1.0}, "below 1"),
        ({"server_tau": 0.0}, "server_tau"),
        ({"server_optimizer": "lion"}, "server_optimizer"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        strategy(**settings)


def test_coefficients_of_seeds_alone_take_no_adaptive_step() -> None:
    settings = {"kind": "mean", "server_optimizer": "yogi", "server_learning_rate": 0.01}
    kseed, backprop = {"kind": "kseed"}, {"kind": "backprop"}
    with pytest.raises(ValueError, match="sends coefficients of seeds"):
        federation(strategy=settings, training=kseed)
    mixed = federation(
        strategy=settings,
        training=kseed,
        methods={"big": {"training": backprop}},
        assignment={"kind": "shares", "shares": {"big": 0.5, "default": 0.5}},
    )
    made = FederatedStrategy(mixed)
    assert made.init(ZERO).second_moment is not None
    with pytest.raises(ValueError, match="norm_bound goes with deltas"):
        federation(strategy={"kind": "mean", "norm_bound": 1.0}, training=kseed)
