"""``headwater completion SHELL``: print a script that completes verbs, options and files."""

from __future__ import annotations

import argparse

from headwater.cli.completion.levels import levels
from headwater.cli.completion.shells import SHELLS


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("shell", choices=list(SHELLS), help="whose script to print")


def run(options: argparse.Namespace) -> int:
    """Print it."""
    from headwater.cli.main import make_parser

    print(SHELLS[options.shell](list(levels(make_parser()))), end="")
    return 0
