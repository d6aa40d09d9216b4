"""LoRA pairs of a state: which ``lora_b`` has a ``lora_a`` that travels, and the factors of each expert."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from headwater.config.strategy import OwnPart
from headwater.state import StateSpec, TensorSpec


def pairs(spec: StateSpec) -> tuple[TensorSpec, ...]:
    """The ``lora_b`` whose ``lora_a`` travels too."""
    return tuple(t for t in spec if t.role == "lora_b" and t.pair in spec.by_name)


def shared_tensors(spec: StateSpec, own: OwnPart) -> tuple[str, ...]:
    """What is merged where clients keep a part: of FedSA-LoRA (arXiv 2410.01463) every A; else all but heads.

    Args:
        spec: of the adapter.
        own: what stays with each client.
    """
    if own == "all but A":
        return tuple(t.name for t in spec if t.role == "lora_a")
    return tuple(t.name for t in spec if own == "nothing" or t.role != "head")


def factors(state: Mapping[str, Tensor], b: TensorSpec) -> tuple[Tensor, Tensor]:
    """B [experts, d_out, r] and A [experts, r, d_in] in float64: each expert's B with its own A.

    An expert's columns of B lie apart, its rows of A together (:class:`headwater.state.TensorSpec`).

    Args:
        state: the values, or a change of them.
        b: one of :func:`pairs`.
    """
    up, down = state[b.name].double(), state[b.pair].double()
    rank = up.shape[1] // b.experts
    return up.reshape(-1, rank, b.experts).permute(2, 0, 1), down.reshape(b.experts, rank, -1)


def joined(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`factors`: float32 [d_out, experts·r] and [experts·r, d_in]."""
    experts, d_out, rank = up.shape
    together = up.permute(1, 2, 0).reshape(d_out, rank * experts)
    return together.float().contiguous(), down.reshape(experts * rank, -1).float().contiguous()
