"""``headwater config check FILE``: is the federation file right? Imports no torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from headwater.config import load_federation


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("action", choices=["check", "show"], help="check it, or show it with every default")
    parser.add_argument("file", type=Path, metavar="FEDERATION.toml")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override a key")


def run(options: argparse.Namespace) -> int:
    """Check the file; print its hash, or all of it."""
    loaded = load_federation(options.file, options.set)
    if options.action == "show":
        print(loaded.to_toml(), end="")
    else:
        settings = loaded.settings
        print(
            f"{options.file}: right. {settings.federation.name}: {settings.model.kind}, "
            f"{settings.training.kind}, {settings.strategy.kind}, {settings.federation.rounds} rounds; "
            f"sha256 {loaded.sha256()}"
        )
    return 0
