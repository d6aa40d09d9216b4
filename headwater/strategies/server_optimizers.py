"""How a round's merged delta moves the global adapter: :class:`ServerOptimizer`, one class each.

Pure: state in, state out, and what is remembered between rounds (:class:`Moments`) is the caller's, who keeps
it in the checkpoint. With Δ the merged delta, new minus old, in the place of a negative gradient:

    FedAvgM     m ← β·m + Δ                  x ← x + η·m                 (Hsu et al. 2019, arXiv 1909.06335)
    FedAdam     m ← β₁·m + (1 − β₁)·Δ        x ← x + η·m / (√v + τ)      (Reddi et al. 2021, arXiv 2003.00295,
                v ← β₂·v + (1 − β₂)·Δ²                                    algorithm 2, as are the two below)
    FedYogi     v ← v − (1 − β₂)·Δ²·sgn(v − Δ²)
    FedAdagrad  v ← v + Δ²

The three adaptive ones are the paper's: v begins at τ², and nothing is divided by 1 − βᵗ. Flower's begin at
v = 0 and correct m as Adam does, so their first rounds differ. All is elementwise in float32, so the bits are
the same at any number of threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from headwater.config.strategy import BaseStrategy
from headwater.state import AdapterState, StateSpec


@dataclass(frozen=True)
class Moments:
    """What an optimiser remembers from round to round, of the adapter's spec.

    Args:
        first: m; None where nothing is remembered.
        second: v, nowhere negative; None for FedAvgM.
    """

    first: AdapterState | None = None
    second: AdapterState | None = None


class ServerOptimizer(ABC):
    """One step a round."""

    @abstractmethod
    def init(self, spec: StateSpec) -> Moments:
        """What is remembered before round 1, and after a rollback."""

    @abstractmethod
    def step(
        self, state: AdapterState, moments: Moments, delta: AdapterState
    ) -> tuple[AdapterState, Moments]:
        """The adapter and the moments after a round.

        Args:
            state: x, the global adapter.
            moments: of the round before.
            delta: Δ, the round's merged delta.

        Raises:
            SpecMismatch: they are not of one spec.
        """


@dataclass(frozen=True)
class FedAvgM(ServerOptimizer):
    """Momentum; FedAvg at β = 0, where nothing is remembered.

    Args:
        learning_rate: η.
        beta: β, in [0, 1).
    """

    learning_rate: float
    beta: float = 0.0

    def init(self, spec: StateSpec) -> Moments:  # noqa: D102 - inherited
        return Moments(AdapterState.zeros(spec) if self.beta else None)

    def step(  # noqa: D102 - inherited
        self, state: AdapterState, moments: Moments, delta: AdapterState
    ) -> tuple[AdapterState, Moments]:
        if moments.first is None:
            return state + delta * self.learning_rate, moments
        direction = moments.first * self.beta + delta
        return state + direction * self.learning_rate, Moments(direction)


@dataclass(frozen=True)
class AdaptiveOptimizer(ServerOptimizer):
    """What FedAdam, FedYogi and FedAdagrad have in common: a step for each value, by its own √v.

    Args:
        learning_rate: η: about how far a value goes in a round, once v knows its Δ.
        beta1: β₁, in [0, 1).
        beta2: β₂, in [0, 1).
        tau: τ > 0. Where it is far above Δ all values share one rate, η/τ: FedAvgM again.
    """

    learning_rate: float
    beta1: float
    beta2: float
    tau: float

    def init(self, spec: StateSpec) -> Moments:  # noqa: D102 - inherited
        zeros = AdapterState.zeros(spec)
        return Moments(zeros, zeros.map(lambda value: value + self.tau**2))

    def step(  # noqa: D102 - inherited
        self, state: AdapterState, moments: Moments, delta: AdapterState
    ) -> tuple[AdapterState, Moments]:
        assert moments.first is not None, "init gives both"
        assert moments.second is not None, "init gives both"
        delta.require_spec(state.spec, "merged delta")
        before = moments.second
        first = moments.first * self.beta1 + delta * (1 - self.beta1)
        second = AdapterState(
            state.spec, {name: self.second_moment(before[name], delta[name].square()) for name in state}
        )
        moved = {
            name: state[name] + first[name] * self.learning_rate / (second[name].sqrt() + self.tau)
            for name in state
        }
        return AdapterState(state.spec, moved), Moments(first, second)

    @abstractmethod
    def second_moment(self, before: Tensor, square: Tensor) -> Tensor:
        """The second moment v after the round.

        Args:
            before: v, of one tensor.
            square: Δ², of the same shape.
        """


@dataclass(frozen=True)
class FedAdam(AdaptiveOptimizer):
    """v is a moving average of Δ²."""

    def second_moment(self, before: Tensor, square: Tensor) -> Tensor:  # noqa: D102 - inherited
        return before * self.beta2 + square * (1 - self.beta2)


@dataclass(frozen=True)
class FedYogi(AdaptiveOptimizer):
    """v goes towards Δ² by (1 − β₂)·Δ² at most: after a large Δ it falls slowly."""

    def second_moment(self, before: Tensor, square: Tensor) -> Tensor:  # noqa: D102 - inherited
        return before - square * (1 - self.beta2) * (before - square).sign()


@dataclass(frozen=True)
class FedAdagrad(AdaptiveOptimizer):
    """v is τ² and the sum of all Δ², so steps only get shorter; β₂ plays no part."""

    def second_moment(self, before: Tensor, square: Tensor) -> Tensor:  # noqa: D102 - inherited
        return before + square


def _adaptive(kind: type[AdaptiveOptimizer]) -> Callable[[BaseStrategy], ServerOptimizer]:
    return lambda s: kind(s.server_learning_rate, s.server_beta1, s.server_beta2, s.server_tau)


OPTIMIZERS: Mapping[str, Callable[[BaseStrategy], ServerOptimizer]] = {
    "momentum": lambda s: FedAvgM(s.server_learning_rate, s.server_momentum),
    "adam": _adaptive(FedAdam),
    "yogi": _adaptive(FedYogi),
    "adagrad": _adaptive(FedAdagrad),
}


def optimizer_for(settings: BaseStrategy) -> ServerOptimizer:
    """The optimiser that ``strategy.server_optimizer`` names."""
    return OPTIMIZERS[settings.server_optimizer](settings)
