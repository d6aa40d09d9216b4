"""AdamW whose moments take 8 bits a value, from bitsandbytes: :func:`adamw8bit`.

Dettmers et al. 2022, "8-bit optimizers via block-wise quantization" (arXiv 2110.02861). Moments of tensors
below 4,096 values stay in 32 bits: small LoRA factors save nothing.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch

from headwater.errors import MissingDependency

_WHO = "training.optimizer 'adamw8bit'"
_INSTEAD = 'Or use optimizer = "adamw": an adapter\'s moments are small beside the base model.'
_PROBED = 4096
"""The least values of which bitsandbytes keeps the moments in 8 bits."""


def adamw8bit(
    groups: list[dict[str, Any]], *, weight_decay: float, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW8bit of bitsandbytes, with β = 0.9, 0.999 and ε = 1e-8.

    Args:
        groups: parameters and their ``lr``, as torch's optimisers take them.
        weight_decay: decoupled.
        device: of the parameters.

    Raises:
        MissingDependency: no bitsandbytes, or one without 8-bit optimisers for the device. Up to 0.49 they
            need a GPU; newer ones have them for the CPU too, so a step is tried.
    """
    library = _library()
    settings = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": weight_decay}
    probe = torch.nn.Parameter(torch.zeros(_PROBED, device=device))
    probe.grad = torch.ones_like(probe)
    try:
        library.optim.AdamW8bit([probe], lr=1e-3, **settings).step()
        moved = bool((probe < 0).all())
        found = "one that leaves values where they are"
    except Exception as error:  # what it raises differs with version and device
        moved, found = False, f"{type(error).__name__}: {error}"
    if not moved:
        version = getattr(library, "__version__", "of unknown version")
        raise MissingDependency(
            _WHO,
            expected=f"a bitsandbytes with 8-bit optimisers for device '{device.type}'",
            got=f"bitsandbytes {version}, {found}"[:300],
            hint=f"Train on a CUDA GPU, or install a bitsandbytes newer than 0.49. {_INSTEAD}",
        )
    optimiser: torch.optim.Optimizer = library.optim.AdamW8bit(groups, **settings)
    return optimiser


def _library() -> ModuleType:
    try:
        return importlib.import_module("bitsandbytes")
    except Exception as error:  # a broken CUDA set-up raises many things on import
        missing = isinstance(error, ModuleNotFoundError) and error.name == "bitsandbytes"
        raise MissingDependency(
            _WHO,
            expected="bitsandbytes",
            got="not installed" if missing else f"{type(error).__name__}: {error}"[:300],
            hint=f"pip install 'headwater[gpu]'. {_INSTEAD}",
        ) from error
