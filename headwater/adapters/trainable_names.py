"""What the trainable parameters of a PEFT model are called and do: :func:`named_trainables`."""

from __future__ import annotations

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn import Parameter
from transformers.pytorch_utils import Conv1D

from headwater.adapters.network import Network
from headwater.config.adapter import Adapter
from headwater.errors import ModelError
from headwater.state import Role, TensorSpec

PROMPT = "prompt_embeddings"
_MARKS: tuple[tuple[str, Role], ...] = (
    (".lora_A.", "lora_a"),
    (".lora_B.", "lora_b"),
    (".lora_magnitude_vector", "dora_magnitude"),
    (".ia3_l", "ia3"),
)


def named_trainables(network: Network, adapter: Adapter) -> dict[str, tuple[TensorSpec, Parameter]]:
    """Every tensor that is trained, by the name under which PEFT saves it, sorted.

    The encoder's head, which is not PEFT's, is ``head.weight`` and ``head.bias``.

    Raises:
        ModelError: PEFT trains a parameter that it would not save.
    """
    peft = network.peft
    by_address: dict[int, str] = {}
    for name, tensor in get_peft_model_state_dict(peft, save_embedding_layers=False).items():
        by_address[tensor.data_ptr()] = name
    found: dict[str, tuple[TensorSpec, Parameter]] = {}
    for raw, parameter in peft.named_parameters():
        if not parameter.requires_grad:
            continue
        # prompt learning saves a computed copy, so its address is another
        name = PROMPT if raw.startswith("prompt_encoder.") else by_address.get(parameter.data_ptr(), "")
        if not name or name in found:
            raise ModelError(
                f"adapter '{adapter.kind}'",
                expected="PEFT to save every trained tensor",
                got=f"{raw} unsaved",
            )
        found[name] = (_spec(peft, adapter, name, parameter), parameter)
    for name, parameter in network.head.named_parameters() if network.head is not None else ():
        spec = TensorSpec(f"head.{name}", tuple(parameter.shape), "head")
        found[spec.name] = (spec, parameter)
    return dict(sorted(found.items()))


def module_of(peft: PeftModel, name: str) -> BaseTunerLayer:
    """The PEFT layer that a LoRA or IA3 tensor belongs to."""
    for mark, _ in _MARKS:
        path, found, _ = name.partition(mark)
        if found:
            return peft.get_submodule(path)
    raise KeyError(name)


def _spec(peft: PeftModel, adapter: Adapter, name: str, parameter: torch.Tensor) -> TensorSpec:
    shape = tuple(parameter.shape)
    if name == PROMPT:
        return TensorSpec(name, shape, "prompt" if adapter.is_prompt else "prefix")
    role: Role = next((role for mark, role in _MARKS if mark in name), "head")
    if role == "lora_a":
        return TensorSpec(name, shape, role, experts=_experts(module_of(peft, name)))
    if role != "lora_b":
        return TensorSpec(name, shape, role)
    layer = module_of(peft, name)
    experts = _experts(layer)
    return TensorSpec(
        name,
        shape,
        role,
        pair=name.replace(".lora_B.", ".lora_A."),
        scaling=float(layer.scaling["default"]),
        transposed=isinstance(layer.get_base_layer(), Conv1D),
        experts=experts,
    )


def _experts(layer: BaseTunerLayer) -> int:
    """How many experts' weights the layer's parameter stacks; 1 for an ordinary layer."""
    return int(getattr(layer, "num_experts", 1))
