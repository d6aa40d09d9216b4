"""The method that leaves training to a script of the owner's: ``[training] kind = "script"``."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from headwater.config.traits import TrainingSettings


class ScriptTraining(TrainingSettings):
    """What a script of the owner's trains with: a Trainer of transformers or TRL, or a function of its own.

    What is absent, the script decides.
    """

    alone: ClassVar[bool] = True
    by_script: ClassVar[bool] = True
    kind: Literal["script"]
    epochs: float | None = Field(
        default=None, gt=0, le=1e9, description="passes over the client's rows a round"
    )
    max_steps: int | None = Field(default=None, ge=1, description="never more steps a round")
    learning_rate: float | None = Field(default=None, gt=0)
    final_learning_rate_fraction: float = Field(
        default=1.0, ge=0, le=1, description="rates fall linearly over the rounds to this fraction"
    )

    def steps_of(self, examples: int | None, batch_size: int | None = None) -> int | None:
        """``max_steps``: only the script knows its batches."""
        return self.max_steps

    def passes_text(self) -> str:  # noqa: D102 - inherited
        return "as its script"

    def cut(self, batch_size: int, max_steps: int | None) -> ScriptTraining:  # noqa: D102 - inherited
        if max_steps is None:
            return self
        return self.model_copy(update={"max_steps": max(1, min(self.max_steps or max_steps, max_steps))})
