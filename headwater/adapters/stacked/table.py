"""Every kind of layer that can be stacked: :data:`LAYERS`."""

from __future__ import annotations

from headwater.adapters.stacked.ia3 import StackedIa3
from headwater.adapters.stacked.layer import StackedLayer
from headwater.adapters.stacked.linear import StackedLinear, StackedNorm
from headwater.adapters.stacked.lora import StackedDora, StackedLora
from headwater.adapters.stacked.lora_sb import StackedLoraSb, StackedPrincipal
from headwater.adapters.stacked.prompt import StackedPrefix, StackedPrompt
from headwater.adapters.stacked.vera import StackedVera

LAYERS: tuple[type[StackedLayer], ...] = (
    StackedLora,
    StackedDora,
    StackedLoraSb,
    StackedPrincipal,
    StackedIa3,
    StackedVera,
    StackedPrompt,
    StackedPrefix,
    StackedLinear,
    StackedNorm,
)
