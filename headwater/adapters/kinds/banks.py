"""Kinds whose layers share trained tensors: a bank of vectors, one vector."""

from __future__ import annotations

from typing import Any

from headwater.adapters.kinds.layers import LayerKind
from headwater.adapters.kinds.starts import normal, uniform
from headwater.config.layer_adapters import UniLoraAdapter, VbloraAdapter

BOUND = 0.02
"""Of the shared values, as PEFT has them."""


class VbloraKind(LayerKind[VbloraAdapter]):
    """LoRA whose A and B are rows of sub-vectors, each the softmax mix of its k likeliest vectors of a bank.

    Bank and logits are trained and start as U(±0.02) and N(0, 0.1²), so B·A is small at first but not 0.
    """

    settings = VbloraAdapter
    makes = "VBLoRAConfig"
    tensors = (
        ("vblora_vector_bank", "vblora_bank", uniform(BOUND)),
        (".vblora_logits", "vblora_logits", normal(0.1)),
    )

    def options(self) -> dict[str, Any]:  # noqa: D102 - inherited
        adapter = self.adapter
        return {
            "r": adapter.rank,
            "num_vectors": adapter.vectors,
            "vector_length": adapter.length,
            "topk": adapter.chosen,
        }


class UniLoraKind(LayerKind[UniLoraAdapter]):
    """LoRA whose A and B take their values from places of one trained vector, which starts as U(±0.02).

    The places are NumPy's by ``places_seed``, which every member has from the file.
    """

    settings = UniLoraAdapter
    makes = "UniLoraConfig"
    tensors = (("unilora_theta_d", "unilora_vector", uniform(BOUND)),)

    def options(self) -> dict[str, Any]:  # noqa: D102 - inherited
        adapter = self.adapter
        return {"r": adapter.rank, "theta_d_length": adapter.size, "proj_seed": adapter.places_seed}
