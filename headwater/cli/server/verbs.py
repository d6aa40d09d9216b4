"""``headwater server``: the organiser's verbs. A table; each verb's module is imported when it is called."""

from __future__ import annotations

import argparse
from typing import NoReturn

from headwater.cli.verbs import Verb, add_verbs

_FOLDER, _RUN = "headwater.cli.server.folder", "headwater.cli.server.run"
VERBS = {
    "init": Verb("make a server's folder: settings, authority, keys", _FOLDER),
    "run": Verb("run the daemon in the foreground", _FOLDER),
    "clients": Verb("accept, revoke and list devices", "headwater.cli.server.clients"),
    "submit": Verb("queue a federation", _RUN),
    "status": Verb("show runs and clients", _RUN),
    "watch": Verb("follow what happens", _RUN),
    "page": Verb("print the status page's link, with the token that opens it", _FOLDER),
    "pause": Verb("pause a run after its open round", _RUN),
    "resume": Verb("go on with a paused run", _RUN),
    "stop": Verb("end a run after its open round", _RUN),
    "set": Verb("change a run's rounds, deadline or cohort from its next round on", _RUN),
    "adapters": Verb("list, export and roll back a run's adapter versions", _RUN),
    "forget": Verb("end a client's part, and train on without what it sent", "headwater.cli.server.forget"),
    "backup": Verb("write the folder to a tar, also while the daemon runs", _FOLDER),
    "restore": Verb("make a folder from a backup", _FOLDER),
    "renew": Verb("renew certificates, keys and the web token", _FOLDER),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verbs."""
    add_verbs(parser, VERBS)


def run(options: argparse.Namespace) -> NoReturn:
    """Every verb has its own."""
    raise AssertionError(options)
