"""The tensors of a network by the names of an adapter's file: :func:`saved_parameters`, :func:`unscale`."""

from __future__ import annotations

from peft import get_peft_model_state_dict

from headwater.adapters.network import Network


def saved_parameters(network: Network) -> dict[str, str]:
    """The names of the network's parameters by those that an adapter's file has for them.

    The encoder's head, which is not PEFT's, is ``head.weight`` and ``head.bias``. Tensors of the base that
    are saved with the adapter are among them.
    """
    saved = get_peft_model_state_dict(network.peft, save_embedding_layers=False)
    by_address = {tensor.data_ptr(): name for name, tensor in saved.items()}
    found = {}
    for raw, parameter in network.named_parameters():
        if raw.startswith("head."):
            found[raw] = raw
        elif (name := by_address.get(parameter.data_ptr())) is not None:
            found[name] = raw
    return found


def unscale(network: Network) -> None:
    """Let every LoRA layer add B·A and not s·B·A, for values that are put in with s in B."""
    for layer in network.peft.modules():
        scaling = getattr(layer, "scaling", None)
        if isinstance(scaling, dict):
            for adapter in scaling:
                scaling[adapter] = 1.0
