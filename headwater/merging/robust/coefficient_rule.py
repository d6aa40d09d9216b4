"""CoefficientRule: Σ c_i·δ_i, where all updates together decide the c_i by their inner products.

Krum, Multi-Krum, the geometric median and FLTrust are such rules. In space ``product`` the inner products
are those of s·(B_i·A_i − B·A) (:mod:`.inner_products`), and so is what is added up: the new factors are the
truncated SVD of s·B·A + Σ c_i·s·(B_i·A_i − B·A), as in :mod:`headwater.merging.product`, but from the
updates themselves and without a sketch. A client of a smaller rank changes the components that it trains; the
others it leaves as they were. If one update alone counts, with c = 1, it is the result as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from headwater.merging.buffered_rule import BufferedRule, BufferedUpdates
from headwater.merging.offline.rule import Floats, LinearRule
from headwater.merging.pairs import factors, joined, pairs
from headwater.merging.product import truncated
from headwater.merging.robust.inner_products import of_products, of_values
from headwater.state import AdapterState

Coefficients = Callable[[Sequence[str], Floats, Floats], Floats]
"""c [T] of the clients by name, their weights as shares [T], and their inner products [T, T]."""


class CoefficientRule(BufferedRule):
    """A rule of all inner products.

    Args:
        name: its ``strategy.kind``.
        coefficients: the rule.
        most_bytes: that the updates of one round may take in memory.
        base: what the clients of the round started from, in space ``product``; None merges value by value.
        about: its settings, for sums that other processes add up.
    """

    def __init__(
        self,
        name: str,
        coefficients: Coefficients,
        most_bytes: int,
        base: AdapterState | None,
        about: Mapping[str, Any],
    ) -> None:
        super().__init__(most_bytes)
        self.name, self.coefficients, self.base, self.about = name, coefficients, base, about

    @staticmethod
    def of_linear(rule: LinearRule, most_bytes: int, base: AdapterState) -> CoefficientRule:
        """A rule of ``headwater merge`` on products."""

        def coefficients(names: Sequence[str], shares: Floats, products: Floats) -> Floats:
            return rule.coefficients(shares, products)

        return CoefficientRule(rule.name, coefficients, most_bytes, base, rule.model_dump())

    def identity(self) -> Mapping[str, Any]:
        """The rule, its settings, and what the products are distances from."""
        base = {} if self.base is None else {"base": self.base.sha256()}
        return {"rule": self.name, **self.about, **base}

    def merged(self, acc: BufferedUpdates) -> npt.NDArray[np.float64]:
        """Σ c_i·δ_i, or what the sum of the products comes to.

        Raises:
            ConfigError: too few updates for the rule's settings.
        """
        plan, names = acc.participants.plan, sorted(acc.values)
        weights = np.array([plan.weights[name] for name in names], np.float64)
        rows = [acc.values[name] for name in names]
        shares: Floats = weights / weights.sum()
        if self.base is None:
            return summed(self.coefficients(names, shares, of_values(rows)), rows)
        self.base.require_spec(plan.spec, f"{self.name}, base state")
        deltas = [AdapterState.from_vector(plan.spec, row) for row in rows]
        found = self.coefficients(names, shares, of_products(self.base, deltas))
        if np.count_nonzero(found) <= 1 and found.max(initial=0.0) in (0.0, 1.0):
            return summed(found, rows)
        return _with_products(self.base, deltas, found, summed(found, rows))


def summed(coefficients: Floats, rows: Sequence[torch.Tensor]) -> Floats:
    """Σ c_i·δ_i, in order, in float64."""
    total: Floats = np.zeros(len(rows[0]))
    for c, row in zip(coefficients, rows, strict=True):
        if c:
            total += c * row.numpy()
    return total


def _with_products(
    base: AdapterState, deltas: Sequence[AdapterState], coefficients: Floats, values: Floats
) -> Floats:
    """``values`` [numel], with each LoRA pair replaced by the new factors minus the base's.

    B·A + Σ c_i·(B_i·A_i − B·A) = [c_1·δB_1 … c_T·δB_T, B] · [A_1; …; A_T; A + Σ c_i·δA_i]: QR of the left,
    then a small SVD.
    """
    counted = [(c, delta) for c, delta in zip(coefficients, deltas, strict=True) if c]
    found = dict(AdapterState.from_vector(base.spec, torch.from_numpy(values.astype(np.float32))))
    for b in pairs(base.spec):
        up, down = factors(base, b)
        new_up, new_down = torch.empty_like(up), torch.empty_like(down)
        own = [(c, *factors(delta, b)) for c, delta in counted]
        for expert in range(b.experts):
            left = torch.cat([*(c * du[expert] for c, du, _ in own), up[expert]], 1).numpy()
            moved = down[expert] + sum((c * da[expert] for c, _, da in own), torch.zeros(()))
            right = torch.cat([*(down[expert] + da[expert] for _, _, da in own), moved], 0).numpy()
            q, r = np.linalg.qr(left)
            best = truncated(q, r @ right, down[expert].numpy())
            new_up[expert], new_down[expert] = torch.from_numpy(best[0]), torch.from_numpy(best[1])
        for name, value in zip((b.name, b.pair), joined(new_up, new_down), strict=True):
            found[name] = value - base[name]
    return AdapterState(base.spec, found).vector().numpy().astype(np.float64)
