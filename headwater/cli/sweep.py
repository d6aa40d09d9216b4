"""``headwater sweep``: a grid of federations over one base model, and a table of what they came to."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.text import Text

from headwater.bits import enter
from headwater.cli.fitting import FittingTable
from headwater.cli.simulate import defects_kept, stop_on_interrupt
from headwater.cli.tables import show
from headwater.errors import ConfigError, HeadwaterError
from headwater.process_memory import importing
from headwater.simulation.sweeps.folder import SweepFolder
from headwater.simulation.sweeps.outcome import summary_of
from headwater.simulation.sweeps.plan import Sweep, load_sweep
from headwater.simulation.sweeps.problems import home_class
from headwater.text import json_safe

if TYPE_CHECKING:  # torch
    from headwater.simulation.sweeps.run import SweepResult
    from headwater.simulation.sweeps.tables import Tables
    from headwater.simulation.sweeps.words import Cells


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", type=Path, metavar="SWEEP.toml")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder (default: runs/NAME-FILE); points that are there count",
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="points that are run at once")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override a key of all")
    parser.add_argument("--dry-run", action="store_true", help="list the points; run nothing")
    parser.add_argument("--json", action="store_true", help="print one line of JSON, not tables")
    parser.add_argument("--quiet", action="store_true", help="print only failures and the folder's path")


def run(options: argparse.Namespace) -> int:
    """Run what is left; print the tables and, last, the folder."""
    if options.workers < 1:
        raise ConfigError("--workers", expected="at least 1", got=str(options.workers))
    sweep = load_sweep(options.file, options.set)  # before torch is imported
    out = options.out or Path("runs") / f"{sweep.name}-{options.file.stem}".replace("/", "-")
    if options.dry_run:
        show(_listing(sweep, out), sys.stdout)
        return 0
    modes = {point.loaded.settings.federation.bits for point in sweep.points}
    if len(modes) > 1:
        raise ConfigError("federation.bits", expected="one mode for all points of a sweep", got="both")
    enter(modes.pop(), own_process=options.own_process)

    with importing(for_good=options.own_process):
        from headwater.cli.sweep_progress import sweep_observer
        from headwater.simulation.sweeps.files import as_json, write_tables
        from headwater.simulation.sweeps.run import run_sweep

    with (
        defects_kept(out, "run the sweep"),
        stop_on_interrupt() as stopping,
        sweep_observer(Console(stderr=True), options.quiet) as observer,
    ):
        result = run_sweep(
            sweep, out, workers=options.workers, observer=observer, should_stop=lambda: bool(stopping)
        )
        tables = write_tables(result)
    if options.json:
        print(json.dumps(json_safe(as_json(result, tables)), ensure_ascii=False))
    elif not options.quiet:
        show(_tables(result, tables), sys.stdout)
    if result.stopped:
        left = len(sweep.points) - len(result.outcomes)
        # not through rich: it would break the line that is there to be copied
        print(f"Stopped, {left} points are left. Go on with: {_command(options, out)}", file=sys.stderr)
    print(out, flush=True)
    if result.failed:
        raise _failed(result)
    return 0


def _command(options: argparse.Namespace, out: Path) -> str:
    parts = ["headwater", "sweep", str(options.file), "--out", str(out)]
    parts += [part for text in options.set for part in ("--set", text)]
    parts += ["--workers", str(options.workers)] if options.workers > 1 else []
    return shlex.join(parts)


def _failed(result: SweepResult) -> HeadwaterError:
    """The first failure's class, for the exit code, and all of them in words."""
    names = {point.id: point.name for point in result.sweep.points}
    shown = [f"{names[i]} ({error})" for i, error in list(result.failed.items())[:3]]
    more = f"; and {len(result.failed) - 3} more" if len(result.failed) > 3 else ""
    first = next(iter(result.failed.values()))
    return home_class(first)(
        "sweep finished",
        expected=f"all of its {len(result.sweep.points)} points to run to their end",
        got=f"{len(result.failed)} that failed: {'; '.join(shown)}{more}",
        hint="The tables are written, without them. The same command runs only them again.",
    )


def _listing(sweep: Sweep, out: Path) -> RenderableType:
    """Every point, whether it is done, and where its run folder is or will be."""
    places, _ = SweepFolder(out).places(sweep.points)
    table = FittingTable()
    for title, weight in (("point", 0), ("state", 0), ("folder", 1)):
        table.column(title, weight)
    for point in sweep.points:
        path = places[point.id]
        done = summary_of(point, path) is not None
        state = "done" if done else "begun" if (path / "rounds.jsonl").exists() else "to run"
        table.row([Text(point.name), state, Text(str(path))])
    return table


def _tables(result: SweepResult, tables: Tables) -> RenderableType:
    from headwater.simulation.sweeps import words

    parts: list[RenderableType] = [Text(words.title(result), style="bold"), Text()]
    parts.append(_fitting(words.combinations(result, tables)))
    if tables.effects:
        head = "Effect of each axis: mean ± spread over the combinations of the others"
        parts += [Text(), Text(head, style="bold"), Text(), _fitting(words.effects(result, tables))]
    parts += [Text(), *map(Text, filter(None, [words.best(result, tables), *words.remarks(result, tables)]))]
    return Group(*parts)


def _fitting(cells: Cells) -> FittingTable:
    table = FittingTable()
    for number, head in enumerate(cells.heads):
        label = number < cells.names or number == cells.names  # labels and the metric stay
        table.column(head, 0 if label else len(cells.heads) - number, right=number >= cells.names)
    for row, stands_out in cells.rows:
        table.row([Text(cell) for cell in row], style="bold" if stands_out else "")
    return table
