"""``headwater runs``: list the run folders below a folder, and compare what they came to."""

from __future__ import annotations

import argparse
import json
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from headwater.cli.fitting import FittingTable
from headwater.cli.tables import STYLES, show
from headwater.errors import ConfigError
from headwater.files import write_atomically
from headwater.text import json_safe, plain

if TYPE_CHECKING:
    from headwater.server.report.compared import Compared

MOST_SETTINGS = 8
"""Settings that have a column; the JSON has all in which the runs differ."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "places",
        nargs="*",
        type=Path,
        metavar="DIR",
        help="run folders, or folders with some (default: runs)",
    )
    parser.add_argument(
        "--sort", choices=["time", "value", "name"], default="time", help="default: time, the newest last"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with charts and table")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the charts")
    parser.add_argument(
        "--open", action="store_true", help="show --html, or else the newest run's report, in the browser"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON, not a table")


def run(options: argparse.Namespace) -> int:
    """Print the table; write what was asked for."""
    from headwater.server.report.compared import compare, find_runs

    runs = compare(find_runs(options.places or [Path("runs")]), order=options.sort)
    if options.json:
        print(json.dumps(json_safe(_content(runs)), ensure_ascii=False))
    else:
        show(_table(runs), sys.stdout)
    _write(options, runs)
    if options.open:
        _open(options.html or _report(max(runs, key=lambda run: run.changed)))
    return 0


def _content(runs: Sequence[Compared]) -> dict[str, Any]:
    from headwater.server.report.compared import differing

    keys = differing(runs)
    own = (
        "name", "state", "round", "rounds", "metric", "best", "best_round", "last", "clients", "failures",
        "bytes_up", "bytes_down", "seconds", "adapter_sha256",
    )  # fmt: skip
    rows = [
        {
            "folder": str(run.folder),
            **{key: getattr(run, key) for key in own},
            "settings": {key: run.settings.get(key) for key in keys},
        }
        for run in runs
    ]
    return {"runs": rows, "differing": keys}


def _table(runs: Sequence[Compared]) -> FittingTable:
    from headwater.server.report.compared import differing
    from headwater.server.report.compared_page import HEADS, cells, run_name

    weights = dict(zip(HEADS, (3, 0, 9, 10, 8, 4, 6, 7, 5, 2), strict=True))
    keys, table = differing(runs)[:MOST_SETTINGS], FittingTable()
    table.column("run", 0)
    for head in HEADS:
        table.column(head, weights[head], right=head not in ("federation", "state"))
    for key in keys:
        table.column(key, 1)
    for row in runs:
        shown = [Text(cell) for cell in cells(row)]
        shown[1].stylize(STYLES.get(row.state, ""))
        table.row([Text(run_name(row)), *shown, *(plain(row.settings.get(key, "–"), 40) for key in keys)])
    return table


def _write(options: argparse.Namespace, runs: Sequence[Compared]) -> None:
    from headwater.server.report.compared_page import picture, render

    if options.svg:
        drawing = picture(runs)
        if not drawing:
            raise ConfigError(
                f"--svg {options.svg}",
                expected="a run with an evaluation",
                got="none with a finite value",
                hint="See evaluation.every and data.test.",
            )
        write_atomically(options.svg, drawing.encode())
    if options.html:
        write_atomically(options.html, render(runs, options.html).encode())


def _report(run: Compared) -> Path:
    """Its report, which is written where it is not there."""
    from headwater.server.report.page import write_report
    from headwater.server.storage.run_folder import RunFolder

    path = run.folder / "report.html"
    return path if path.is_file() else write_report(RunFolder(run.folder))


def _open(page: Path) -> None:
    """Show it; where there is no browser, say where it is."""
    if not webbrowser.open(page.resolve().as_uri()):
        print("No browser could be opened.", file=sys.stderr)
    print(page)
