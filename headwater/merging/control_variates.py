"""SCAFFOLD's server side (Karimireddy et al. 2020, arXiv 1910.06378, option II): one sum beside any rule's.

A client that trained K steps of rate η from the state x to y, each along its gradient − c_i + c, keeps
c_i⁺ = c_i − c + (x − y)/(Kη), the mean of its gradients. The change of that is a function of what the server
has anyway, δ = y − x, its own c, and the K and η of its plan:

    c_i⁺ − c_i = −c − δ/(Kη)

so nothing is sent up but δ, and c ← c + Σ w_i·(c_i⁺ − c_i) / W, with W the weight of all clients that can
take part, is the mean of the c_i again. The sum is int64 fixed point: no order of updates changes a bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.errors import UpdateRejected
from headwater.merging.fixed_point import from_fixed, to_fixed
from headwater.merging.plan import MergePlan, Update
from headwater.state import AdapterState


@dataclass(frozen=True)
class ControlPlan:
    """What the server knows of a round with control variates.

    Args:
        control: c, as every client of the round is sent it.
        rates: η of each tensor, by name, above 0.
        steps: K of each client of the round, at least 1.
        population: W, the weight of all clients that can take part, in the round or not.
    """

    control: AdapterState
    rates: Mapping[str, float]
    steps: Mapping[str, int]
    population: int


def mean_gradient(delta: AdapterState, rates: Mapping[str, float], steps: int) -> Tensor:
    """(x − y)/(Kη): the mean of the K directions that a client went against.

    Args:
        delta: y − x.
        rates: η of each tensor, by name.
        steps: K.

    Returns:
        float64 [numel].
    """
    parts = [delta[t.name].double().reshape(-1) / (-steps * rates[t.name]) for t in delta.spec]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


class ControlSums:
    """Σ w·(x − y)/(Kη) over a round's clients, and Σ w.

    Args:
        plan: the round's merge, whose rule has checked each update before it is added here.
        control: what c needs.
    """

    def __init__(self, plan: MergePlan, control: ControlPlan) -> None:
        self._plan, self._control = plan, control
        least = min(control.rates.values(), default=1.0) * min(control.steps.values(), default=1)
        self._bits = plan.scale_bits(plan.value_bound / least)
        self._total = torch.zeros(plan.spec.numel, dtype=torch.int64)
        self._weight = 0

    def require(self, update: Update) -> None:
        """Refuse an update of another number of steps than was asked for, before anything is added.

        Raises:
            UpdateRejected: names the client.
        """
        wanted = self._control.steps[update.client]
        if update.steps != wanted:
            raise UpdateRejected(
                f"client {update.client}",
                expected=f"{wanted} local steps, which strategy.control_variates counts with",
                got=str(update.steps),
            )

    def add(self, update: Update) -> None:
        """One client more, whose update the rule has taken."""
        assert isinstance(update.delta, AdapterState), "control variates go with deltas"
        weight = self._plan.weights[update.client]
        gradient = mean_gradient(update.delta, self._control.rates, self._control.steps[update.client])
        self._total.add_(to_fixed(gradient, self._bits), alpha=weight)
        self._weight += weight

    def finalize(self) -> AdapterState:
        """The server's c after the round."""
        before = self._control.control.vector().double()
        change = from_fixed(self._total, self._bits) - before * self._weight
        after = before + change / max(self._control.population, self._weight)
        return AdapterState.from_vector(self._plan.spec, after.float())
