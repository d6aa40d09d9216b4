"""summarise: what a run came to, from its rounds on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from headwater.config import LoadedFederation
from headwater.server.metrics import decisive
from headwater.server.rounds.federation_server import RunResult
from headwater.server.storage.run_folder import RunFolder

SHOWN_FAILURES = 100


def summarise(loaded: LoadedFederation, folder: RunFolder, outcome: RunResult) -> dict[str, Any]:
    """The summary but for what only the caller knows: engine, memory, adapter, baselines."""
    rounds = folder.read_rounds()
    tracker = outcome.checkpoint.tracker
    values = [decisive(tracker.metric, r.get("test"), r.get("clients_pooled", {})) for r in rounds]
    known = [v for v in values if math.isfinite(v)]
    failures = [
        {"round": r["round"], "client": client, "reason": row["failed"]}
        for r in rounds
        for client, row in r["clients"].items()
        if "failed" in row and not row.get("spared")
    ]
    rows = [row for r in rounds for row in r["clients"].values() if "bytes_fisher" in row]
    fisher = {
        "bytes_up": sum(row["bytes_fisher"] for row in rows),
        "seconds": round(sum(row.get("fisher_seconds", 0.0) for row in rows), 3),
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
            "on": "test" if any("test" in r for r in rounds) else "clients",
            "start": known[0] if known else None,
            "final": known[-1] if known else None,
            "best": tracker.best_value if tracker.best_round is not None else None,
            "best_round": tracker.best_round,
        },
        "bytes": {
            direction: sum(r["bytes"][direction] for r in rounds)
            for direction in ("up", "down", "up_dense", "down_dense")
        },
        "seconds": round(sum(r["seconds"] for r in rounds), 3),
        "failures": failures[:SHOWN_FAILURES],
        "failures_total": len(failures),
        "lost": lost_owners(rounds),
        **({"fisher": fisher} if rows else {}),
    }


def lost_owners(rounds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Who was no longer in the run at its end: by name, those whose last task ended in a failure.

    Args:
        rounds: the lines of ``rounds.jsonl``.

    Returns:
        ``asked`` and ``failed``, both rounds, and ``reason``, the latest. Who was only not needed is not.
    """
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for record in rounds:
        for client, row in record["clients"].items():
            if not row.get("spared"):
                rows.setdefault(client, []).append(row)
    return {
        client: {
            "asked": len(found),
            "failed": sum("failed" in row for row in found),
            "reason": found[-1]["failed"],
        }
        for client, found in sorted(rows.items())
        if "failed" in found[-1]
    }
