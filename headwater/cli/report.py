"""``headwater report DIR``: write a run folder's report again."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="a run folder")


def run(options: argparse.Namespace) -> int:
    """Write the report; print its path."""
    from headwater.server.report.page import write_report
    from headwater.server.storage.run_folder import RunFolder

    folder, _, _ = RunFolder.open(options.folder)
    print(write_report(folder))
    return 0
