"""finish: what a run leaves behind: the adapter, the summary, the report."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Mapping, Sequence
from typing import Any

from headwater.config import LoadedFederation
from headwater.errors import StorageError
from headwater.process_memory import status_bytes
from headwater.receipts.bundle import bundle
from headwater.server.report.page import write_report
from headwater.server.rounds.federation_server import RunResult
from headwater.server.rounds.summary import summarise
from headwater.server.storage.run_folder import RunFolder
from headwater.server.trackers.tracking import Tracking
from headwater.training.context import TrainingContext


def finish(
    loaded: LoadedFederation,
    folder: RunFolder,
    context: TrainingContext,
    outcome: RunResult,
    *,
    engine: str,
    baselines: Mapping[str, Any] | None = None,
    notices: Sequence[str] = (),
) -> dict[str, Any]:
    """Export the best adapter (the last, if none was measured); write summary and report.

    Args:
        loaded: the federation.
        folder: its run folder.
        context: its model.
        outcome: what the rounds came to.
        engine: who ran them.
        baselines: what was measured beside them.
        notices: what is worth a look in data and model. They name rows, and stay out of the adapter.

    Returns:
        The summary, as in ``summary.json``.
    """
    checkpoint = outcome.checkpoint
    best = checkpoint.best is not None
    state = checkpoint.best if checkpoint.best is not None else checkpoint.server.state
    number = checkpoint.tracker.best_round if best else checkpoint.server.round
    summary = summarise(loaded, folder, outcome)
    summary |= {
        "engine": engine,
        "peak_rss_bytes": peak_rss_bytes(),
        "adapter_sha256": state.sha256(),
        "adapter_round": number,
        "baselines": dict(baselines or {}),
        **({} if context.start is None else {"start": context.start.lineage}),
        **({"changes": changes} if (changes := folder.changes(loaded.sha256())) else {}),
    }
    receipts = bundle(folder.receipts, state.sha256())
    context.export(state, folder.adapter, card=summary, beside=receipts)
    summary["notices"] = list(notices)
    folder.write_json("summary.json", summary)
    write_report(folder)
    return summary


def tell_trackers(tracking: Tracking, folder: RunFolder, summary: dict[str, Any]) -> dict[str, Any]:
    """Hand the summary to the run's trackers, if it has any, and write into it how they fared.

    Returns:
        The summary, with ``trackers``.
    """
    reports = tracking.end(summary)
    if not reports:
        return summary
    sentences = [text for report in reports for text in report.sentences()]
    summary = {
        **summary,
        "notices": [*summary.get("notices", []), *sentences],
        "trackers": {report.kind: report.row() for report in reports},
    }
    with contextlib.suppress(StorageError):  # it stands there without them
        folder.write_json("summary.json", summary)
        write_report(folder)
    return summary


def peak_rss_bytes() -> int:
    """The largest resident set of this process so far, or of any of its children that ended."""
    children = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    # ru_maxrss begins at the peak of whoever started this process; VmHWM does not
    own = status_bytes("VmHWM") or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max(own, children)
