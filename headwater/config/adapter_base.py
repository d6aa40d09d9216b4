"""What every ``[adapter]`` has, and those of layers: :class:`BaseAdapter`, :class:`LayerAdapter`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from headwater.config.traits import AdapterTraits


class BaseAdapter(AdapterTraits):
    """What every adapter has.

    Attributes:
        later: settings that came after the first runs; one that is as by default is not written.
    """

    later: ClassVar[tuple[str, ...]] = ("head",)

    head_bits: int = Field(
        default=0,
        ge=0,
        le=12,
        description="a fresh head travels and moves in units of 2^head_bits: methods along random directions "
        "then take steps so much longer in it than in the adapter, as its steeper loss needs (5 or 6)",
    )
    head: Literal["shared", "own"] = Field(
        default="shared",
        description="`own`: each client trains and keeps a head of its own, over the adapter that all share",
    )
    start: str | None = Field(
        default=None,
        min_length=1,
        description="begin from this adapter: a PEFT folder, a run folder, a version's file or a `.hw` file",
    )
    start_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    start_head: Literal["match", "fresh"] = "match"

    @model_validator(mode="after")
    def _start_is_named(self) -> BaseAdapter:
        if self.start is None and (self.start_sha256 is not None or self.start_head != "match"):
            raise ValueError("start_sha256 and start_head go with start")
        return self

    @model_serializer(mode="wrap")
    def _without_start(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """No keys for a start from the seed: runs were named without, and older devices know none."""
        content: dict[str, Any] = handler(self)
        if self.start is None:
            for key in ("start", "start_sha256", "start_head"):
                content.pop(key, None)
        for key in self.later:
            if getattr(self, key) == type(self).model_fields[key].default:
                content.pop(key, None)
        return content


class LayerAdapter(BaseAdapter):
    """An adapter of linear layers, each of which has tensors of its own."""

    layered: ClassVar[bool] = True
    target_modules: tuple[str, ...] = ("query", "value")
    layers: tuple[int, ...] | None = Field(default=None, description="only these layers; all if absent")
