"""What the report says, apart from how it looks: :func:`read_run` turns a run folder into :class:`Run`.

Nothing in the files is relied on: a missing key, a None or a NaN becomes an absent value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from headwater.config.data import lower_is_better
from headwater.server.report.svg import Point
from headwater.server.report.tally import Client, Spread, Tally
from headwater.server.round_record import RoundRecord
from headwater.server.storage.run_folder import RunFolder
from headwater.text import finite, plain

MOST_COLUMNS = 240
"""Rounds that charts and the table of rounds show; of more, every k-th."""


@dataclass(frozen=True)
class Run:
    """A run folder's content.

    Args:
        summary: ``summary.json``; empty if the run has not ended.
        rounds: the records of ``rounds.jsonl``, without what they say of each client.
        toml: the resolved federation file.
        whole: reads the records once more, as they are.
    """

    summary: Mapping[str, Any]
    rounds: Sequence[RoundRecord]
    toml: str
    whole: Callable[[], Iterable[RoundRecord]]

    def get(self, *keys: str) -> object:
        """A value of the summary; None if a key on the way is missing."""
        return get(self.summary, *keys)

    @cached_property
    def metric(self) -> str:
        """The deciding metric's name, guessed from the rounds if the summary does not say."""
        named = self.get("metric", "name")
        if named:
            return str(named)
        seen = {k for r in self.rounds for part in (r.test, r.pooled) for k in part}
        usual = ("accuracy", "perplexity", "mse", "micro_f1", "macro_f1", "loss")
        return next((m for m in usual if m in seen), "accuracy")

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller metric is a better one."""
        return lower_is_better(self.metric)

    @cached_property
    def source(self) -> str:
        """Where the deciding value is measured: ``test`` or ``clients_pooled``."""
        on = self.get("metric", "on")
        if on in ("test", "clients"):
            return "test" if on == "test" else "clients_pooled"
        return "test" if any(r.tested for r in self.rounds) else "clients_pooled"

    @property
    def evaluated(self) -> bool:
        """Whether any round was evaluated, whatever came of it."""
        return any(r.test or r.pooled for r in self.rounds)

    @property
    def exported_value(self) -> float | None:
        """The deciding metric of the adapter that was exported."""
        best = self.get("metric", "best_round")
        which = "best" if best is not None and best == self.get("adapter_round") else "final"
        return finite(self.get("metric", which))

    @cached_property
    def shown(self) -> list[RoundRecord]:
        """At most about :data:`MOST_COLUMNS` records: first, last, best, exported, every k-th."""
        step = -(-len(self.rounds) // MOST_COLUMNS)
        kept = [self.get("metric", "best_round"), self.get("adapter_round")]
        last = len(self.rounds) - 1
        return [
            r for i, r in enumerate(self.rounds) if step < 2 or not i % step or i == last or r.round in kept
        ]

    @property
    def every(self) -> int:
        """The k of "every k-th round"."""
        return -(-len(self.rounds) // MOST_COLUMNS) or 1

    def measured(self, source: str) -> list[Point]:
        """The deciding metric by round, from ``source``; None where it is no finite number."""
        rows = [(r.round, r.test if source == "test" else r.pooled) for r in self.shown]
        return [(number, finite(row.get(self.metric))) for number, row in rows if row]

    @cached_property
    def tally(self) -> Tally:
        """What the records say of clients."""
        found = Tally(self.metric, {record.round for record in self.shown})
        for record in self.whole():
            found.take(record)
        return found

    def by_client(self, what: str) -> dict[str, list[Point]]:
        """Each client's points, in order of name; of more than :data:`.tally.MOST_LINES`, of some."""
        return dict(sorted(self.tally.lines[what].items()))

    def spreads(self, what: str) -> list[Spread]:
        """The clients' distribution by round."""
        return self.tally.spreads[what]

    @cached_property
    def baselines(self) -> dict[str, float]:
        """Those of one number: majority, probe, centralised."""
        rows = table_at(self.summary, "baselines")
        found = {k: finite(rows.get(k)) for k in ("majority", "probe", "centralised")}
        return {k: v for k, v in found.items() if v is not None}

    @cached_property
    def alone(self) -> dict[str, float]:
        """Each client without the others."""
        rows = table_at(table_at(self.summary, "baselines"), "alone")
        found = {c: finite(v) for c, v in sorted(rows.items())}
        return {c: v for c, v in found.items() if v is not None}

    @property
    def alone_groups(self) -> Mapping[str, Any]:
        """The same of each group of test rows, by client; empty without ``evaluation.by``."""
        return table_at(table_at(self.summary, "baselines"), "alone_groups")

    @property
    def centralised_groups(self) -> Mapping[str, Any]:
        """All data in one place, by group of test rows; empty without."""
        return table_at(table_at(self.summary, "baselines"), "centralised_groups")

    @cached_property
    def failures(self) -> list[tuple[int, str, str]]:
        """Round, client and reason of the first, from the records; from the summary if they have none."""
        found = self.tally.failures
        listed = self.get("failures")
        if not found and isinstance(listed, list):
            rows = [f for f in listed if isinstance(f, Mapping)]
            found = [(f.get("round", 0), plain(f.get("client")), plain(f.get("reason"), 500)) for f in rows]
        return found

    @property
    def failure_count(self) -> int:
        """All failures; the summary may count more than it lists."""
        return max(len(self.failures), self.tally.failure_count, int(finite(self.get("failures_total")) or 0))

    @cached_property
    def notices(self) -> list[str]:
        """What was worth a look in data and model."""
        found = self.get("notices")
        return [plain(notice, 600) for notice in found] if isinstance(found, list) else []

    @cached_property
    def lost(self) -> list[str]:
        """Who was no longer in the run at its end, by name."""
        return [plain(name, 80) for name in sorted(table_at(self.summary, "lost"))]

    @cached_property
    def clients(self) -> list[Client]:
        """Every client that was asked or evaluated, in order of name."""
        return [client for _, client in sorted(self.tally.clients.items())]


def read_run(folder: RunFolder) -> Run:
    """Read what is there; a missing or damaged summary counts as none."""
    try:
        summary = json.loads((folder.path / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        summary = {}
    try:
        toml = (folder.path / "federation.toml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        toml = ""
    rounds = [record.without_clients() for record in folder.each_round()]
    return Run(summary if isinstance(summary, dict) else {}, rounds, toml, folder.each_round)


def get(content: object, *keys: str) -> object:
    """A nested value; None if a key on the way is missing."""
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def table_at(content: object, key: str) -> Mapping[str, Any]:
    """A nested table; an empty one if it is missing."""
    found = get(content, key)
    return found if isinstance(found, Mapping) else {}
