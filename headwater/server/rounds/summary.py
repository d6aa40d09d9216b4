"""summarise: what a run came to, from its rounds on disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from headwater.config import LoadedFederation
from headwater.server.round_record import ClientRow, RoundRecord
from headwater.server.rounds.federation_server import RunResult
from headwater.server.storage.run_folder import RunFolder

SHOWN_FAILURES = 100


def summarise(loaded: LoadedFederation, folder: RunFolder, outcome: RunResult) -> dict[str, Any]:
    """The summary but for what only the caller knows: engine, memory, adapter, baselines."""
    rounds = folder.read_rounds()
    tracker = outcome.checkpoint.tracker
    known = [v for r in rounds if math.isfinite(v := r.deciding(tracker.metric))]
    failures = failures_of(rounds)
    rows = [row for r in rounds for row in r.clients.values() if row.bytes_fisher is not None]
    fisher = {
        "bytes_up": sum(row.bytes_fisher or 0 for row in rows),
        "seconds": round(sum(row.number("fisher_seconds") or 0.0 for row in rows), 3),
    }
    return {
        "name": loaded.settings.federation.name,
        "federation_sha256": loaded.sha256(),
        "seed": loaded.settings.federation.seed,
        "rounds": outcome.checkpoint.server.round,
        "clients": outcome.clients,
        "stopped": outcome.reason,
        "metric": {
            "name": tracker.metric,
            "on": "test" if any(r.tested for r in rounds) else "clients",
            "start": known[0] if known else None,
            "final": known[-1] if known else None,
            "best": tracker.best_value if tracker.best_round is not None else None,
            "best_round": tracker.best_round,
        },
        "bytes": {
            direction: sum(getattr(r.bytes, direction) or 0 for r in rounds)
            for direction in ("up", "down", "up_dense", "down_dense")
        },
        "seconds": round(sum(r.seconds or 0.0 for r in rounds), 3),
        "failures": failures[:SHOWN_FAILURES],
        "failures_total": len(failures),
        "lost": lost_owners(rounds),
        **({"fisher": fisher} if rows else {}),
    }


def failures_of(rounds: Sequence[RoundRecord]) -> list[dict[str, Any]]:
    """``round``, ``client`` and ``reason`` of every failed task; who was only not needed is not there."""
    return [
        {"round": r.round, "client": client, "reason": row.failed}
        for r in rounds
        for client, row in r.clients.items()
        if row.failed and not row.spared
    ]


def lost_owners(rounds: Sequence[RoundRecord]) -> dict[str, dict[str, Any]]:
    """Who was no longer in the run at its end: by name, those whose last task ended in a failure.

    Args:
        rounds: the lines of ``rounds.jsonl``.

    Returns:
        ``asked`` and ``failed``, both rounds, and ``reason``, the latest. Who was only not needed is not.
    """
    rows: dict[str, list[ClientRow]] = {}
    for record in rounds:
        for client, row in record.clients.items():
            if not row.spared:
                rows.setdefault(client, []).append(row)
    return {
        client: {
            "asked": len(found),
            "failed": sum(bool(row.failed) for row in found),
            "reason": found[-1].failed,
        }
        for client, found in sorted(rows.items())
        if found[-1].failed
    }
