"""``[privacy]``: what an update may hold."""

from __future__ import annotations

from pydantic import Field

from headwater.config.settings import Settings


class PrivacySettings(Settings):
    """``[privacy]``: bounds on what an update may hold."""

    clip_l2: float | None = Field(default=None, gt=0, description="L2 bound of a whole update")
