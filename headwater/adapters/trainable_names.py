"""What the trainable parameters of a PEFT model are called and do: :func:`named_trainables`."""

from __future__ import annotations

from typing import Any

from peft import get_peft_model_state_dict
from torch.nn import Parameter

from headwater.adapters.kinds.kind import AdapterKind
from headwater.adapters.network import Network
from headwater.errors import ModelError
from headwater.state import TensorSpec


def named_trainables(network: Network, kind: AdapterKind[Any]) -> dict[str, tuple[TensorSpec, Parameter]]:
    """Every tensor that is trained, by the name under which PEFT saves it or its kind names it, sorted.

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
        name = kind.name_of(raw) or by_address.get(parameter.data_ptr(), "")
        if not name or name in found:
            raise ModelError(
                f"adapter '{kind.adapter.kind}'",
                expected="PEFT to save every trained tensor",
                got=f"{raw} unsaved",
            )
        found[name] = (kind.spec(peft, name, parameter), parameter)
    for name, parameter in network.head.named_parameters() if network.head is not None else ():
        spec = TensorSpec(f"head.{name}", tuple(parameter.shape), "head")
        found[spec.name] = (spec, parameter)
    return dict(sorted(found.items()))
