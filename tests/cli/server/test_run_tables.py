"""Tables on screens of every width."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from headwater.cli import tables
from headwater.protocol.control import WatchEvent
from tests.cli.server.folders import HOSTILE, NOW
from tests.support.control_port import ANN, BO, FIRST, SECOND


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "just now"), (4.9, "just now"), (12, "12 s ago"), (89, "89 s ago"), (180, "3 min ago"),
        (3600, "60 min ago"), (7300, "2 h ago"), (86400, "24 h ago"), (9 * 86400, "9 days ago"),
        (float("nan"), "–"),
    ],
)  # fmt: skip
def test_ages(seconds, text):
    assert tables.ago(seconds) == text


@pytest.mark.parametrize("width", [30, 60, 80, 120, 200])
def test_names_are_never_cut(organiser, width):
    long = "hospital-in-the-north-east-of-the-country.example.org"
    status = replace(organiser.status(), clients=(ANN, replace(BO, client=long, last_error=HOSTILE)))
    for what in (tables.clients_table(status.clients), tables.status_view(status, NOW)):
        console = Console(file=io.StringIO(), width=width, force_terminal=True, highlight=False)
        console.print(what)
        text = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())
        lines = text.splitlines()
        assert max(map(len, lines)) <= width
        assert "…" not in text
        if width >= 70:
            assert any(line.startswith(long) for line in lines)
        assert long in "".join(line.split("  ")[0].strip() for line in lines)
        assert "\x1b" not in text
        assert "offline" in text


def test_a_wide_screen_shows_every_column(organiser):
    console = Console(file=io.StringIO(), width=250)
    console.print(tables.status_view(organiser.status(), NOW))
    console.print(tables.adapters_table((FIRST, SECOND), NOW))
    text = console.file.getvalue()
    for title in (
        "federation",
        "updates in",
        "per round",
        "submitted",
        "examples",
        "version",
        "sha256",
        "note",
    ):
        assert title in text
    assert "60 min ago" in text


def test_states_have_colours(organiser):
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system="standard")
    console.print(tables.status_view(organiser.status(), NOW))
    text = console.file.getvalue()
    for shown in ("\x1b[32mrunning", "\x1b[35mpaused", "\x1b[32monline", "\x1b[33moffline"):
        assert shown in text


def test_a_large_cohort_is_counted(organiser):
    console = Console(file=io.StringIO(), width=200)
    many = replace(SECOND, cohort=tuple(f"client-{i}" for i in range(500)), kept=False, best=False)
    console.print(tables.adapters_table((many,), NOW))
    assert "500 clients" in console.file.getvalue()
    assert "not kept" in console.file.getvalue()


def test_an_event_of_another_day_has_its_date():
    event = WatchEvent(1, NOW, "round", "r1", "text")
    assert re.match(r"\d\d:\d\d:\d\d  round", tables.event_line(event, NOW).plain)
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:", tables.event_line(event, NOW + 2 * 86400).plain)
