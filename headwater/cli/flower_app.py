"""``headwater flower-app FILE -o DIR``: a federation as an app of Flower's."""

from __future__ import annotations

import argparse
from pathlib import Path

from headwater.config import load_federation
from headwater.errors import ConfigError, DataError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", type=Path, metavar="FEDERATION.toml")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="the app: a new folder")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override a key")
    parser.add_argument(
        "--clients", type=int, metavar="N", help="nodes to wait for (default: the clients in the data)"
    )


def run(options: argparse.Namespace) -> int:
    """Write the app; print the command that runs it."""
    loaded = load_federation(options.file, options.set)
    if options.clients is not None and options.clients < 1:
        raise ConfigError("--clients", expected="at least 1", got=str(options.clients))
    from headwater.data.federated import FederatedData
    from headwater.flower_app.write import write_app
    from headwater.seeds.keys import Key

    clients = options.clients
    if clients is None:
        try:
            key = Key.root(loaded.settings.federation.seed)
            clients = len(FederatedData.open(loaded, None, key, check=False).clients)
        except DataError as error:
            hint = "Where every node has rows of its own, say how many nodes: --clients N"
            raise DataError(error.who, expected=error.expected, got=error.got, hint=hint) from error
    write_app(loaded, options.out, clients=clients)
    print(f"cd {options.out} && flwr run .")
    return 0
