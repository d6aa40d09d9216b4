"""What an organiser reads: :func:`status_view`, :func:`adapters_table`, :func:`event_line`.

Names, reasons and errors come from clients: they are printed as plain text, never as markup, and without
control characters. A name is never cut: a narrow screen shows fewer columns.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.text import Text

from headwater.cli.fitting import FittingTable
from headwater.protocol.control import AdapterRow, ClientRow, RunRow, Status, WatchEvent
from headwater.text import NOTHING, human_bytes, human_seconds, number, plain

STYLES = {
    "running": "green", "waiting": "yellow", "queued": "cyan", "paused": "magenta", "finished": "bold green",
    "stopped": "dim", "failed": "bold red", "online": "green", "offline": "yellow", "revoked": "dim red",
}  # fmt: skip
"""Of a run's or a client's state."""
EVENT_STYLES = {"error": "bold red", "refused": "yellow", "notice": "cyan", "round": "bold", "run": "bold"}
MOST_ERRORS = 5
MOST_NAMED = 6
"""Clients of a cohort that are named; of more, the number is told."""


def status_view(status: Status, now: float) -> Group:
    """The whole daemon: a line about itself, its runs, its clients, what it refused, its latest errors."""
    online = sum(c.state == "online" for c in status.clients)
    enrolled = sum(c.state != "revoked" for c in status.clients)
    days = status.certificate_days
    alarm = "bold red" if days < 7 else "yellow" if days < 30 else ""
    head = Text.assemble(
        (f"headwater {plain(status.version, 40)}", "bold"),
        f"  up {human_seconds(now - status.started)}  memory {human_bytes(status.rss_bytes)}",
        f"  clients {online:,} of {enrolled:,} online  certificate ",
        (f"{days:,} days" if days >= 0 else "EXPIRED", alarm),
    )  # fmt: skip
    parts: list[RenderableType] = [head, Text()]
    parts.append(runs_table(status.runs, now) if status.runs else Text("no run was submitted"))
    for r in status.runs:
        parts += [_told("run", f"{r.run} {r.state}", r.reason, STYLES.get(r.state, ""))] if r.reason else []
        parts += [_told("run", r.run, r.note, "bold")] if r.note else []
        parts += [_told("run", r.run, r.privacy, "")] if r.privacy else []
        parts += [_told("run", r.run, f"warning: {warning}", "yellow") for warning in r.warnings]
    parts += [Text(), clients_table(status.clients) if status.clients else Text("no client is enrolled")]
    parts += [_told("client", c.client, c.last_error, "red") for c in status.clients if c.last_error]
    if status.refused:
        told = ", ".join(f"{count:,} × {plain(reason, 120)}" for reason, count in status.refused.items())
        parts += [Text(), Text(f"refused: {told}", style="yellow")]
    if status.errors:
        parts += [Text(), Text("latest errors", style="bold")]
        parts += [event_line(e, now) for e in status.errors[-MOST_ERRORS:]]
    return Group(*parts)


def runs_table(rows: Sequence[RunRow], now: float) -> FittingTable:
    """One line per run."""
    table = FittingTable()
    for title, weight in (("run", 0), ("federation", 4), ("state", 0)):
        table.column(title, weight)
    for title, weight in (
        ("round", 0), ("updates in", 8), ("metric", 9), ("best", 7), ("up", 6), ("down", 5), ("per round", 3),
    ):  # fmt: skip
        table.column(title, weight, right=True)
    table.column("submitted", 2)
    for row in rows:
        cells = (
            plain(row.run, 120), plain(row.name, 120), _state(row.state), f"{row.round:,}/{row.rounds:,}",
            f"{row.accepted:,}/{row.asked:,}" if row.asked else NOTHING,
            _score(row.metric, row.value), _best(row),
            human_bytes(row.bytes_up), human_bytes(row.bytes_down), human_seconds(row.seconds_per_round),
            ago(now - row.submitted),
        )  # fmt: skip
        table.row(cells)
    return table


def clients_table(rows: Sequence[ClientRow]) -> FittingTable:
    """One line per enrolled client."""
    table = FittingTable()
    for title, weight in (("client", 0), ("state", 0), ("last seen", 9), ("doing", 8)):
        table.column(title, weight)
    for title, weight in (("examples", 4), ("rounds", 7), ("failed", 6), ("up", 5), ("down", 3)):
        table.column(title, weight, right=True)
    table.column("version", 2)
    for row in rows:
        failed = Text(f"{row.failed_rounds:,}", style="red" if row.failed_rounds else "")
        cells = (
            plain(row.client, 120), _state(row.state),
            "never" if row.seen_s_ago is None else ago(row.seen_s_ago), plain(row.doing, 40),
            f"{row.examples:,}", f"{row.accepted_rounds:,}", failed,
            human_bytes(row.bytes_up), human_bytes(row.bytes_down), plain(row.version, 40),
        )  # fmt: skip
        table.row(cells)
    return table


def adapters_table(rows: Sequence[AdapterRow], now: float) -> FittingTable:
    """One line per version; the best is marked, and those whose values are gone are grey."""
    table = FittingTable()
    for title, weight in (("version", 0), ("round", 6), ("from", 3)):
        table.column(title, weight, right=True)
    table.column("", 0)
    table.column("metric", 7, right=True)
    for title, weight in (("clients", 4), ("made", 5), ("sha256", 2), ("note", 1)):
        table.column(title, weight)
    for row in rows:
        names = ", ".join(plain(c, 80) for c in row.cohort) or NOTHING
        mark = ("best", "bold green") if row.best else ("", "") if row.kept else ("not kept", "")
        cells = (
            f"{row.version:,}", f"{row.round:,}", f"{row.parent:,}" if row.parent else NOTHING,
            Text(*mark), _score(row.metric, row.value),
            names if len(row.cohort) <= MOST_NAMED else f"{len(row.cohort):,} clients",
            ago(now - row.created), plain(row.sha256[:12]), plain(row.note),
        )  # fmt: skip
        table.row(cells, style="bold" if row.best else "" if row.kept else "dim")
    return table


def run_line(row: RunRow) -> Text:
    """A run in one line: what a command that changes one answers."""
    line = Text.assemble("run ", (plain(row.run, 80), "bold"), ": ", _state(row.state))
    line.append(f", round {row.round:,} of {row.rounds:,}")
    if row.reason:
        line.append(f": {plain(row.reason)}")
    if row.note:
        line.append(f"; {plain(row.note, 600)}", style="bold")
    for warning in row.warnings:
        line.append(f"\nwarning: {plain(warning)}", style="yellow")
    return line


def event_line(event: WatchEvent, now: float) -> Text:
    """An event in one line; its date only if it is not today's."""
    when, today = time.localtime(event.time), time.localtime(now)
    shape = "%H:%M:%S" if when[:3] == today[:3] else "%Y-%m-%d %H:%M:%S"
    line = Text(time.strftime(shape, when), style="dim")
    line.append(f"  {plain(event.kind, 20):<7}", style=EVENT_STYLES.get(event.kind, "dim"))
    if event.run:
        line.append(f"  {plain(event.run, 80)}", style="dim")
    line.append(f"  {plain(event.text, 1000)}", style=EVENT_STYLES.get(event.kind, "not dim"))
    return line


