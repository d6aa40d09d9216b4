"""The state an adapter starts from, from a key alone: :func:`initial_value`.

PEFT draws from torch's global generator, so two processes would start from two adapters. Here every
value comes from NumPy's Philox at ``key.child("initial", name)`` or is copied from the base: the same
on every machine, in every process, whatever else is in the state.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from headwater.adapters.kinds.kind import AdapterKind
from headwater.seeds.keys import Key
from headwater.state import TensorSpec

HEAD_STD = 0.02


def initial_value(
    spec: TensorSpec, *, kind: AdapterKind[Any], peft: PeftModel, key: Key, loaded: Tensor | None
) -> Tensor:
    """The initial value of one tensor, float32 of ``spec.shape`` on the CPU.

    A ``head`` starts as the base's own where its files have one; else N(0, 0.02²), biases 0, norm scales 1.
    Its kind says how any other tensor starts.

    Args:
        spec: which tensor.
        kind: of the adapter.
        peft: the adapted model.
        key: the adapter's key.
        loaded: what the base's files hold for this tensor of a ``head``.
    """
    draw = key.child("initial", spec.name).numpy()
    if spec.role != "head":
        return kind.start(spec, peft, draw)
    if loaded is not None:
        return loaded.detach().float().cpu().clone()
    if len(spec.shape) == 1:
        return torch.zeros(spec.shape) if spec.name.endswith("bias") else torch.ones(spec.shape)
    return torch.from_numpy((HEAD_STD * draw.standard_normal(spec.shape)).astype(np.float32))
