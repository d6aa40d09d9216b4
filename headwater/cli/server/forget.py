"""``headwater server forget DIR CLIENT``: an owner leaves; the run goes on without what it sent."""

from __future__ import annotations

import argparse

from headwater.cli.output import as_json
from headwater.cli.server.connect import add_daemon, connect, take_words


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_daemon(parser, "[RUN] CLIENT", what="the run (default: the latest), and the client's name")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace) -> int:
    """Ask the daemon; say from where the run goes on, and what is not undone."""
    with connect(options) as daemon:
        words = take_words(options, 1, 2)
        run_id, client = words[0] if words[1:] else "", words[-1]
        row = daemon.forget(run_id, client)
        newest = daemon.adapters(row.run)[-1]
    if options.json:
        print(as_json(row))
        return 0
    print(f"{client}: revoked; both of its keys have ended")
    if row.note.startswith("nothing of"):
        print(f"run {row.run}: {row.note}: nothing is to be trained again")
        return 0
    again = newest.round - row.round
    print(f"run {row.run}: after its open round it goes on from version {row.version}, of round {row.round}.")
    print(f"{again} rounds are trained again. Versions that hold something of it lose their values.")
    print("Not undone: what was exported or sent out before, and what other devices keep of those rounds.")
    return 0