def ago(seconds: float) -> str:
    """An age as a person says it: ``just now``, ``12 s ago``, ``3 min ago``, ``5 h ago``, ``9 days ago``."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 5:
        return "just now"
    if seconds < 90:
        return f"{seconds:.0f} s ago"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min ago"
    if seconds < 36 * 3600:
        return f"{seconds / 3600:.0f} h ago"
    return f"{seconds / 86400:,.0f} days ago"


def show(what: RenderableType, out: TextIO) -> None:
    """Print it: as wide as the terminal, or, into a file or pipe, as wide as it is."""
    console = Console(file=out, highlight=False)
    if not console.is_terminal:
        console.width = max(
            80, console.measure(what, options=console.options.update(max_width=10_000)).maximum
        )
    console.print(what)


def _told(what: str, name: str, text: str, style: str) -> Text:
    named = plain(text)
    start = f"{what} {plain(name, 120)}"
    return Text(named if named.startswith(start) else f"{start}: {named}", style=style)


def _state(state: str) -> Text:
    return Text(plain(state, 20), style=STYLES.get(state, ""))


def _score(metric: str, value: float) -> str:
    return f"{plain(metric, 40)} {number(value)}" if math.isfinite(value) else NOTHING


def _best(row: RunRow) -> str:
    if not math.isfinite(row.best_value):
        return NOTHING
    return f"{number(row.best_value)} (round {row.best_round:,})"
