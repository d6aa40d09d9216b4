"""The rows of a report's tables."""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Callable
from functools import partial

from headwater.server.report.data import Run, get, table_at
from headwater.server.report.tally import MOST_LINES, Client
from headwater.text import finite, human_bytes, human_seconds, number, percent, plain, signed, times

MOST_CLIENTS = 50
"""Rows that are shown; the page says how many more there are."""


def legend_clients(run: Run) -> list[str]:
    """The clients that the charts draw one by one."""
    measured, trained = run.by_client("metric"), run.by_client("loss")
    names = {**measured, **trained}
    few = min((len(n) for n in (measured, trained) if n), default=0)
    return sorted(names) if 0 < few <= len(names) <= MOST_LINES else []


def traffic(run: Run) -> list[tuple[str, str, str, str, float]]:
    """Per direction: name, bytes sent, dense bytes, ratio, sent as a fraction of dense."""
    rows = []
    for direction, title in (("up", "up, clients to server"), ("down", "down, server to clients")):
        sent, dense = (finite(run.get("bytes", k)) for k in (direction, f"{direction}_dense"))
        if sent is not None and dense:
            share = min(sent / dense, 1.0)
            rows.append((title, human_bytes(sent), human_bytes(dense), times(dense, sent), share))
    return rows


def fisher(run: Run) -> tuple[str, str] | None:
    """What the clients' Fishers took, in bytes and in seconds of all clients; None without any."""
    size, seconds = finite(run.get("fisher", "bytes_up")), finite(run.get("fisher", "seconds"))
    return (human_bytes(size), human_seconds(seconds)) if size and seconds is not None else None


def gap_modules(run: Run) -> list[tuple[str, str]]:
    """The five modules with the largest relative gap in the last round."""
    modules = next((m for r in reversed(run.rounds) if (m := r.gap.get("modules"))), None)
    if not isinstance(modules, dict):
        return []
    known = [
        (name, value) for name, value in modules.items() if isinstance(value, int | float) and value == value
    ]
    known.sort(key=lambda row: (-row[1], row[0]))
    return [(plain(n, 120), percent(v)) for n, v in known[:5]]


def weighed_methods(run: Run) -> list[tuple[str, str, str, str]]:
    """Of a mixed run's last round that weighed methods: method, its clients, progress, weight."""
    merges = (record.merge for record in reversed(run.rounds))
    merge = next((m for m in merges if "between" in m), dict[str, object]())
    rows = []
    for key, progress in sorted(merge.items()):
        name = key.removeprefix("progress_")
        if name != key and finite(progress) is not None:
            clients = sum(client.method == name for client in run.clients)
            weight = percent(finite(merge.get(f"weight_{name}")))
            rows.append((plain(name, 80), f"{clients:,}", percent(progress), weight))
    return rows


def contributions(run: Run) -> tuple[list[tuple[str, str, float]], str]:
    """Per player, the largest first: name, value, its share of the largest; and what it took."""
    measured = [record.contribution for record in run.rounds if record.contribution]
    rounds = [values for m in measured if isinstance(values := m.get("values"), dict)]
    sums = {name: math.fsum(finite(v.get(name)) or 0.0 for v in rounds) for v in rounds for name in v}
    largest = max(map(abs, sums.values()), default=0.0) or 1.0
    rows = sorted(sums.items(), key=lambda row: (-row[1], row[0]))[:MOST_CLIENTS]
    asked = sum(int(finite(m.get("evaluations")) or 0) for m in measured)
    told = f"{len(rounds):,} rounds, {asked:,} evaluations" if rounds else ""
    return [(plain(n, 80), signed(v), max(0.0, v / largest)) for n, v in rows], told


def baselines(run: Run) -> list[tuple[str, float, str, str]]:
    """What the federation is compared with: name, value, how it differs, class of its bar.

    The difference is to the last round: the best one was chosen on these very examples.
    """
    rows: list[tuple[str, float, str]] = []
    start = finite(run.get("metric", "start"))
    if start is not None:
        rows.append(("before training", start, "base"))
    titles = {"majority": "majority class", "probe": "probe on frozen features"}
    rows += [(titles[k], run.baselines[k], "base") for k in titles if k in run.baselines]
    alone = run.alone
    if len(alone) <= MOST_LINES:
        rows += [(f"alone: {plain(c, 80)}", v, "alone") for c, v in alone.items()]
    else:
        cuts = (("least", min), ("median", statistics.median), ("greatest", max))
        rows += [
            (f"alone: {n} of {len(alone):,} clients", float(f(alone.values())), "alone") for n, f in cuts
        ]
    federated, exported = finite(run.get("metric", "final")), run.exported_value
    if federated is not None:
        rows.append(("federated, last round", federated, "main"))
    if exported is not None and exported != federated:
        rows.append(("federated, best round", exported, "main"))
    if "centralised" in run.baselines:
        rows.append(("centralised, all data in one place", run.baselines["centralised"], "base"))
    return [
        (name, value, "" if federated is None or kind == "main" else signed(federated - value), kind)
        for name, value, kind in rows
    ]


def groups(run: Run) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The groups of test rows (``evaluation.by``): heads of the columns, and each group's values.

    The adapter before training, each client alone (the mean of many), all data in one place, federated.
    """
    found = {group: table_at(run.get("groups"), group) for group in table_at(run.summary, "groups")}
    apart = {client: table_at(run.alone_groups, client) for client in sorted(run.alone_groups)}
    few = len(apart) <= MOST_LINES
    columns: list[tuple[str, Callable[[str], object]]] = [
        ("before training", lambda g: found[g].get("start"))
    ]
    if few:
        columns += [(f"alone: {plain(c, 80)}", partial(get, own)) for c, own in apart.items()]
    if apart:

        def mean(group: str) -> float | None:
            values = [v for own in apart.values() if (v := finite(own.get(group))) is not None]
            return statistics.fmean(values) if values else None

        columns.append((f"alone: mean of {len(apart):,}", mean))
    if run.centralised_groups:
        columns.append(("centralised", partial(get, run.centralised_groups)))
    columns += [("federated, last round", lambda g: found[g].get("final"))]
    columns += [("federated, best round", lambda g: found[g].get("best"))]
    return [head for head, _ in columns], [
        (plain(group, 80), [number(finite(value(group))) for _, value in columns]) for group in found
    ]


def shown_clients(run: Run) -> list[Client]:
    """The clients' rows: all by name, or of many those that failed or did worst."""
    if len(run.clients) <= MOST_CLIENTS:
        return run.clients

    def order(client: Client) -> tuple[int, bool, float]:
        value = client.metric or 0.0
        return (-client.failures, client.metric is None, -value if run.lower_is_better else value)

    return heapq.nsmallest(MOST_CLIENTS, run.clients, key=order)
