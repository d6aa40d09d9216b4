"""How trained tensors begin: functions of a tensor's spec and of its own random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from headwater.state import TensorSpec

Start = Callable[[TensorSpec, Generator], Tensor]
"""From a spec and a tensor's own draws to float32 [spec.shape] on the CPU."""


def zeros(spec: TensorSpec, draw: Generator) -> Tensor:
    """0 everywhere."""
    return torch.zeros(spec.shape)


def ones(spec: TensorSpec, draw: Generator) -> Tensor:
    """1 everywhere."""
    return torch.ones(spec.shape)


def kaiming(spec: TensorSpec, draw: Generator) -> Tensor:
    """U(±1/√fan_in) of a matrix [fan_out, fan_in]: Kaiming uniform with a = √5, as torch's linear layers."""
    return uniform(1 / math.sqrt(spec.shape[1]))(spec, draw)


def uniform(bound: float) -> Start:
    """U(±bound)."""

    def start(spec: TensorSpec, draw: Generator) -> Tensor:
        return torch.from_numpy(draw.uniform(-bound, bound, spec.shape).astype(np.float32))

    return start


def normal(std: float) -> Start:
    """N(0, std²)."""

    def start(spec: TensorSpec, draw: Generator) -> Tensor:
        return torch.from_numpy((std * draw.standard_normal(spec.shape)).astype(np.float32))

    return start


def constant(value: float) -> Start:
    """The same value everywhere."""

    def start(spec: TensorSpec, draw: Generator) -> Tensor:
        return torch.full(spec.shape, value)

    return start
