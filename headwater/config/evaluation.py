"""``[evaluation]`` and ``[baselines]``: what is measured beside the training."""

from __future__ import annotations

from pydantic import Field

from headwater.config.settings import Settings

EVALUATION_S = 3600.0
"""How long a server waits for evaluations where the file names no deadline."""


class EvaluationSettings(Settings):
    """``[evaluation]``: what is measured, where, and what it decides."""

    deadline_s: float | None = Field(
        default=None,
        gt=0,
        description=f"cohort.deadline_s if absent; if that is absent too, {EVALUATION_S:g} on a server",
    )
    every: int = Field(default=1, ge=0, description="rounds between evaluations; 0 = never")
    clients: bool = Field(default=True, description="evaluate on the clients' validation splits too")
    metric: str | None = None
    patience: int | None = Field(default=None, ge=1, description="evaluations without a better one")
    min_client_examples: int = Field(default=10, ge=1, description="below it a client's own number is hidden")
    batch_size: int = Field(default=64, ge=1, le=2**20)
    trunk_cache_mb: int = Field(
        default=0,
        ge=0,
        le=2**20,
        description="as `training.trunk_cache_mb`, of what is evaluated again and again",
    )


class BaselineSettings(Settings):
    """``[baselines]``: what the summary compares the federation with."""

    majority: bool = False
    probe: bool = Field(default=False, description="logistic regression on frozen features")
    alone: bool = Field(default=False, description="each client without the others, equal passes")
    centralised: bool = Field(default=False, description="all data in one place, equal passes")
