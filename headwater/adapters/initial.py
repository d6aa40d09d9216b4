"""The state an adapter starts from, from a key alone: :func:`initial_value`.

PEFT draws from torch's global generator, so two processes would start from two adapters. Here every
value comes from NumPy's Philox at ``key.child("initial", name)`` or is copied from the base: the same
on every machine, in every process, whatever else is in the state.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from headwater.seeds.keys import Key
from headwater.state import TensorSpec

HEAD_STD = 0.02
PREFIX_STD = 0.02


def initial_value(
    spec: TensorSpec,
    *,
    key: Key,
    embeddings: Tensor | None = None,
    base_weight: Tensor | None = None,
    loaded: Tensor | None = None,
) -> Tensor:
    """The initial value of one tensor, float32 of ``spec.shape`` on the CPU.

    * ``lora_a``: Kaiming uniform with a = √5, that is U(±1/√d_in), as PEFT; ``lora_b``: 0.
    * ``dora_magnitude``: row norms of the base weight (arXiv 2402.09353, eq. 5, where BA = 0).
    * ``prompt``: embeddings of random vocabulary entries (arXiv 2104.08691, §3.1).
    * ``prefix``: N(0, 0.02²). ``ia3``: 1.
    * ``head``: the base's own where its files have one; else N(0, 0.02²), biases 0, norm scales 1.

    Args:
        spec: which tensor.
        key: the adapter's key.
        embeddings: [vocabulary, d], for ``prompt``.
        base_weight: [d_out, d_in], for ``dora_magnitude``.
        loaded: what the base's files hold for this tensor of a ``head``.
    """
    generator = key.child("initial", spec.name).numpy()
    if spec.role == "lora_a":
        bound = 1 / math.sqrt(spec.shape[1])
        return torch.from_numpy(generator.uniform(-bound, bound, spec.shape).astype(np.float32))
    if spec.role == "lora_b":
        return torch.zeros(spec.shape)
    if spec.role == "ia3":
        return torch.ones(spec.shape)
    if spec.role == "dora_magnitude" and base_weight is not None:
        # in float64, so that the order of a machine's sums does not reach the rounded result
        return base_weight.double().square().sum(1).sqrt().float().cpu().reshape(spec.shape)
    if spec.role == "prompt" and embeddings is not None:
        rows = generator.integers(0, embeddings.shape[0], spec.shape[0])
        return embeddings[torch.from_numpy(rows).to(embeddings.device)].detach().float().cpu().clone()
    if spec.role == "head" and loaded is not None:
        return loaded.detach().float().cpu().clone()
    if spec.role == "head" and len(spec.shape) == 1:
        return torch.zeros(spec.shape) if spec.name.endswith("bias") else torch.ones(spec.shape)
    std = HEAD_STD if spec.role == "head" else PREFIX_STD
    return torch.from_numpy((std * generator.standard_normal(spec.shape)).astype(np.float32))
