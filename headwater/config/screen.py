"""``[strategy.screen]``: which updates stand out, and whether they are merged."""

from __future__ import annotations

from pydantic import Field

from headwater.config.settings import Settings


class ScreenSettings(Settings):
    """Bounds beyond which an update stands out among those of its round."""

    norm: float = Field(
        default=4.0, gt=1, le=1e6, description="scaled: longer than so many times the median length"
    )
    cosine: float = Field(
        default=-0.15,
        ge=-1,
        lt=1,
        description="flipped: a smaller cosine with the median of all directions, which is estimated to 0.03",
    )
    leave_out: bool = Field(
        default=False,
        description="merge without those that stand out, as long as they are fewer than half; it takes one "
        "more pass over the updates",
    )
    shorten: bool = Field(
        default=False,
        description="merge no update at more than the median length of its round's (FLAME, arXiv 2101.02281, "
        "without its noise); it takes one more pass over the updates",
    )

    @property
    def changes(self) -> bool:
        """Whether what is merged differs from what was sent."""
        return self.leave_out or self.shorten
