"""Coverage: which values a client trains, where its plan gave it some tensors or ranks only.

SPRY (arXiv 2405.15551) gives each client a few layers, and a small device may train the first components
of each LoRA pair. A value's mean is then taken over the clients that train it. Who trains what is in the
plan, so the sums stay additive: only the divisor differs from value to value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from headwater.errors import ConfigError, UpdateRejected
from headwater.merging.plan import MergePlan
from headwater.state import StateSpec


def covered(spec: StateSpec, tensors: tuple[str, ...] | None, rank: int | None) -> Tensor | None:
    """The values that are trained, as bool [spec.numel]; None for all of them.

    Args:
        spec: of the state.
        tensors: these tensors only; all if None.
        rank: the first so many rows of each ``lora_a`` and columns of each ``lora_b``, of every expert; all
            if None.

    Raises:
        ConfigError: a tensor that the spec has not.
    """
    if tensors is None and rank is None:
        return None
    if unknown := sorted(set(tensors or ()) - spec.by_name.keys()):
        raise ConfigError("plan, tensors", expected="tensors of the adapter", got=unknown[0])
    parts = []
    for tensor in spec:
        mask = torch.full(tensor.shape, tensors is None or tensor.name in tensors)
        if rank is not None and tensor.role == "lora_a":
            mask.view(tensor.experts, -1, tensor.shape[1])[:, rank:] = False
        elif rank is not None and tensor.role == "lora_b":
            mask[:, rank * tensor.experts :] = False  # the first column of every expert, then the second …
        parts.append(mask.reshape(-1))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.bool)


def covered_by(plan: MergePlan, client: str) -> Tensor | None:
    """What ``client`` trains in this plan; None for everything."""
    return covered(plan.spec, plan.tensors.get(client), plan.ranks.get(client))


def require_covered(vector: Tensor, plan: MergePlan, client: str) -> None:
    """Refuse values other than zero where the client was not asked to train.

    Raises:
        UpdateRejected: names the client.
    """
    mask = covered_by(plan, client)
    if mask is not None and bool((vector[~mask] != 0).any()):
        raise UpdateRejected(
            f"client {client}",
            expected="zeros outside the tensors and ranks that its plan names",
            got=f"{int((vector[~mask] != 0).sum())} other values",
            hint="The client is left out of this round.",
        )


def divisors(
    plan: MergePlan, weights: Mapping[str, float], progress: Mapping[str, float] | None = None
) -> Tensor | float:
    """Σ n·c / max c over the clients that train a value: Σ n where all c are alike.

    Returns:
        One number if all train all, else float64 [numel]; 0 where nobody trains. Any order of the
        clients gives the same bits.

    Args:
        plan: who trains what.
        weights: n, of the clients that are in.
        progress: c > 0, of the same clients; all alike if None.
    """
    kinds: dict[tuple[tuple[str, ...] | None, int | None], list[str]] = {}
    for client in sorted(weights):
        kinds.setdefault((plan.tensors.get(client), plan.ranks.get(client)), []).append(client)
    reached = dict.fromkeys(weights, 1.0) if progress is None else progress
    parts = bool(set(kinds) - {(None, None)})
    above = torch.zeros(plan.spec.numel if parts else 1, dtype=torch.float64)
    most = torch.zeros_like(above)
    for (tensors, rank), clients in kinds.items():
        mask = covered(plan.spec, tensors, rank)
        trained = torch.ones_like(above) if mask is None else mask.double()
        above += trained * math.fsum(weights[c] * reached[c] for c in clients)
        most = torch.maximum(most, trained * max(reached[c] for c in clients))
    found = above / torch.where(most > 0, most, 1.0)
    return found if parts else float(found[0])


def last_layers(spec: StateSpec, count: int) -> tuple[str, ...]:
    """The tensors of the last ``count`` layers, and those of no layer, such as the head."""
    numbers = sorted({n for t in spec if (n := layer_of(t.name)) is not None})
    kept = set(numbers[-count:])
    return tuple(t.name for t in spec if (n := layer_of(t.name)) is None or n in kept)


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor belongs to; None outside any."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def layers_of(names: Iterable[str]) -> list[int]:
    """The numbers of the layers that these tensors belong to, ascending."""
    return sorted({n for name in names if (n := layer_of(name)) is not None})
