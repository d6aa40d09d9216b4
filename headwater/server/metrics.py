"""What evaluations mean: :class:`Tracker` (best round, patience) and :func:`over_clients`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from headwater.config.data import NoData
from headwater.config.federation import Federation
from headwater.errors import DecodeError
from headwater.protocol.messages import ClientProfile, Evaluation
from headwater.text import LOWER_IS_BETTER


def metric_name(federation: Federation) -> str:
    """The metric that decides: the file's, else accuracy, perplexity for a causal model."""
    default = {"causal-lm": "perplexity", "vector": "loss"}.get(federation.model.kind, "accuracy")
    return federation.evaluation.metric or default


@dataclass(frozen=True)
class Tracker:
    """The best evaluation so far, and how many came since.

    Args:
        metric: name of the deciding metric.
        best_round: round of the best value; None before the first.
        best_value: its value.
        since: evaluations after the best one.
    """

    metric: str
    best_round: int | None = None
    best_value: float = math.nan
    since: int = 0

    def better(self, value: float) -> bool:
        """Whether ``value`` beats the best. The first finite one does; a tie does not."""
        if not math.isfinite(value):
            return False
        if self.best_round is None:
            return True
        return value < self.best_value if self.metric in LOWER_IS_BETTER else value > self.best_value

    def after(self, round: int, value: float) -> Tracker:
        """The tracker with one evaluation more; one that measured nothing (NaN) does not count."""
        if not math.isfinite(value):
            return self
        if self.better(value):
            return replace(self, best_round=round, best_value=value, since=0)
        return replace(self, since=self.since + 1)


MAX_LOSS = 1e6
"""A client's loss beyond it is refused: sums must stay finite whatever a client claims."""


def checked(evaluation: Evaluation, profile: ClientProfile, federation: Federation) -> Evaluation:
    """The evaluation, if this client may have measured it.

    Raises:
        DecodeError: other metrics than the task's, values or counts out of range.
    """
    who = f"client {evaluation.client}: evaluation"
    language_model = federation.model.language_model
    names = {"loss", "perplexity"} if language_model else {"accuracy", "macro_f1", "loss"}
    if not federation.model.pretrained:
        names = {"loss"}
    if set(evaluation.metrics) != names:
        raise DecodeError(who, expected=f"metrics {sorted(names)}", got=f"{sorted(evaluation.metrics)[:9]}")
    most = profile.validation_examples
    if language_model and not isinstance(federation.data, NoData):
        most *= federation.data.max_tokens  # counted in tokens
    exact = not language_model and evaluation.examples != most
    if exact or not 0 < evaluation.examples <= most:
        raise DecodeError(who, expected=f"{most} examples", got=str(evaluation.examples))
    for name, value in evaluation.metrics.items():
        top = 1.0 if name in ("accuracy", "macro_f1") else MAX_LOSS if name == "loss" else math.inf
        if not 0 <= value <= top:
            raise DecodeError(f"{who}, {name}", expected=f"a value from 0 to {top:g}", got=str(value))
    return evaluation


def over_clients(evaluations: Iterable[Evaluation]) -> dict[str, float]:
    """Metrics of all clients' validation splits together, weighted by examples.

    Accuracy and loss are those of the pooled examples; perplexity is exp of the pooled loss;
    macro_f1 is the weighted mean of the clients' own (the pooled one would need their confusions).
    """
    rows = sorted((e for e in evaluations if e.examples), key=lambda e: e.client)
    total = sum(e.examples for e in rows)
    if not total:
        return {}
    names = sorted(set.intersection(*(set(e.metrics) for e in rows)))
    pooled = {n: math.fsum(e.metrics[n] * e.examples for e in rows) / total for n in names}
    if "perplexity" in pooled and "loss" in pooled:
        pooled["perplexity"] = math.exp(min(pooled["loss"], 700.0))
    return pooled


def per_client(
    evaluations: Iterable[Evaluation], profiles: Mapping[str, ClientProfile], min_examples: int
) -> dict[str, dict[str, float]]:
    """Each client's own metrics, without the clients whose validation split is too small to be shown."""
    shown: dict[str, dict[str, float]] = {}
    for e in sorted(evaluations, key=lambda e: e.client):
        if profiles[e.client].validation_examples >= min_examples:
            shown[e.client] = {**e.metrics, "examples": float(e.examples)}
    return shown


def decisive(metric: str, test: Mapping[str, float] | None, clients: Mapping[str, float]) -> float:
    """The deciding value: on the server's file if there is one, else over the clients; else NaN."""
    source = test if test is not None else clients
    return source.get(metric, math.nan)
