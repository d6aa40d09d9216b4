"""``headwater report DIR``: write a run folder's report again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from headwater.errors import ConfigError
from headwater.text import human_joules, human_seconds

if TYPE_CHECKING:
    from headwater.server.storage.run_folder import RunFolder


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="a run folder")
    parser.add_argument(
        "--time-to",
        type=float,
        metavar="VALUE",
        help="also print when, in simulated time, the deciding metric was first as good as this",
    )


def run(options: argparse.Namespace) -> int:
    """Write the report; print its path."""
    from headwater.server.report.page import write_report
    from headwater.server.storage.run_folder import RunFolder

    folder, _, _ = RunFolder.open(options.folder)
    if options.time_to is not None:
        _print_time_to(folder, options.time_to)
    print(write_report(folder))
    return 0


def _print_time_to(folder: RunFolder, value: float) -> None:
    from headwater.server.report.data import read_run
    from headwater.server.report.simulated import is_simulated, time_to

    run = read_run(folder)
    if not is_simulated(run):
        raise ConfigError(
            f"--time-to, run {folder.path}",
            expected="a run with [simulation.devices]",
            got="one in real time",
            hint="Its rounds' seconds stand in rounds.jsonl.",
        )
    found = time_to(run, value)
    reached = "not reached"
    if found is not None:
        energy = f", {human_joules(found.joules)}" if found.joules else ""
        reached = f"{human_seconds(found.seconds)} (round {found.round}{energy})"
    print(f"time to {run.metric} {value:g}: {reached}")
