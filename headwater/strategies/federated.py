"""FederatedStrategy: the strategy of a federation file.

Local training on a cohort, a merge rule, and a server optimiser with momentum: FedAvgM (Hsu et al.
2019, arXiv 1909.06335), m ← β·m + Δ and x ← x + η·m, which is FedAvg at β = 0, η = 1. Which tensors
travel (A is left out in space ``ffa``) is decided where the model is built, so nothing here
depends on the space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headwater.config.federation import Federation
from headwater.config.training import Training
from headwater.errors import FederationStopped
from headwater.merging.aggregator import Aggregator, Merged
from headwater.protocol.keys import Key
from headwater.protocol.messages import ClientPlan, ClientProfile, FisherPlan, MergePlan, RoundPlan
from headwater.state import AdapterState
from headwater.strategies.rules import rule_for
from headwater.strategies.strategy import ServerState, Strategy

MAX_WEIGHT = 2**24
"""Examples beyond this count no more: a client's claim must not use up the accumulators' bits."""


class FederatedStrategy(Strategy):
    """Rounds as the federation file describes them."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation

    def init(self, state: AdapterState) -> ServerState:
        """Round 0; the momentum is zero if the file asks for one."""
        momentum = AdapterState.zeros(state.spec) if self.federation.strategy.server_momentum else None
        return ServerState(0, state, momentum)

    def plan(self, server: ServerState, profiles: Mapping[str, ClientProfile], *, key: Key) -> RoundPlan:
        """All clients with training examples; in a synchronous round ``cohort.clients_per_round`` of them."""
        federation, number = self.federation, server.round + 1
        names = sorted(name for name, profile in profiles.items() if profile.train_examples > 0)
        if not names:
            raise FederationStopped(
                f"round {number}",
                expected="at least one client with training examples",
                got=f"{len(profiles)} clients, none with any",
                hint="Check the clients' data and their validation_fraction.",
            )
        if federation.schedule.kind == "synchronous":  # a buffered version takes whoever is first
            names = _sample(names, federation.cohort.clients_per_round, key.child("cohort", number))
        strategy = federation.strategy
        by_examples = strategy.weighting == "examples"
        weights = {
            name: min(profiles[name].train_examples, MAX_WEIGHT) if by_examples else 1 for name in names
        }
        task = ClientPlan(
            training=federation.training,
            codec=federation.codec.up,
            learning_rate_factor=learning_rate_factor(
                federation.training, number, federation.federation.rounds
            ),
            clip_l2=federation.privacy.clip_l2,
            fisher=FisherPlan(strategy.examples, strategy.cap) if strategy.kind == "fisher" else None,
        )
        merge = MergePlan(server.state.spec, weights, strategy.value_bound)
        return RoundPlan(number, dict.fromkeys(names, task), merge)

    def aggregator(self, plan: RoundPlan) -> Aggregator[Any]:
        """The rule of ``[strategy]``; the same in every round."""
        return rule_for(self.federation.strategy)

    def update(self, server: ServerState, merged: Merged) -> ServerState:
        """One step of the server optimiser."""
        strategy = self.federation.strategy
        direction = merged.delta
        if server.momentum is not None:
            direction = server.momentum * strategy.server_momentum + direction
        state = server.state + direction * strategy.server_learning_rate
        return ServerState(server.round + 1, state, direction if server.momentum is not None else None)


def _sample(names: Sequence[str], size: int | None, key: Key) -> list[str]:
    """``size`` of the sorted ``names`` without replacement, sorted; all of them if there are no more."""
    if size is None or size >= len(names):
        return list(names)
    chosen = key.numpy().choice(len(names), size=size, replace=False)
    return [names[i] for i in sorted(chosen.tolist())]


def learning_rate_factor(training: Training, number: int, rounds: int) -> float:
    """Linear from 1 in round 1 to ``final_learning_rate_fraction`` in the last round."""
    if training.kind != "backprop" or rounds == 1:
        return 1.0
    progress = min(1.0, (number - 1) / (rounds - 1))
    return 1.0 - (1.0 - training.final_learning_rate_fraction) * progress
