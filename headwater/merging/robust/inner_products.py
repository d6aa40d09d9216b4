"""⟨δ_i, δ_j⟩ of a round's updates: value by value, or of what they change in the weights themselves.

A and B of LoRA have a basis that nothing fixes: (B·M, M⁻¹·A) is the same weight for every M. Distances of
factors are therefore distances of bases as well, and a client far away in factors may be near in its weights.
:func:`of_products` takes s·(B_i·A_i − B·A), without making a matrix of the weight's size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from headwater.merging.offline.rule import Floats
from headwater.merging.pairs import factors, pairs
from headwater.state import AdapterState

_AT_ONCE = 2**20
"""Values of all updates together that are float64 at a time."""


def of_values(rows: Sequence[Tensor]) -> Floats:
    """⟨δ_i, δ_j⟩ [T, T] of vectors [n] of float32, in float64."""
    found = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    size = max(1, _AT_ONCE // max(1, len(rows)))
    for start in range(0, len(rows[0]) if rows else 0, size):
        stack = torch.stack([row[start : start + size] for row in rows]).double()
        found += stack @ stack.T
    return np.asarray(found.numpy(), np.float64)


def of_products(base: AdapterState, deltas: Sequence[AdapterState]) -> Floats:
    """Inner products [T, T] of what the updates change: of LoRA pairs s·(B_i·A_i − B·A), else the values.

    With U_i = s·[δB_i, B] and V_i = [A_i; δA_i] a client's change of a weight is U_i·V_i, so that
    ⟨U_i·V_i, U_j·V_j⟩ = tr((U_jᵀ·U_i)·(V_i·V_jᵀ)), in r²·(d_in + d_out) steps for each two clients.

    Args:
        base: what the clients started from.
        deltas: their updates. Components that one does not train are 0 in its own: it changes nothing there.
    """
    found, clients = np.zeros((len(deltas), len(deltas))), len(deltas)
    of_pairs = pairs(base.spec)
    for b in of_pairs:
        up, down = factors(base, b)
        own = [factors(delta, b) for delta in deltas]
        for expert in range(b.experts):
            left = torch.stack([torch.cat([du[expert], up[expert]], 1) * b.scaling for du, _ in own])
            right = torch.stack([torch.cat([down[expert] + da[expert], da[expert]], 0) for _, da in own])
            width = left.shape[2]
            lefts = left.permute(1, 0, 2).reshape(left.shape[1], -1)  # [d_out, T·2r]
            rights = right.reshape(-1, right.shape[2])  # [T·2r, d_in]
            for i in range(clients):  # one client beside all: memory is T·(2r)², not its square
                product = (left[i].T @ lefts) * (right[i] @ rights.T)
                found[i] += product.reshape(width, clients, width).sum((0, 2)).numpy()
    alone = {t.name for t in base.spec} - {name for b in of_pairs for name in (b.name, b.pair)}
    if alone:
        found += of_values([torch.cat([delta[n].reshape(-1) for n in sorted(alone)]) for delta in deltas])
    symmetric: Floats = (found + found.T) / 2
    return symmetric
