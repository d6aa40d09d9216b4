"""Settings of error feedback: codecs that it goes with, and codecs that it does not go with."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from headwater.config.traits import CodecTraits

UNBIASED = "it is unbiased, so its noise is nothing that was dropped: a residual of it would only grow"


class NoFeedback(CodecTraits):
    """A codec that error feedback does not go with.

    Attributes:
        because: why not.
    """

    error_feedback: ClassVar[bool] = False
    because: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _no_residual(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the file says
        if isinstance(value, dict) and "error_feedback" in value:
            raise ValueError(f"no error_feedback with codec '{value.get('kind')}': {cls.because}")
        return value


class Contractive(CodecTraits):
    """A biased codec with ‖C(x) − x‖ ≤ √(1 − δ)·‖x‖, δ > 0: error feedback makes up for what it drops."""

    error_feedback: bool | Literal["ef14", "ef21"] = Field(
        default=True, description="a client adds to its next update what this one dropped"
    )
    decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        exclude_if=lambda value: value == 1,  # plans read as before by clients that do not know it
        description="of what was dropped, what is left of it after each round",
    )
    keep_rounds: int | None = Field(
        default=None,
        ge=1,
        exclude_if=lambda value: value is None,
        description="a client that comes back after more rounds forgets what it dropped",
    )

    @field_validator("error_feedback", mode="before")
    @classmethod
    def _a_form_that_there_is(cls, value: object) -> object:
        """Else the words would be those of the first alternative, a boolean."""
        if not isinstance(value, bool) and value not in ("ef14", "ef21"):
            raise ValueError("true, false, 'ef14' or 'ef21'")
        return value

    @property
    def shifts(self) -> bool:  # noqa: D102 - inherited
        return self.error_feedback == "ef21"

    def fading(self) -> tuple[float, int | None]:  # noqa: D102 - inherited
        return self.decay, self.keep_rounds

    @model_validator(mode="after")
    def _fits_the_feedback(self) -> Self:
        if self.shifts and (self.decay != 1 or self.keep_rounds is not None):
            raise ValueError(
                "error_feedback 'ef21' goes without decay and keep_rounds: a client adds up what the "
                "server adds up"
            )
        return self
