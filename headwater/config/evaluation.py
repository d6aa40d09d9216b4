"""``[evaluation]`` and ``[baselines]``: what is measured beside the training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from headwater.config.metrics import ANSWER_METRICS, Metric
from headwater.config.settings import Settings
from headwater.config.traits import DataTraits

EVALUATION_S = 3600.0
"""How long a server waits for evaluations where the file names no deadline."""

_LATER = ("by", "answers", "max_answer_tokens", "clients_every", "client_count", "client_fraction")


class EvaluationSettings(Settings):
    """``[evaluation]``: what is measured, where, and what it decides."""

    deadline_s: float | None = Field(
        default=None,
        gt=0,
        description=f"cohort.deadline_s if absent; if that is absent too, {EVALUATION_S:g} on a server",
    )
    every: int = Field(default=1, ge=0, description="rounds between evaluations; 0 = never")
    clients: bool = Field(default=True, description="evaluate on the clients' validation splits too")
    clients_every: int = Field(
        default=1, ge=1, description="clients are asked in rounds divisible by it only, and in the last"
    )
    client_count: int | None = Field(
        default=None, ge=1, description="so many of them, drawn anew each time; all if absent"
    )
    client_fraction: float | None = Field(
        default=None, gt=0, le=1, description="the same as a fraction of those with a validation split"
    )
    metric: str | None = None
    by: str | None = Field(
        default=None,
        min_length=1,
        description="a column of the test file: the metrics of the rows of each of its values too",
    )
    answers: int = Field(
        default=0,
        ge=0,
        description="test rows, drawn once, whose answers are written out: `rouge1`, `rouge2`, `rougeL`",
    )
    max_answer_tokens: int = Field(default=64, ge=1, le=2**16, description="of such an answer")
    patience: int | None = Field(default=None, ge=1, description="evaluations without a better one")
    min_client_examples: int = Field(default=10, ge=1, description="below it a client's own number is hidden")
    batch_size: int = Field(default=64, ge=1, le=2**20)
    trunk_cache_mb: int = Field(
        default=0,
        ge=0,
        le=2**20,
        description="as `training.trunk_cache_mb`, of what is evaluated again and again",
    )

    @model_validator(mode="after")
    def _sampled_once(self) -> EvaluationSettings:
        if self.client_count is not None and self.client_fraction is not None:
            raise ValueError("client_count and client_fraction say the same: leave one of them out")
        fewer = self.clients_every > 1 or self.client_count is not None or self.client_fraction is not None
        if fewer and not self.clients:
            raise ValueError("clients = false asks no client: leave clients_every and client_… out")
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """No key for what came later and nobody asked for: runs were named without."""
        content: dict[str, Any] = handler(self)
        for name in _LATER:
            if content.get(name) == type(self).model_fields[name].default:
                content.pop(name, None)
        return content

    def metrics_of(self, data: DataTraits) -> Mapping[str, Metric]:
        """What an evaluation gives of the server's test file, by name; the first decides by default."""
        return {**data.metrics, **ANSWER_METRICS} if self.answers else data.metrics

    def most_clients(self, round: int, clients: int, *, last: bool) -> int:
        """How many of so many clients with a validation split evaluate after this round."""
        if not self.clients or (round % self.clients_every and not last):
            return 0
        if self.client_fraction is not None:
            return math.ceil(self.client_fraction * clients)
        return clients if self.client_count is None else min(clients, self.client_count)


class BaselineSettings(Settings):
    """``[baselines]``: what the summary compares the federation with."""

    majority: bool = False
    probe: bool = Field(default=False, description="logistic regression on frozen features")
    alone: bool = Field(default=False, description="each client without the others, equal passes")
    centralised: bool = Field(default=False, description="all data in one place, equal passes")
