"""Bases that bitsandbytes quantises while they are read: what it is asked, and how they train on a CPU.

On a GPU its kernels do both. On a CPU two of its ways of computing are for inference alone, and it takes them
by a layer's ``training``: in evaluation mode ``Linear4bit`` packs its weights, where the processor has
AVX512-BF16, for a kernel through which no gradient comes, for good (seen in 0.50.2); ``Linear8bitLt`` rounds
activations to eight bits with outliers chosen by batch, so that a row's output depends on its neighbours.
:func:`compute_as_in_training` holds the layers in the other way, which is exact for the weights they have.
"""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headwater.config.model import BaseModelSettings
from headwater.errors import MissingDependency, ModelError

QUANTISED: dict[str, dict[str, Any]] = {
    "8bit": {"load_in_8bit": True},
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}
"""Arguments of ``BitsAndBytesConfig`` by ``model.quantization``, but for the type that it computes in."""


def quantised(bits: str, dtype: str) -> dict[str, Any]:
    """Arguments of ``BitsAndBytesConfig`` for ``model.quantization`` and ``model.dtype``."""
    computing = {"bnb_4bit_compute_dtype": dtype} if bits == "4bit" else {}
    return QUANTISED[bits] | computing


def quantisation(settings: BaseModelSettings) -> dict[str, Any]:
    """What ``from_pretrained`` is given for ``model.quantization``; nothing for "none".

    Raises:
        MissingDependency: no bitsandbytes.
    """
    if settings.quantization == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependency(
            f"model.quantization '{settings.quantization}'",
            expected="bitsandbytes",
            got="not installed",
            hint="pip install 'headwater[gpu]'",
        )
    from transformers import BitsAndBytesConfig

    return {"quantization_config": BitsAndBytesConfig(**quantised(settings.quantization, settings.dtype))}


def compute_as_in_training(model: PreTrainedModel, settings: BaseModelSettings) -> None:
    """Hold the quantised layers of a model on a CPU in training mode, whatever mode the model is in.

    They drop no units, so nothing else depends on it.

    Raises:
        ModelError: no layer was quantised, or gradients do not pass one after an evaluation, or wrongly:
            a bitsandbytes that computes in another way.
    """
    import bitsandbytes

    who = f"model.quantization '{settings.quantization}' on {settings.path}"
    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    if not layers:
        raise ModelError(
            who,
            expected="a base with linear layers that bitsandbytes quantises",
            got="none",
            hint='Use quantization = "none".',
        )
    for layer in layers:
        layer.register_forward_pre_hook(_train)
    if (found := _gradient_error(layers[0])) is None or found > 1e-2:
        raise ModelError(
            who,
            expected="gradients through a layer that has evaluated, as its dequantised weights have",
            got=f"{'none' if found is None else f'an error of {found:.2g}'} with bitsandbytes "
            f"{bitsandbytes.__version__} on this CPU",
            hint='Install bitsandbytes 0.50.2, or use quantization = "none".',
        )


def _train(layer: nn.Module, given: object) -> None:
    layer.training = True


def _gradient_error(layer: nn.Linear) -> float | None:
    """How far the gradient of a layer's input is from W·1, as a share; None if there is no gradient."""
    from peft.utils.integrations import dequantize_module_weight

    # a copy: after a pass PEFT's reading of an 8-bit layer on a CPU would take its scales from it
    layer = copy.deepcopy(layer).eval()
    exact: Tensor = dequantize_module_weight(layer).float().sum(0)
    x = torch.linspace(-1, 1, layer.in_features).unsqueeze(0)
    with torch.inference_mode():
        layer(x)
    with torch.enable_grad():
        layer(given := x.clone().requires_grad_()).sum().backward()
    if given.grad is None:
        return None
    return float((given.grad[0] - exact).abs().max() / exact.abs().max().clamp(min=1e-12))
