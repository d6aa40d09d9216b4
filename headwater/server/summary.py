"""summarise: what a run came to, from its rounds on disk."""

from __future__ import annotations

import math
from typing import Any

from headwater.config import LoadedFederation
from headwater.server.evaluation import decisive
from headwater.server.federation import Outcome
from headwater.server.run_folder import RunFolder

SHOWN_FAILURES = 100


def summarise(loaded: LoadedFederation, folder: RunFolder, outcome: Outcome) -> dict[str, Any]:
    """The summary but for what only the caller knows: engine, memory, adapter, baselines."""
    rounds = folder.read_rounds()
    tracker = outcome.checkpoint.tracker
    values = [decisive(tracker.metric, r.get("test"), r.get("clients_pooled", {})) for r in rounds]
    known = [v for v in values if math.isfinite(v)]
    failures = [
        {"round": r["round"], "client": client, "reason": row["failed"]}
        for r in rounds
        for client, row in r["clients"].items()
        if "failed" in row
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
        **({"fisher": fisher} if rows else {}),
    }
