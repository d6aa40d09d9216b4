"""What every ``[adapter]`` has, and those of layers: :class:`BaseAdapter`, :class:`LayerAdapter`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from headwater.config.traits import AdapterTraits


class BaseAdapter(AdapterTraits):
    """What every adapter has."""

    head_bits: int = Field(
        default=0,
        ge=0,
        le=12,
        description="a fresh head travels and moves in units of 2^head_bits: methods along random directions "
        "then take steps so much longer in it than in the adapter, as its steeper loss needs (5 or 6)",
    )


class LayerAdapter(BaseAdapter):
    """An adapter of linear layers, each of which has tensors of its own."""

    layered: ClassVar[bool] = True
    target_modules: tuple[str, ...] = ("query", "value")
    layers: tuple[int, ...] | None = Field(default=None, description="only these layers; all if absent")
