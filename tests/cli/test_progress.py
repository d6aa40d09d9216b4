"""Progress: bars on a terminal, lines elsewhere, failures only when quiet; hostile text stays text."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console

from headwater.cli.progress import MOST_FAILURES, make_observer
from headwater.server.events import (
    ClientDone,
    ClientFailed,
    Evaluating,
    Event,
    Notice,
    RoundEnded,
    RoundStarted,
    RunStarted,
)
from headwater.server.round_record import RoundRecord

HOSTILE = "[red]x[/red] :smile:\x1b[2J\x07\nround 9/9  \u202egood"


def ended(number: int, value: float, failed: int = 0, metric: str = "accuracy") -> RoundEnded:
    clients: dict[str, dict[str, Any]] = {f"c{i}": {"bytes_up": 5000} for i in range(4)} if number else {}
    for i in range(failed):
        clients[f"c{i}"]["failed"] = "why"
    sizes = {"up": 12_345, "down": 1_234_567, "up_dense": 99_000, "down_dense": 2_000_000}
    record = {"round": number, "clients": clients, "bytes": sizes, "seconds": 2.1}
    return RoundEnded(number, RoundRecord(record), metric, value)


EVENTS: list[Event] = [
    Evaluating(0), ended(0, 0.5), RunStarted(3, 0, 4),
    RoundStarted(1, 4), *(ClientDone(1, f"c{i}", 5000) for i in range(4)), Evaluating(1), ended(1, 0.75),
    RoundStarted(2, 4), ClientFailed(2, "c0", "client c0: loss is NaN"), Notice("stopping after round 2"),
    ended(2, 0.7, failed=1), RoundStarted(3, 4), ended(3, math.nan),
]  # fmt: skip


class Clock:
    """Ten seconds later at every look."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 10
        return self.now


def show(
    events: list[Event], *, terminal: bool = False, quiet: bool = False, width: int = 120
) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, _environ={"TERM": "xterm-256color"})
    errors = Console(file=err, width=width)
    with make_observer(console, quiet, errors=errors, clock=Clock()) as observer:
        for event in events:
            observer(event)
    return out.getvalue(), err.getvalue()


def test_lines_say_what_each_round_came_to():
    out, err = show(EVENTS)
    assert err == ""
    sizes = "up 12.3 KB  down 1.23 MB"
    assert out.splitlines() == [
        f"round 0  {sizes}  accuracy 0.500 (best 0.500)  2.1 s",
        f"round 1/3  clients 4/4 (0 failed)  {sizes}  accuracy 0.750 (best 0.750)  2.1 s  ETA 20 s",
        "round 2: failed: client c0: loss is NaN",
        "stopping after round 2",
        f"round 2/3  clients 3/4 (1 failed: c0)  {sizes}  accuracy 0.700 (best 0.750)  2.1 s  ETA 10 s",
        f"round 3/3  clients 4/4 (0 failed)  {sizes}  not evaluated (best 0.750)  2.1 s",
    ]


def test_lines_are_never_wrapped_or_coloured():
    out, _ = show(EVENTS, width=20)
    assert len(out.splitlines()) == 6
    assert "\x1b" not in out


def test_the_best_perplexity_is_the_lowest():
    events: list[Event] = [
        RunStarted(2, 0, 4),
        ended(1, 20.0, metric="perplexity"),
        ended(2, 30.0, metric="perplexity"),
    ]
    assert "perplexity 30.00 (best 20.00)" in show(events)[0]


def test_a_resumed_run_counts_only_its_own_rounds_into_the_eta():
    events: list[Event] = [RunStarted(10, 7, 4, 0.75, 2048, 4096), RoundStarted(8, 4), ended(8, 0.5)]
    assert "round 8/10" in show(events)[0]
    assert "(best 0.750)" in show(events)[0]
    assert show(events)[0].rstrip().endswith("ETA 20 s")


def test_quiet_says_failures_only_and_to_errors():
    out, err = show(EVENTS, quiet=True)
    assert out == ""
    assert err.splitlines() == ["round 2: failed: client c0: loss is NaN"]


@pytest.mark.parametrize("terminal", [False, True])
def test_hostile_text_is_one_plain_line(terminal):
    out, _ = show([RoundStarted(1, 1), ClientFailed(1, HOSTILE, HOSTILE), Notice(HOSTILE)], terminal=terminal)
    lines = [line for line in out.splitlines() if "[red]" in line]
    assert len(lines) == 2
    assert "[red]x[/red] :smile:\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER} round 9/9 " in lines[0]
    assert "\x1b[2J" not in out.replace("\x1b[2K", "")
    assert not set("\x07\u202e") & set(out)


@pytest.mark.parametrize("quiet", [False, True])
def test_a_flood_of_failures_is_counted(quiet):
    failures: list[Event] = [ClientFailed(1, f"c{i}", "no") for i in range(MOST_FAILURES + 980)]
    shown = "".join(show([RoundStarted(1, 1000), *failures, ended(1, 0.5)], quiet=quiet))
    assert shown.count(": failed: ") == MOST_FAILURES
    assert "round 1: and 980 more failures" in shown


def test_bars_count_rounds_and_clients():
    out, _ = show(EVENTS, terminal=True)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out)
    assert "round 2: failed: client c0: loss is NaN" in text
    assert "stopping after round 2" in text
    assert "round 1/3" not in text  # a bar, not a line
    last = [line for line in re.split(r"[\r\n]", text) if "rounds" in line][-1]
    assert "rounds 3/3" in last
    assert "best 0.750" in last
    assert "↑49.4 KB ↓4.94 MB" in last


def test_the_clients_bar_ignores_late_and_evaluation_failures():
    console = Console(file=io.StringIO(), force_terminal=True, width=120, _environ={"TERM": "xterm"})
    with make_observer(console, clock=Clock()) as observer:
        for event in [
            RunStarted(3, 0, 4),
            RoundStarted(2, 4),
            ClientFailed(1, "c9", "late"),
            ClientDone(2, "c0", 1),
        ]:
            observer(event)
        bar = observer._progress.tasks[1]
        assert (bar.completed, bar.total, bar.fields["tail"]) == (1, 4, "")
        observer(ClientFailed(2, "c1", "no"))
        assert (bar.completed, bar.fields["tail"]) == (2, "1 failed")


def fail_to_describe() -> Event:
    raise KeyError


def test_bars_end_with_an_error():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, _environ={"TERM": "xterm-256color"})
    with pytest.raises(KeyError), make_observer(console) as observer:
        observer(fail_to_describe())
    assert out.getvalue().rstrip("\r\n").endswith("\x1b[?25h")  # the cursor is back


def test_importing_it_is_light():
    code = (
        "import sys, headwater.cli.progress; print({'torch', 'flwr', 'numpy', 'jinja2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
