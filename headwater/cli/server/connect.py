"""Which daemon a command is for: ``DIR``, or ``--server HOST:PORT --identity FOLDER``. No grpc until asked.

Entry points: :func:`add_daemon` for a verb's parser, :func:`connect` for its options.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from headwater.config.copied import server_address
from headwater.config.daemon import load_daemon, split_address
from headwater.errors import ConfigError

if TYPE_CHECKING:
    from headwater.proto.control import ControlClient

if TYPE_CHECKING:
    from headwater.proto.control import ControlClient

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def add_daemon(parser: argparse.ArgumentParser, words: str = "", *, what: str = "") -> None:
    """Declare ``DIR``, or ``--server`` and ``--identity`` instead; then a verb's own ``words``.

    They arrive together as ``options.words``: :func:`connect` takes the first away if it is ``DIR``.

    Args:
        parser: the verb's.
        words: how the verb's own positional arguments are called in the usage, such as ``[RUN]``.
        what: their help.
    """
    prog = parser.prog
    tail = f" {words}" if words else ""
    parser.usage = (
        f"{prog} DIR{tail} [options]\n       {prog} --server HOST:PORT --identity FOLDER{tail} [options]"
    )
    told = f"the server's folder, on its own machine{'; then ' + what if what else ''}"
    parser.add_argument("words", nargs="*", metavar=f"DIR{tail}", help=told)
    parser.add_argument("--server", metavar="HOST:PORT", help="a daemon elsewhere: its control port")
    parser.add_argument(
        "--identity", type=Path, metavar="FOLDER", help="with ca.pem, organiser.pem and organiser.key"
    )


def connect(options: argparse.Namespace) -> ControlClient:
    """The daemon's control port; ``options.words`` keeps only the verb's own.

    Raises:
        ConfigError: no daemon is named, or two.
        StorageError: a key is missing, or others may read it.
    """
    if (options.server is None) != (options.identity is None):
        raise ConfigError(
            "headwater server", expected="--server and --identity together", got="only one of them",
            hint="Or name the server's folder, on its own machine.",
        )  # fmt: skip
    if options.server is not None:
        address, identity = _checked(options.server), options.identity
        start = "headwater server run DIR, on its machine"
    else:
        if not options.words:
            raise ConfigError(
                "headwater server",
                expected="the server's folder, or --server and --identity",
                got="neither",
                hint="For example: headwater server status DIR",
            )
        folder = Path(options.words.pop(0))
        host, port = split_address(load_daemon(folder / "server.toml").listen.control)
        host = _ANY.get(host, host)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        identity, start = folder / "secrets", f"headwater server run {folder}"
    return _client(address, identity, start)


def _client(address: str, identity: Path, start: str) -> ControlClient:
    # before grpc is imported: it would print a failed handshake itself, beside our error
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from headwater.proto.control import ControlClient
    from headwater.security.keyfiles import read_secret

    hint = (
        "It takes ca.pem, organiser.pem and organiser.key of the server's secrets/. "
        "If the key is lost, make another: headwater server renew DIR --organiser"
    )
    ca, cert = (_read(identity / name, hint) for name in ("ca.pem", "organiser.pem"))
    key = read_secret(identity / "organiser.key", hint=hint)
    return ControlClient(address, ca, cert, key, start=start)


def _read(path: Path, hint: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            str(path), expected="a certificate", got=error.strerror or str(error), hint=hint
        ) from None


def _checked(address: str) -> str:
    try:
        return server_address(address)
    except ValueError as error:
        hint = "It is the control port, 8444 unless server.toml says otherwise."
        raise ConfigError("--server", expected=str(error), got=ascii(address), hint=hint) from None


def take_words(options: argparse.Namespace, least: int, most: int) -> list[str]:
    """The verb's own positional arguments.

    Raises:
        ConfigError: too few or too many.
    """
    words: list[str] = options.words
    if not least <= len(words) <= most:
        wanted = str(most) if least == most else f"{least} to {most}"
        raise ConfigError(
            f"headwater server {options.verb}", expected=f"{wanted} arguments behind the server's folder",
            got=" ".join(map(ascii, words)) or "none", hint=f"See: headwater server {options.verb} --help",
        )  # fmt: skip
    return words
