"""Kinds that turn what goes into a weight, or comes out of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from headwater.adapters.kinds.layers import LayerKind
from headwater.adapters.kinds.starts import ones, zeros
from headwater.config.layer_adapters import HraAdapter, OftAdapter, RoadAdapter
from headwater.state import TensorSpec


def _in_pairs(spec: TensorSpec, draw: Generator) -> Tensor:
    """Each second vector as the one before it: two equal reflections are none. [d, r], U(±1/√(r/2))."""
    size, rank = spec.shape
    bound = 1 / math.sqrt(rank / 2)
    half = draw.uniform(-bound, bound, (size, rank // 2)).astype(np.float32)
    return torch.from_numpy(np.repeat(half, 2, axis=1))


class OftKind(LayerKind[OftAdapter]):
    """W·diag(R₁, R₂, …), Rᵢ = (I + Qᵢ)(I − Qᵢ)⁻¹: what is above the diagonal of Q is trained, from 0.

    The inverse is exact: PEFT's default cuts a series off after five terms, and R is then no rotation.
    """

    settings = OftAdapter
    makes = "OFTConfig"
    tensors = ((".oft_R", "oft_r", zeros),)

    def options(self) -> dict[str, Any]:  # noqa: D102 - inherited
        return {"oft_block_size": self.adapter.block, "use_cayley_neumann": False}


class HraKind(LayerKind[HraAdapter]):
    """W·H₁·…·Hᵣ, Hᵢ = I − 2·uᵢuᵢᵀ/‖uᵢ‖². The u start in equal pairs, so it starts as the base."""

    settings = HraAdapter
    makes = "HRAConfig"
    tensors = ((".hra_u", "hra_u", _in_pairs),)

    def options(self) -> dict[str, Any]:  # noqa: D102 - inherited
        return {"r": self.adapter.rank}


class RoadKind(LayerKind[RoadAdapter]):
    """Outputs are turned by θ and scaled by α in pairs (RoAd₁): θ starts as 0 and α as 1."""

    settings = RoadAdapter
    makes = "RoadConfig"
    tensors = ((".road_theta", "road_theta", zeros), (".road_alpha", "road_alpha", ones))

    def options(self) -> dict[str, Any]:  # noqa: D102 - inherited
        return {"variant": "road_1", "group_size": self.adapter.group}
