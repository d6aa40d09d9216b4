"""What evaluations mean: :class:`Tracker` (best round, patience) and :func:`over_clients`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from headwater.config.data import NoData, lower_is_better
from headwater.config.federation import Federation
from headwater.config.traits import DataTraits
from headwater.errors import DecodeError
from headwater.protocol.messages import ClientProfile, Evaluation
from headwater.tasks.table import task_of
from headwater.tasks.task import weighted_mean


def metric_name(federation: Federation) -> str:
    """The metric that decides: the file's, else the first of its kind of data."""
    return federation.evaluation.metric or next(iter(federation.data.metrics))


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
        return value < self.best_value if lower_is_better(self.metric) else value > self.best_value

    def after(self, round: int, value: float) -> Tracker:
        """The tracker with one evaluation more; one that measured nothing (NaN) does not count."""
        if not math.isfinite(value):
            return self
        if self.better(value):
            return replace(self, best_round=round, best_value=value, since=0)
        return replace(self, since=self.since + 1)


def checked(evaluation: Evaluation, profile: ClientProfile, federation: Federation) -> Evaluation:
    """The evaluation, if this client may have measured it.

    Raises:
        DecodeError: other metrics than the task's, values or counts out of range.
    """
    who = f"client {evaluation.client}: evaluation"
    data = federation.data
    if set(evaluation.metrics) != set(data.metrics):
        raise DecodeError(
            who, expected=f"metrics {sorted(data.metrics)}", got=f"{sorted(evaluation.metrics)[:9]}"
        )
    most = profile.validation_examples
    if data.by_token and not isinstance(data, NoData):
        most *= data.most_targets  # counted in tokens
    exact = not data.by_token and evaluation.examples != most
    if exact or not 0 < evaluation.examples <= most:
        raise DecodeError(who, expected=f"{most} examples", got=str(evaluation.examples))
    for name, value in evaluation.metrics.items():
        least, top = data.metrics[name].least, data.metrics[name].most
        if not least <= value <= top:
            raise DecodeError(f"{who}, {name}", expected=f"a value from {least:g} to {top:g}", got=str(value))
    return evaluation


def over_clients(evaluations: Iterable[Evaluation], data: DataTraits) -> dict[str, float]:
    """Metrics of all clients' validation splits together, as :meth:`Task.merge` makes them."""
    rows = sorted((e for e in evaluations if e.examples), key=lambda e: e.client)
    if not rows:
        return {}
    names = sorted(set.intersection(*(set(e.metrics) for e in rows)))
    merge = task_of(data).merge if data.has_rows else weighted_mean
    return merge({n: [e.metrics[n] for e in rows] for n in names}, [e.examples for e in rows])


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
