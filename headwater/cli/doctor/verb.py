"""``headwater doctor [FILE]``: look at this machine, say what is missing and what to do about it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from headwater.cli.doctor import machine, member, packages
from headwater.cli.doctor.findings import Finding
from headwater.cli.tables import show
from headwater.config.copied import server_address
from headwater.errors import ConfigError
from headwater.text import json_safe, plain

_STYLES = {"ok": "green", "note": "yellow", "bad": "bold red"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="also what this needs: a federation file, an agent.toml, or a server's folder",
    )
    parser.add_argument("--server", metavar="HOST:PORT", help="also whether it answers, and its clock")
    parser.add_argument(
        "--ca", type=Path, metavar="FILE", help="the organiser's ca.pem, to check who answers"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")


def run(options: argparse.Namespace) -> int:
    """Print what was found; the exit code of the first bad finding, or 0."""
    found = list(_look(options))
    if options.json:
        content = {
            "bad": sum(f.state == "bad" for f in found),
            "findings": [dataclasses.asdict(f) for f in found],
        }
        print(json.dumps(json_safe(content), ensure_ascii=False))
    else:
        show(_lines(found), sys.stdout)
    return next((finding.exit_code for finding in found if finding.state == "bad"), 0)


def _look(options: argparse.Namespace) -> Iterator[Finding]:
    if options.server:
        try:
            address = server_address(options.server)
        except ValueError as error:
            raise ConfigError("--server", expected=str(error), got=options.server) from None
    yield from packages.installation()
    yield from packages.requirements()
    yield from packages.accelerator()
    yield from machine.memory()
    yield from machine.disks()
    yield from machine.file_limit()
    yield from machine.clock()
    yield from machine.port("engine network", "127.0.0.1", 0)
    yield from machine.caches()
    if options.file:
        yield from member.needs(options.file)
    if options.server:
        yield from member.reach(address, options.ca)


def _lines(found: list[Finding]) -> RenderableType:
    wide = max(len(finding.check) for finding in found)
    lines = []
    for finding in found:
        line = Text.assemble(
            (f"{finding.state:<5}", _STYLES[finding.state]),
            f"{plain(finding.check, 120):<{wide}}  {plain(finding.text, 400)}",
        )
        lines += [line, *([Text(f"{'':<5}{'':<{wide}}  → {finding.advice}")] if finding.advice else [])]
    bad = sum(finding.state == "bad" for finding in found)
    last = f"{bad} of {len(found)} are bad" if bad else "Nothing is wrong"
    return Group(*lines, Text(), Text(f"{last}.", style="bold red" if bad else "bold green"))
