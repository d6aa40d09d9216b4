"""What the events of a run add up to: :class:`RunCounters` and :class:`ClientTally`. Plain values, no locks.

Their size does not depend on how many rounds have passed.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from headwater.protocol.control import ClientRow, ClientState, RunRow, RunState
from headwater.server.metrics import Tracker, decisive
from headwater.server.monitoring.event_log import MOST_TEXT
from headwater.text import finite, plain

PACE_ROUNDS = 20
"""Rounds whose median is ``seconds_per_round``."""
_ENDED = frozenset({"finished", "stopped", "failed"})


@dataclass(frozen=True, slots=True)
class ClientFacts:
    """What the daemon knows of an enrolled client without having watched a run.

    Args:
        client: its enrolled name.
        fingerprint: of its keys.
        revoked: whether its keys have ended.
        online: whether it was heard of lately.
        seen_s_ago: age of its last authenticated request; None if never since the start.
    """

    client: str
    fingerprint: str = ""
    revoked: bool = False
    online: bool = False
    seen_s_ago: float | None = None

    @property
    def state(self) -> ClientState:
        """One word for it."""
        return "revoked" if self.revoked else "online" if self.online else "offline"


@dataclass(slots=True)
class ClientTally:
    """What one client did since the daemon started, or since the rounds that were restored."""

    version: str = ""
    examples: int = 0
    accepted: int = 0
    failed: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    doing: str = "idle"
    last_error: str = ""
    unfit: bool = False
    """Whether ``last_error`` is about its profile, so that a profile that fits ends it."""

    def take(self, row: Mapping[str, Any]) -> None:
        """Add the client's row of a round's record."""
        self.bytes_up += whole(row.get("bytes_up"))
        self.bytes_down += whole(row.get("bytes_down"))
        self.examples = whole(row.get("examples")) or self.examples
        if row.get("failed"):
            self.failed += 1
            self.last_error = plain(row["failed"], MOST_TEXT)
        else:
            self.accepted += 1
            self.last_error = plain(row.get("not_evaluated", ""), MOST_TEXT)  # else what was is mended

    def _doing(self, facts: ClientFacts) -> str:
        if facts.revoked or self.doing == "idle":
            return "idle"
        return self.doing if facts.online else f"{self.doing}, not heard of"

    def row(self, facts: ClientFacts) -> ClientRow:
        """As the organiser sees it."""
        return ClientRow(
            client=facts.client,
            state=facts.state,
            fingerprint=facts.fingerprint,
            seen_s_ago=facts.seen_s_ago,
            doing=self._doing(facts),
            examples=self.examples,
            accepted_rounds=self.accepted,
            failed_rounds=self.failed,
            bytes_up=self.bytes_up,
            bytes_down=self.bytes_down,
            version=self.version,
            last_error="" if facts.revoked else self.last_error,
        )


@dataclass(slots=True)
class RunCounters:
    """Where one run stands."""

    run: str
    name: str
    rounds: int
    submitted: float
    metric: str = ""
    state: RunState = "queued"
    reason: str = ""
    round: int = 0
    accepted: int = 0
    asked: int = 0
    open: int = 0
    value: float = math.nan
    best: Tracker = field(default_factory=lambda: Tracker(""))
    bytes_up: int = 0
    bytes_down: int = 0
    counted: int = 0
    """The last round whose clients' rows were counted: a run may be restored more than once."""
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=PACE_ROUNDS))

    @property
    def ended(self) -> bool:
        """Whether it will not go on by itself."""
        return self.state in _ENDED

    def take(self, record: Mapping[str, Any], metric: str, value: float) -> None:
        """A round is on disk."""
        if metric and metric != self.best.metric:
            self.metric, self.best = metric, Tracker(metric)
        self.round = whole(record.get("round"))
        self.accepted = self.asked = self.open = 0
        if math.isfinite(value):
            self.value = value
        self.best = self.best.after(self.round, value)
        sizes = table(record.get("bytes"))
        self.bytes_up += whole(sizes.get("up"))
        self.bytes_down += whole(sizes.get("down"))
        if self.round and (seconds := finite(record.get("seconds"))) is not None:
            self._seconds.append(seconds)

    def restore(self, records: Iterable[Mapping[str, Any]], metric: str) -> Iterator[tuple[str, Any]]:
        """Take a run's lines of ``rounds.jsonl``; gives (client, row) where those were not counted yet."""
        self.bytes_up = self.bytes_down = 0
        self.metric, self.best = metric, Tracker(metric)
        for record in records:
            self.take(record, metric, deciding(record, metric))
            yield from self.uncounted(record)

    def uncounted(self, record: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """(client, row) of a round, the first time it is asked."""
        number = whole(record.get("round"))
        if number > self.counted:
            self.counted = number
            yield from client_rows(record)

    def row(self) -> RunRow:
        """As the organiser sees it."""
        return RunRow(
            run=self.run,
            name=self.name,
            state=self.state,
            reason=self.reason,
            round=self.round,
            rounds=self.rounds,
            accepted=self.accepted,
            asked=self.asked,
            metric=self.metric,
            value=self.value,
            best_round=self.best.best_round or 0,
            best_value=self.best.best_value,
            bytes_up=self.bytes_up,
            bytes_down=self.bytes_down,
            submitted=self.submitted,
            open=self.open,
            seconds_per_round=statistics.median(self._seconds) if self._seconds else math.nan,
        )


def deciding(record: Mapping[str, Any], metric: str) -> float:
    """The deciding value in a line of ``rounds.jsonl``, where null stands for what was not finite."""
    test = record.get("test")
    value = decisive(metric, test if isinstance(test, Mapping) else None, table(record.get("clients_pooled")))
    known = finite(value)
    return math.nan if known is None else known


def client_rows(record: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(client, row) of everyone who was asked in a round; with why it gave no evaluation, if it was asked."""
    failed = table(record.get("not_evaluated"))
    for client, row in table(record.get("clients")).items():
        if isinstance(row, Mapping):
            reason = str(failed.get(client, ""))
            asked = bool(reason) and not reason.startswith("not asked")
            yield client, {**row, "not_evaluated": f"evaluation: {reason}"} if asked else row


def table(value: object) -> Mapping[str, Any]:
    """``value`` if it is a table, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def whole(value: object) -> int:
    """``value`` as an integer; 0 if it is no number."""
    return int(finite(value) or 0)
