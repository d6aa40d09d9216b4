"""``headwater server adapters list|export|average|rollback|unpin``: versions of a run's global adapter."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headwater.cli.output import as_json
from headwater.cli.server import average
from headwater.cli.server.connect import add_daemon, connect, take_words
from headwater.cli.server.exports import require_free, unpack
from headwater.errors import ConfigError
from headwater.text import number, plain

if TYPE_CHECKING:
    from headwater.proto.control import ControlClient
    from headwater.protocol.control import AdapterRow


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of all five."""
    actions = ["list", "export", "average", "rollback", "unpin"]
    parser.add_argument("action", choices=actions, help="what to do")
    add_daemon(
        parser,
        "[RUN] [VERSION]",
        what="the run (default: the latest), and for rollback and unpin the version",
    )
    which = "(DIR | --server HOST:PORT --identity FOLDER)"
    parser.usage = (
        f"{parser.prog} list {which} [RUN] [--json]\n"
        f"       {parser.prog} export {which} [RUN] [--version N] --out FOLDER\n"
        f"       {parser.prog} average {which} [RUN] (--last K | --versions N,N,…) --out FOLDER\n"
        f"       {parser.prog} rollback {which} [RUN] VERSION\n"
        f"       {parser.prog} unpin {which} [RUN] VERSION"
    )
    parser.add_argument("--version", type=int, default=0, metavar="N", help="to export (default: the best)")
    parser.add_argument("-o", "--out", type=Path, metavar="FOLDER", help="where it goes: new, or empty")
    average.configure(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace) -> int:
    """Do what ``options.action`` says; the exit code."""
    with connect(options) as client:
        match options.action:
            case "list":
                return _list(client, options)
            case "export":
                return _export(client, options)
            case "average":
                return average.average(client, options)
            case "unpin":
                return _unpin(client, options)
            case _:
                return _rollback(client, options)


def _list(client: ControlClient, options: argparse.Namespace) -> int:
    from headwater.cli.tables import adapters_table, show

    names = take_words(options, 0, 1)
    rows = client.adapters(names[0] if names else "")
    if options.json:
        print(as_json(rows))
    elif rows:
        print(f"run {rows[0].run}")
        show(adapters_table(rows, time.time()), sys.stdout)
    else:
        print("no adapter yet")
    return 0


def _export(client: ControlClient, options: argparse.Namespace) -> int:
    names = take_words(options, 0, 1)
    if options.out is None:
        who = "headwater server adapters export"
        raise ConfigError(who, expected="--out FOLDER, where the files go", got="no --out")
    if options.version < 0:
        raise ConfigError("--version", expected="at least 1", got=str(options.version))
    require_free(options.out)  # before the daemon is asked
    row = _chosen(client.adapters(names[0] if names else ""), options.version)
    size = unpack(client.export(row.run, row.version), options.out)
    if options.json:
        print(as_json(row))
    else:
        print(f"{options.out}: run {row.run}, version {row.version} ({_described(row)}), {size:,} bytes")
    return 0


def _chosen(rows: Sequence[AdapterRow], version: int) -> AdapterRow:
    """The version that was asked for; the best one, else the last, for 0."""
    if not rows:
        raise ConfigError(
            "headwater server adapters export", expected="a run with an adapter", got="none yet"
        )
    best = next((row for row in reversed(rows) if row.best), rows[-1])
    found = best if version == 0 else next((row for row in rows if row.version == version), None)
    if found is None:
        raise ConfigError(
            f"run {rows[0].run}: version {version}",
            expected=f"one of its versions, 1 to {rows[-1].version}",
            got="no such version",
            hint="See: headwater server adapters list",
        )
    return found


def _described(row: AdapterRow) -> str:
    """Which adapter it is, in a few words."""
    measured = f"{plain(row.metric, 40)} {number(row.value)}" if math.isfinite(row.value) else "not measured"
    return ", ".join([*(["the best"] if row.best else []), f"after round {row.round}", measured])


def _rollback(client: ControlClient, options: argparse.Namespace) -> int:
    run, version = _take_version(options)
    row = client.rollback(run, version)
    _show(row, f"run {row.run} goes on from version {version}, from its next round on:", options)
    return 0


def _unpin(client: ControlClient, options: argparse.Namespace) -> int:
    run, version = _take_version(options)
    row = client.unpin(run, version)
    _show(row, f"run {row.run}: version {version} is kept no longer than others:", options)
    return 0


def _take_version(options: argparse.Namespace) -> tuple[str, int]:
    words = take_words(options, 1, 2)
    run, version = words[0] if words[1:] else "", words[-1]
    if not (version.isascii() and version.isdigit()):
        raise ConfigError(
            "VERSION",
            expected="a version's number",
            got=ascii(version),
            hint="See: headwater server adapters list",
        )
    return run, int(version)


def _show(row: AdapterRow, said: str, options: argparse.Namespace) -> None:
    from headwater.cli.tables import adapters_table, show

    if options.json:
        print(as_json(row))
    else:
        print(said)
        show(adapters_table((row,), time.time()), sys.stdout)
