"""``[privacy]``: what an update may hold."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from headwater.config.settings import Settings


class PrivacySettings(Settings):
    """``[privacy]``: bounds on what an update may hold."""

    clip_l2: float | None = Field(default=None, gt=0, description="L2 bound of a whole update")
    masks: bool = Field(
        default=False,
        description="clients mask their updates, so that the server learns their sum only (SecAgg+, "
        "ePrint 2020/704)",
    )
    mask_dropouts: float = Field(
        default=0.3, ge=0, le=0.45, description="the fraction of a round's clients that may drop out"
    )
    mask_colluding: float = Field(
        default=0.1,
        ge=0,
        le=0.45,
        description="the fraction of a round's clients that may work with a lying server",
    )
    padding: Literal["none", "padme", "power-of-two"] = Field(
        default="none", description="of every message to a length that many share"
    )

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """No key for masks and padding that nobody asked for, which runs and older devices do not know."""
        content: dict[str, Any] = handler(self)
        if self.padding == "none":
            content.pop("padding", None)
        return content if self.masks else {k: v for k, v in content.items() if not k.startswith("mask")}
