"""summarise: what a run came to, from its rounds on disk."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from headwater.config import LoadedFederation
from headwater.server.round_record import RoundRecord
from headwater.server.rounds.federation_server import RunResult
from headwater.server.storage.run_folder import RunFolder
from headwater.text import finite

SHOWN_FAILURES = 100


def summarise(loaded: LoadedFederation, folder: RunFolder, outcome: RunResult) -> dict[str, Any]:
    """The summary but for what only the caller knows: engine, memory, adapter, baselines."""
    totals = _Totals(outcome.checkpoint.tracker.metric)
    for record in folder.each_round():
        totals.take(record)
    tracker, known = outcome.checkpoint.tracker, totals.known
    return {
        "name": loaded.settings.federation.name,
        "federation_sha256": loaded.sha256(),
        "seed": loaded.settings.federation.seed,
        "rounds": outcome.checkpoint.server.round,
        "clients": outcome.clients,
        "stopped": outcome.reason,
        "metric": {
            "name": tracker.metric,
            "on": "test" if totals.tested else "clients",
            "start": known[0] if known else None,
            "final": known[-1] if known else None,
            "best": tracker.best_value if tracker.best_round is not None else None,
            "best_round": tracker.best_round,
        },
        **({"groups": groups} if (groups := totals.groups(tracker.best_round)) else {}),
        "bytes": totals.bytes,
        "seconds": round(totals.seconds, 3),
        "failures": totals.failures,
        "failures_total": totals.failures_total,
        "lost": totals.owners.lost(),
        **({"fisher": totals.fisher()} if totals.fisher_rows else {}),
        **({"privacy": totals.privacy} if totals.privacy else {}),
        **totals.simulated(),
    }


class _Totals:
    """What a run came to, record by record: a line may have megabytes."""

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self.known: list[float] = []
        self._groups: list[tuple[int, dict[str, float | None]]] = []
        self.tested = False
        self.bytes = dict.fromkeys(("up", "down", "up_dense", "down_dense"), 0)
        self.seconds = 0.0
        self.failures: list[dict[str, Any]] = []
        self.failures_total = 0
        self.owners = _Owners()
        self.fisher_rows = 0
        self._fisher_bytes, self._fisher_s = 0, 0.0
        self.privacy: dict[str, Any] = {}
        self._simulated: dict[str, float] | None = None

    def take(self, record: RoundRecord) -> None:
        """One more record."""
        if math.isfinite(value := record.deciding(self._metric)):
            self.known.append(value)
        if record.test_by:
            values = {group: finite(row.get(self._metric)) for group, row in record.test_by.items()}
            self._groups.append((record.round, values))
        self.tested = self.tested or record.tested
        for direction in self.bytes:
            self.bytes[direction] += getattr(record.bytes, direction) or 0
        self.seconds += record.seconds or 0.0
        self.privacy = dict(record.privacy) or self.privacy
        for failure in failures_of([record]):
            self.failures_total += 1
            if len(self.failures) < SHOWN_FAILURES:
                self.failures.append(failure)
        self.owners.take(record)
        if (ended_s := finite(record.simulated.get("end_s"))) is not None:
            before = 0.0 if self._simulated is None else self._simulated["joules"]
            joules = before + (finite(record.simulated.get("joules")) or 0.0)
            self._simulated = {"seconds": ended_s, "joules": joules}
        for row in record.clients.values():
            if row.bytes_fisher is not None:
                self.fisher_rows += 1
                self._fisher_bytes += row.bytes_fisher
                self._fisher_s += row.number("fisher_seconds") or 0.0

    def groups(self, best_round: int | None) -> dict[str, dict[str, float | None]]:
        """Of each group of test rows the deciding metric: ``start``, ``final``, ``best`` round's."""
        if not self._groups:
            return {}
        first, last = self._groups[0][1], self._groups[-1][1]
        best = dict(self._groups).get(-1 if best_round is None else best_round, {})
        return {g: {"start": first.get(g), "final": last[g], "best": best.get(g)} for g in last}

    def fisher(self) -> dict[str, float]:
        """What the clients' Fishers took."""
        return {"bytes_up": self._fisher_bytes, "seconds": round(self._fisher_s, 3)}

    def simulated(self) -> dict[str, dict[str, float]]:
        """``simulated``: seconds and joules of the run on simulated devices; nothing without them."""
        return {} if self._simulated is None else {"simulated": self._simulated}


def failures_of(rounds: Iterable[RoundRecord]) -> list[dict[str, Any]]:
    """``round``, ``client`` and ``reason`` of every failed task; who was only not needed is not there."""
    return [
        {"round": r.round, "client": client, "reason": row.failed}
        for r in rounds
        for client, row in r.clients.items()
        if row.failed and not row.spared
    ]


class _Owners:
    """By client, in how many rounds it was asked and failed, and why it failed in its last one."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, int, str]] = {}

    def take(self, record: RoundRecord) -> None:
        """One more record."""
        for client, row in record.clients.items():
            if not row.spared and row.simulated.get("answered") is not False:  # what a device pretends
                asked, failed, _ = self._found.get(client, (0, 0, ""))
                self._found[client] = asked + 1, failed + bool(row.failed), row.failed

    def lost(self) -> dict[str, dict[str, Any]]:
        """Those whose last task ended in a failure, by name."""
        return {
            client: {"asked": asked, "failed": failed, "reason": reason}
            for client, (asked, failed, reason) in sorted(self._found.items())
            if reason
        }


def lost_owners(rounds: Iterable[RoundRecord]) -> dict[str, dict[str, Any]]:
    """Who was no longer in the run at its end: by name, those whose last task ended in a failure.

    Args:
        rounds: the lines of ``rounds.jsonl``.

    Returns:
        ``asked`` and ``failed``, both rounds, and ``reason``, the latest. Who was only not needed is not.
    """
    owners = _Owners()
    for record in rounds:
        owners.take(record)
    return owners.lost()
