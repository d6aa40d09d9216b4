"""What a report says of clients, added up record by record: :class:`Tally`.

Of a record's rows nothing is kept but what the page shows: memory grows with the clients that were ever
asked, and not with the rounds that asked them.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from headwater.server.report.svg import Point
from headwater.server.round_record import ClientRow, RoundRecord
from headwater.text import finite, plain

MOST_LINES = 12
"""Clients drawn one by one; of more, quantiles."""
MOST_FAILURES = 100
"""Failures that are shown; the page says how many more there are."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Clients' values in one round: least, quartiles, greatest."""

    round: int
    least: float
    lower: float
    median: float
    upper: float
    greatest: float


@dataclass(slots=True)
class Client:
    """One client over the whole run; sums over the rounds it was asked in."""

    name: str
    rounds: int = 0
    examples: float | None = None
    metric: float | None = None
    loss: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    failures: int = 0
    reason: str = ""
    method: str = ""
    stood_out: int = 0
    left_out: int = 0

    def take(self, row: ClientRow) -> None:
        """What it did in one more round."""
        if row.failed and not row.spared:
            self.failures += 1
            self.reason = plain(row.failed, 500)
        else:
            self.rounds += 1
        if (examples := row.number("examples")) is not None:
            self.examples = examples
        if (loss := row.number("loss")) is not None:
            self.loss = loss
        self.bytes_up += row.bytes_up
        self.bytes_down += row.bytes_down
        self.seconds += row.number("seconds") or 0.0
        self.stood_out += bool(row.suspect)
        self.left_out += row.left_out
        if row.method:
            self.method = plain(row.method, 80)


class Tally:
    """The clients of a run, from its records in order.

    Args:
        metric: the deciding one.
        shown: rounds that charts and the table of rounds show.

    Attributes:
        clients: by name, everyone who was asked or evaluated.
        failures: round, client and reason of the first :data:`MOST_FAILURES`; ``failure_count`` of all.
        spreads: by ``metric`` and ``loss``, the distribution in each round that is shown.
        lines: by the same, each client's points by name; of more than :data:`MOST_LINES`, of one more.
    """

    def __init__(self, metric: str, shown: Collection[int]) -> None:
        self._metric, self._shown = metric, frozenset(shown)
        self.clients: dict[str, Client] = {}
        self.failures: list[tuple[int, str, str]] = []
        self.failure_count = 0
        self.spreads: dict[str, list[Spread]] = {"metric": [], "loss": []}
        self.lines: dict[str, dict[str, list[Point]]] = {"metric": {}, "loss": {}}

    def take(self, record: RoundRecord) -> None:
        """One more record."""
        for name, row in sorted(record.clients.items()):
            self._client(name).take(row)
            if row.failed and not row.spared:
                self.failure_count += 1
                if len(self.failures) < MOST_FAILURES:
                    self.failures.append((record.round, plain(name), plain(row.failed, 500)))
        measured = {name: finite(row.get(self._metric)) for name, row in record.each.items()}
        for name, value in measured.items():
            self._client(name).metric = value
        if record.round in self._shown:
            losses = {name: row.number("loss") for name, row in record.clients.items()}
            self._draw(record.round, "metric", measured)
            self._draw(record.round, "loss", {n: v for n, v in losses.items() if v is not None})

    def _client(self, name: str) -> Client:
        found = self.clients.get(name)
        if found is None:
            found = self.clients[name] = Client(plain(name, 80))
        return found

    def _draw(self, number: int, what: str, values: Mapping[str, float | None]) -> None:
        lines = self.lines[what]
        for name, value in values.items():
            if name in lines or len(lines) <= MOST_LINES:
                lines.setdefault(name, []).append((number, value))
        known = sorted(value for value in values.values() if value is not None)
        if known:
            quartiles = statistics.quantiles(known, n=4, method="inclusive") if len(known) > 1 else known * 3
            lower, median, upper = quartiles
            self.spreads[what].append(Spread(number, known[0], lower, median, upper, known[-1]))
