"""What a run's events add up to: :class:`RunCounters` and :class:`ClientCounters`. Plain values, no locks.

Their size does not depend on how many rounds have passed.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from headwater.protocol.control import ClientRow, ClientState, RunRow, RunState
from headwater.server.metrics import Tracker
from headwater.server.monitoring.event_log import MOST_TEXT
from headwater.server.round_record import ClientRow as RecordedClient
from headwater.server.round_record import RoundRecord
from headwater.text import plain

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
class ClientCounters:
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

    def count(self, row: RecordedClient) -> None:
        """Add the client's row of a round's record."""
        self.bytes_up += row.bytes_up
        self.bytes_down += row.bytes_down
        self.examples = int(row.number("examples") or 0) or self.examples
        if row.failed:
            self.failed += 1
            self.last_error = plain(row.failed, MOST_TEXT)
        else:
            self.accepted += 1
            self.last_error = plain(row.not_evaluated, MOST_TEXT)  # else what was is mended

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
    privacy: str = ""
    counted: int = 0
    """The last round whose clients' rows were counted: a run may be restored more than once."""
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=PACE_ROUNDS))

    @property
    def ended(self) -> bool:
        """Whether it will not go on by itself."""
        return self.state in _ENDED

    def count(self, record: RoundRecord, metric: str, value: float) -> None:
        """A round is on disk."""
        if metric and metric != self.best.metric:
            self.metric, self.best = metric, Tracker(metric)
        self.round = record.round
        self.accepted = self.asked = self.open = 0
        self.privacy = record.spent() or self.privacy
        if math.isfinite(value):
            self.value = value
        self.best = self.best.after(self.round, value)
        self.bytes_up += record.bytes.up or 0
        self.bytes_down += record.bytes.down or 0
        if self.round and record.seconds is not None:
            self._seconds.append(record.seconds)

    def restore(self, records: Iterable[RoundRecord], metric: str) -> Iterator[tuple[str, RecordedClient]]:
        """Take a run's lines of ``rounds.jsonl``; gives (client, row) where those were not counted yet."""
        self.bytes_up = self.bytes_down = 0
        self.metric, self.best = metric, Tracker(metric)
        for record in records:
            self.count(record, metric, record.deciding(metric))
            yield from self.uncounted(record)

    def uncounted(self, record: RoundRecord) -> Iterator[tuple[str, RecordedClient]]:
        """(client, row) of a round, the first time it is asked."""
        if record.round > self.counted:
            self.counted = record.round
            yield from record.clients.items()

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
            privacy=self.privacy,
        )
