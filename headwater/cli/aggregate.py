"""``headwater aggregate``: an edge aggregator between agents and the server."""

from __future__ import annotations

import argparse
from pathlib import Path

from headwater.bits import enter
from headwater.config.daemon import load_daemon
from headwater.config.edge import load_edge


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the edge file, such as edge.toml")
    parser.add_argument(
        "--enroll",
        action="store_true",
        help="make its keys if there are none, and print the line for the organiser, instead of running",
    )


def run(options: argparse.Namespace) -> int:
    """Enrol, or run until SIGTERM or Ctrl-C."""
    settings = load_edge(options.config)
    if not options.enroll:
        clients = load_daemon(settings.path(settings.file.clients) / "server.toml")
        enter(clients.bits, own_process=options.own_process)
    from headwater.edge.daemon import identity_of, run_edge
    from headwater.security.enrolment import make_request

    if not options.enroll:
        return run_edge(settings)
    identity, name = identity_of(settings), settings.file.name
    print(make_request(identity))
    print("\nGive this line to the organiser. It holds no secret.")
    print(f"Compare the fingerprint over another channel: {identity.public.fingerprint()}")
    print(f"The organiser's server.toml must say for how many clients it may speak: [edges] {name} = 100")
    return 0
