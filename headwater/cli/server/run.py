"""``headwater server status|watch|submit|pause|resume|stop|set|adapters``: steer a running daemon.

One function per verb; each asks the daemon's control port and prints what it answers.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from headwater.cli.output import as_json
from headwater.cli.server.connect import add_daemon, connect, take_words
from headwater.errors import ConfigError
from headwater.protocol.control import RunRow

if TYPE_CHECKING:
    from headwater.proto.control import ControlClient

RUN = "the run (default: the latest)"
PARTS: dict[str, tuple[str, str]] = {
    "status": ("", ""),
    "watch": ("", ""),
    "submit": ("FEDERATION.toml", "the federation file"),
    "pause": ("[RUN]", RUN),
    "resume": ("[RUN]", RUN),
    "stop": ("[RUN]", RUN),
    "set": ("[RUN] KEY=VALUE …", f"{RUN}; then rounds=20 deadline_s=600 min_clients=3 and the like"),
}
"""Each verb's own arguments and their help."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb that ``parser.get_default("verb")`` names."""
    verb = parser.get_default("verb")
    if verb == "adapters":
        from headwater.cli.server import adapters as server_adapters

        server_adapters.configure(parser)
        return
    words, about = PARTS[verb]
    add_daemon(parser, words, what=about)
    what = "one JSON object per event, one per line" if verb == "watch" else "as JSON"
    parser.add_argument("--json", action="store_true", help=what)
    if verb == "watch":
        parser.add_argument("--all", action="store_true", help="begin with all events that are remembered")
    if verb in ("submit", "resume"):
        default = "its folder" if verb == "submit" else "as before"
        parser.add_argument(
            "--folder", metavar="PATH",
            help=f"where the file's relative paths start, on the daemon's machine (default: {default})",
        )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Do what ``options.verb`` says; the exit code."""
    if options.verb == "adapters":
        from headwater.cli.server import adapters as server_adapters

        return server_adapters.run(options)
    functions: dict[str, Callable[[ControlClient, argparse.Namespace], int]] = {
        "status": status,
        "watch": watch,
        "submit": submit,
        "pause": pause,
        "resume": resume,
        "stop": stop,
        "set": change,
    }
    with connect(options) as client:
        return functions[options.verb](client, options)


def status(client: ControlClient, options: argparse.Namespace) -> int:
    """Print the daemon's tables."""
    take_words(options, 0, 0)
    found = client.status()
    if options.json:
        print(as_json(found))
    else:
        from headwater.cli.tables import show, status_view

        show(status_view(found, time.time()), sys.stdout)
    return 0


def watch(client: ControlClient, options: argparse.Namespace) -> int:
    """Print events as they come, until interrupted."""
    from headwater.cli.server.watch import follow

    take_words(options, 0, 0)
    return follow(client, after=-1 if options.all else 0, as_json=options.json)


def submit(client: ControlClient, options: argparse.Namespace) -> int:
    """Check the file here, so that an error names it, then queue it."""
    from headwater.config import load_federation

    (name,) = take_words(options, 1, 1)
    file = Path(name)
    loaded = load_federation(file)
    if options.folder is None and options.server is not None:
        raise ConfigError(
            "headwater server submit", expected="--folder, since the daemon is elsewhere", got="none",
            hint="Say where the file's relative paths start on the daemon's machine.",
        )  # fmt: skip
    folder = loaded.folder if options.folder is None else Path(options.folder)
    return _answer(client.submit(file.read_text(encoding="utf-8"), folder), options)


def pause(client: ControlClient, options: argparse.Namespace) -> int:
    """End the open round, then wait."""
    return _answer(client.pause(_run_named(options)), options)


def resume(client: ControlClient, options: argparse.Namespace) -> int:
    """Go on with a run that waits for the organiser."""
    if options.folder is not None and options.server is None:
        options.folder = Path(options.folder).resolve()
    folder = None if options.folder is None else Path(options.folder)
    return _answer(client.resume(_run_named(options), folder), options)


def stop(client: ControlClient, options: argparse.Namespace) -> int:
    """End the run with what it has."""
    return _answer(client.stop(_run_named(options)), options)


def change(client: ControlClient, options: argparse.Namespace) -> int:
    """Change settings, of time at once, others from the next round on."""
    changes = {}
    for word in [w for w in options.words if "=" in w]:
        key, _, value = word.partition("=")
        if not key.strip() or key.strip() in changes:
            raise ConfigError(
                f"headwater server set {word}", expected="each setting once, as KEY=VALUE", got=repr(key)
            )
        changes[key.strip()] = value.strip()
    options.words = [w for w in options.words if "=" not in w]
    run = _run_named(options)
    if not changes:
        raise ConfigError(
            "headwater server set",
            expected="one or more settings as KEY=VALUE",
            got="none",
            hint="For example: headwater server set DIR deadline_s=600",
        )
    return _answer(client.change(run, changes), options)


def _run_named(options: argparse.Namespace) -> str:
    """The run that was named; empty for the latest one, as the daemon takes it."""
    return next(iter(take_words(options, 0, 1)), "")


def _answer(row: RunRow, options: argparse.Namespace) -> int:
    if options.json:
        print(as_json(row))
    else:
        from headwater.cli.tables import run_line, show

        show(run_line(row), sys.stdout)
    return 0
