"""A daemon's face without a daemon: :class:`ToyOrganiser`, fed by hand through its Monitor."""

from __future__ import annotations

import hashlib
import io
import json
import math
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from headwater.errors import ConfigError
from headwater.protocol.control import AdapterRow, ClientRow, RunRow, Status, WatchEvent
from headwater.server.events import ClientAsked, ClientDone, ClientFailed, RoundEnded, RoundStarted
from headwater.server.monitoring.counters import ClientFacts
from headwater.server.monitoring.monitor import Monitor
from headwater.server.round_record import RoundRecord
from headwater.text import json_safe

TOKEN = "t0ken-" + "x" * 40
RUN = "20260301-0915-a1b2"


class ToyOrganiser:
    """Answers what a page asks; the rest is refused."""

    def __init__(
        self, folder: Path, clients: tuple[str, ...] = ("ann", "ben", "cleo"), **monitor: Any
    ) -> None:
        self.folder, self.clients = folder, clients
        self.rounds_file = folder / "rounds.jsonl"
        self.adapter_folder: Path | None = None
        self.facts = {
            c: ClientFacts(c, f"{i:04x} 71c0 55ae 09d2", online=True, seen_s_ago=2.0 + i)
            for i, c in enumerate(clients)
        }
        self.monitor = Monitor(
            version="0.1.0", clients=lambda: self.facts.values(), certificate_days=lambda: 397, **monitor
        )
        self.versions: list[AdapterRow] = []

    def rounds(self, run: str) -> Path | None:
        return self.rounds_file if run == RUN else None

    def begin(self, rounds: int = 10, name: str = "sentiment") -> None:
        self.monitor.run_queued(RUN, name, rounds, metric="accuracy")
        self.monitor.run_state(RUN, "running")
        self.end_round(0, 0.5, {})

    def start_round(self, number: int) -> None:
        tell = self.monitor.observer(RUN)
        tell(RoundStarted(number, len(self.clients)))
        for client in self.clients:
            tell(ClientAsked(number, client, "train", 45_000))

    def end_round(self, number: int, value: float, failed: Mapping[str, str] | None = None) -> None:
        """One whole round, as the daemon would have it."""
        failed, tell = failed or {}, self.monitor.observer(RUN)
        rows: dict[str, Any] = {}
        if number:
            self.start_round(number)
            for i, client in enumerate(self.clients):
                rows[client] = {"bytes_down": 45_000, "examples": 800 + i, "loss": 1 / (number + i + 1)}
                if client in failed:
                    rows[client]["failed"] = failed[client]
                    tell(ClientFailed(number, client, failed[client]))
                else:
                    rows[client]["bytes_up"] = 12_000 + 37 * i + 211 * (number % 5)
                    tell(ClientDone(number, client, rows[client]["bytes_up"]))
        sizes = {"up": sum(r.get("bytes_up", 0) for r in rows.values()), "down": 45_000 * len(rows)}
        record = {"round": number, "clients": rows, "bytes": sizes, "seconds": 2.0 + 0.1 * number}
        if math.isfinite(value):
            record["test"] = {"accuracy": value, "loss": 1.2 - value, "examples": 200}
        with self.rounds_file.open("a") as file:
            file.write(json.dumps(json_safe(record)) + "\n")
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        best = max([value, *(v.value for v in self.versions)]) == value
        kept = [AdapterRow(**{**_fields(v), "best": v.best and not best}) for v in self.versions]
        cohort = tuple(c for c in rows if c not in failed)
        row = AdapterRow(
            run=RUN, version=number + 1, round=number, parent=number, sha256=digest, config_sha256=digest,
            cohort=cohort, metric="accuracy", value=value, best=best, kept=True,
            created=1_772_356_502.0 + 60 * number, note=f"round {number}" if number else "initial",
        )  # fmt: skip
        self.versions = [*kept, row]
        tell(RoundEnded(number, RoundRecord(record), "accuracy", value))

    def status(self) -> Status:
        return self.monitor.status()

    def watch(self, after: int = 0) -> Iterator[WatchEvent]:
        return self.monitor.watch(after)

    def adapters(self, run: str = "") -> tuple[AdapterRow, ...]:
        return tuple(self.versions)

    def export(self, run: str = "", version: int = 0) -> Iterator[bytes]:
        if version > len(self.versions) or self.adapter_folder is None:
            raise ConfigError(f"version {version}", expected="a version that is kept", got="none")
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            tar.add(self.adapter_folder, "adapter")
        data = out.getvalue()
        yield from (data[at : at + (1 << 20)] for at in range(0, len(data), 1 << 20))

    def _no(self, *arguments: object) -> Any:
        raise ConfigError("toy organiser", expected="a question", got="an order")

    submit = pause = resume = stop = change = accept = revoke = rollback = forget = unpin = _no


def _fields(row: AdapterRow | ClientRow | RunRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__slots__}
