"""How llama.cpp calls a base's weights, and how it turns queries and keys: :class:`Naming`."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from headwater.errors import MissingDependency, ModelError
from headwater.merging.offline.tensor_file import Array

_ARCHITECTURES: Mapping[str, tuple[str, bool]] = {
    "llama": ("llama", True), "mistral": ("llama", True), "granite": ("granite", True),
    "smollm3": ("smollm3", True), "qwen2": ("qwen2", False), "qwen3": ("qwen3", False),
    "gemma": ("gemma", False), "gemma2": ("gemma2", False), "phi3": ("phi3", False),
    "olmo2": ("olmo2", False), "stablelm": ("stablelm", False), "starcoder2": ("starcoder2", False),
    "cohere": ("command-r", False),
}  # fmt: skip
"""llama.cpp's architecture by ``model_type``, and whether it turns the rows of q_proj and k_proj.

Those for which llama.cpp's ``convert_lora_to_gguf.py`` does nothing else to a linear layer's weight.
"""


@dataclass(frozen=True)
class Naming:
    """Of one base model.

    Args:
        architecture: as GGUF has it.
        turned: whether rows of queries and keys are turned.
        heads, key_heads: of attention.
        names: ``gguf``'s table.
    """

    architecture: str
    turned: bool
    heads: int
    key_heads: int
    names: Any

    @staticmethod
    def of(base: Mapping[str, Any], who: str) -> Naming:
        """Of a base's ``config.json``.

        Raises:
            MissingDependency: the package gguf is not installed.
            ModelError: an architecture that is not in the table.
        """
        gguf = require_gguf(who)
        kind = str(base.get("model_type"))
        if kind not in _ARCHITECTURES:
            raise ModelError(
                who,
                expected=f"a base of type {', '.join(_ARCHITECTURES)}",
                got=f"{kind!r:.80}",
                hint="Export --for merged, and convert that with llama.cpp's convert_hf_to_gguf.py.",
            )
        name, turned = _ARCHITECTURES[kind]
        (known,) = (arch for arch, text in gguf.MODEL_ARCH_NAMES.items() if text == name)
        heads = int(base["num_attention_heads"])
        return Naming(
            name,
            turned,
            heads,
            int(base.get("num_key_value_heads") or heads),
            gguf.get_tensor_name_map(known, int(base["num_hidden_layers"])),
        )

    def name(self, module: str, who: str) -> str:
        """llama.cpp's name of a module's weight.

        Raises:
            ModelError: it has none.
        """
        found = self.names.get_name(module)
        if found is None:
            raise ModelError(
                who, expected=f"modules that llama.cpp has for {self.architecture}", got=f"{module!r:.200}"
            )
        return f"{found}.weight"

    def rows(self, module: str, values: Array) -> Array:
        """The rows [outputs, …] of a weight or of its B, in llama.cpp's order.

        transformers rotates the two halves of a head, llama.cpp's Llama neighbours: row (h, half, i) of
        transformers is row (h, i, half) there.
        """
        last = module.rpartition(".")[2]
        if not self.turned or last not in ("q_proj", "k_proj"):
            return values
        heads = self.heads if last == "q_proj" else self.key_heads
        halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)


def require_gguf(who: str) -> ModuleType:
    """The package gguf.

    Raises:
        MissingDependency: it is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingDependency(
            who, expected="the package gguf", got="nothing", hint="Install headwater[gguf]."
        )
    return importlib.import_module("gguf")
