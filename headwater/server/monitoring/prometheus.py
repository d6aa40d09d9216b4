"""What Prometheus scrapes: :func:`exposition`, made from a :class:`Status` at the moment of the scrape.

Nothing is kept between two scrapes, and the process-wide default registry is not touched. The number of
series is bounded as the status is: by the enrolled clients and the runs that are remembered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from headwater.protocol.control import ClientRow, ClientState, RunRow, RunState, Status

CONTENT_TYPE = CONTENT_TYPE_LATEST


def exposition(status: Status) -> bytes:
    """All metrics in Prometheus' text format; values that are not known yet are left out."""
    registry = CollectorRegistry()
    registry.register(_StatusCollector(status))
    return generate_latest(registry)


class _StatusCollector(Collector):
    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        yield from _daemon(self._status)
        yield from _runs(self._status.runs)
        yield from _clients(self._status.clients)


def _daemon(status: Status) -> Iterator[Metric]:
    yield _gauge("info", "Always 1; the version is a label.", ["version"], [([status.version], 1)])
    yield _gauge("start_time_seconds", "When the daemon started, Unix time.", [], [([], status.started)])
    yield _gauge("resident_memory_bytes", "Resident memory of the daemon.", [], [([], status.rss_bytes)])
    days: list[tuple[list[str], float]] = [([], float(status.certificate_days))]
    yield _gauge("certificate_days_left", "Days until the server's certificate ends.", [], days)
    refused = [([reason], n) for reason, n in status.refused.items()]
    yield _counter("refused", "Requests and updates that were refused.", ["reason"], refused)


def _runs(runs: Iterable[RunRow]) -> Iterator[Metric]:
    runs = tuple(runs)
    states = [([r.run, r.name, s], float(r.state == s)) for r in runs for s in get_args(RunState)]
    yield _gauge("run_state", "1 for the state that a run is in.", ["run", "name", "state"], states)
    per_run: tuple[tuple[str, str, list[float]], ...] = (
        ("run_round", "The last finished round.", [r.round for r in runs]),
        ("run_rounds", "Rounds that the run shall have.", [r.rounds for r in runs]),
        ("run_asked", "Clients asked in the open round.", [r.asked for r in runs]),
        ("run_accepted", "Updates of the open round that are in.", [r.accepted for r in runs]),
        ("run_round_seconds", "Median of the last rounds.", [r.seconds_per_round for r in runs]),
        ("run_best_round", "The best measured round.", [r.best_round for r in runs]),
    )
    for name, text, values in per_run:
        yield _gauge(name, text, ["run"], [([r.run], v) for r, v in zip(runs, values, strict=True)])
    measured = [([r.run, r.metric], r.value) for r in runs]
    yield _gauge(
        "run_metric", "The deciding metric after the last measured round.", ["run", "metric"], measured
    )
    best = [([r.run, r.metric], r.best_value) for r in runs]
    yield _gauge("run_best_metric", "Its best value.", ["run", "metric"], best)
    sizes = [([r.run, d], n) for r in runs for d, n in (("up", r.bytes_up), ("down", r.bytes_down))]
    yield _counter("run_bytes", "Bytes of messages; up is from clients.", ["run", "direction"], sizes)


def _clients(clients: Iterable[ClientRow]) -> Iterator[Metric]:
    clients = tuple(clients)
    total = [([s], float(sum(c.state == s for c in clients))) for s in get_args(ClientState)]
    yield _gauge("clients", "Enrolled clients by state.", ["state"], total)
    up = [([c.client], float(c.state == "online")) for c in clients]
    yield _gauge("client_online", "1 if it was heard of lately.", ["client"], up)
    seen = [([c.client], math.nan if c.seen_s_ago is None else c.seen_s_ago) for c in clients]
    yield _gauge("client_seen_seconds_ago", "Age of its last request.", ["client"], seen)
    examples = [([c.client], float(c.examples)) for c in clients]
    yield _gauge("client_examples", "Training examples it says it holds.", ["client"], examples)
    rounds = [
        ([c.client, result], n)
        for c in clients
        for result, n in (("accepted", c.accepted_rounds), ("failed", c.failed_rounds))
    ]
    yield _counter("client_rounds", "Rounds it was asked in.", ["client", "result"], rounds)
    sizes = [([c.client, d], n) for c in clients for d, n in (("up", c.bytes_up), ("down", c.bytes_down))]
    yield _counter("client_bytes", "Bytes of its training messages.", ["client", "direction"], sizes)


def _gauge(
    name: str, text: str, labels: list[str], samples: Iterable[tuple[list[str], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"headwater_{name}", text, labels=labels)
    for values, value in samples:
        if not math.isnan(value):
            family.add_metric(values, value)
    return family


def _counter(
    name: str, text: str, labels: list[str], samples: Iterable[tuple[list[str], float]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"headwater_{name}", text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family
