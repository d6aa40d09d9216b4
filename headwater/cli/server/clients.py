"""``headwater server clients accept|revoke|list``: who may take part.

Asks the daemon if one is at work in the folder, else changes the registry itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from headwater.cli.server.connect import add_daemon, connect
from headwater.cli.verbs import VerbParser
from headwater.errors import ConfigError

if TYPE_CHECKING:
    from headwater.proto.control import ControlClient
    from headwater.protocol.control import ClientRow
    from headwater.server.workspace.workspace import Workspace

_PREFIX = "headwater-enrol-v1:"
_MOST_BYTES = 4 << 20
_COPY = "Copy the whole line that `headwater client enroll` printed."


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the actions and their arguments."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, parser_class=VerbParser)
    accept = actions.add_parser("accept", help="enrol devices by the lines that they printed")
    revoke = actions.add_parser("revoke", help="end a device's keys, at once")
    listing = actions.add_parser("list", help="show who is enrolled")
    for name, action in {"accept": accept, "revoke": revoke, "list": listing}.items():
        action.set_defaults(verb=name)
    lines = f"what the device printed, {_PREFIX}…, a file of such lines, or - for standard input"
    add_daemon(accept, "LINE …", what=lines)
    accept.add_argument("--fingerprint", help="accept only if the one device has this fingerprint")
    add_daemon(revoke, "NAME …", what="the enrolled names")
    add_daemon(listing)
    listing.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace) -> int:
    """Do what the action says."""
    with _enrolled(options) as enrolled:
        return {"accept": _accept, "revoke": _revoke, "list": _list}[options.verb](enrolled, options)


def _accept(enrolled: Enrolment, options: argparse.Namespace) -> int:
    from headwater.security.enrolment import read_request, same_fingerprint

    lines = _requests(_words(options, "LINE"))
    devices = {line: read_request(line) for line in lines}  # all of them, before one is accepted
    if options.fingerprint is not None:
        found = [device.fingerprint() for device in devices.values()]
        if len(found) != 1 or not same_fingerprint(found[0], options.fingerprint):
            raise ConfigError(
                "--fingerprint",
                expected=options.fingerprint,
                got=", ".join(found),
                hint="It is not the line that the owner's device printed, or a digit was misheard. "
                "Nothing was accepted.",
            )
    for line, device in devices.items():
        enrolled.accept(line)
        print(f"{device.name}: accepted, fingerprint {device.fingerprint()}")
    if options.fingerprint is None:
        print("Compare it with what the owner's device shows, by voice. If it differs, revoke the name.")
    return 0


def _revoke(enrolled: Enrolment, options: argparse.Namespace) -> int:
    for name in _words(options, "NAME"):
        enrolled.revoke(name)
        print(f"{name}: revoked; both of its keys have ended")
    return 0


def _list(enrolled: Enrolment, options: argparse.Namespace) -> int:
    from headwater.text import plain

    if options.words:
        who = "headwater server clients list"
        raise ConfigError(who, expected="nothing behind the folder", got=ascii(options.words[0]))
    rows = enrolled.rows()
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return 0
    table = [("CLIENT", "STATE", "FINGERPRINT", "VERSION", "LAST ERROR")]
    table += [(r.client, r.state, r.fingerprint, plain(r.version, 40), plain(r.last_error)) for r in rows]
    widths = [max(len(line[i]) for line in table) for i in range(4)]
    for line in table:
        print("  ".join([*(cell.ljust(w) for cell, w in zip(line, widths, strict=False)), line[4]]).rstrip())
    if not rows:
        print("Nobody yet. A device enrols with: headwater client enroll", file=sys.stderr)
    return 0


def _words(options: argparse.Namespace, what: str) -> list[str]:
    if not options.words:
        who = f"headwater server clients {options.verb}"
        raise ConfigError(who, expected=f"at least one {what}", got="none")
    return list(options.words)


def _requests(words: Sequence[str]) -> list[str]:
    """The enrolment requests that the arguments stand for: as they are, or in files.

    One that a mail program wrapped comes in as several arguments if nobody put quotation marks around it.
    """
    from headwater.security.enrolment import find_requests

    told = "\n".join(words)
    if any(word.strip("<> ").startswith(_PREFIX[:10]) or _PREFIX in word or "\n" in word for word in words):
        if found := find_requests(told):
            return list(dict.fromkeys(found))
        raise _no_request(words[0][:40], "a line that was cut on its way")
    return [line for word in words for line in _in_file(word)]


def _in_file(name: str) -> Sequence[str]:
    """The enrolment requests in a file, or in what comes on standard input."""
    from headwater.security.enrolment import find_requests

    try:
        if name == "-":
            text = sys.stdin.read(_MOST_BYTES)
        else:
            with Path(name).open(encoding="utf-8") as file:
                text = file.read(_MOST_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise _no_request(name[:40], getattr(error, "strerror", None) or str(error)) from None
    lines = list(dict.fromkeys(find_requests(text)))
    if not lines:
        raise ConfigError(
            f"enrolment requests in {name}", expected=f"lines {_PREFIX}…", got="none", hint=_COPY
        )
    return lines


def _no_request(what: str, got: str) -> ConfigError:
    expected = f"a line {_PREFIX}…, or a file of such lines"
    return ConfigError(f"enrolment request {what!r}", expected=expected, got=got, hint=_COPY)


class Enrolment(Protocol):
    """What the three actions need of a daemon, or of a registry."""

    def accept(self, request: str) -> object:
        """Enrol the device that made this line."""

    def revoke(self, client: str) -> object:
        """End its keys."""

    def rows(self) -> Sequence[ClientRow]:
        """Everybody, sorted."""


@contextmanager
def _enrolled(options: argparse.Namespace) -> Iterator[Enrolment]:
    """The daemon that ``options`` name, or the folder's registry where no daemon is at work."""
    if options.server is None and options.words:
        from headwater.server.workspace.workspace import Workspace

        workspace = Workspace.open(Path(options.words[0]))
        if workspace.holder() is None:
            options.words.pop(0)
            yield _Local(workspace)
            return
    with connect(options) as control:
        yield _Daemon(control)


class _Daemon:
    def __init__(self, control: ControlClient) -> None:
        self._control = control
        self.accept, self.revoke = control.accept, control.revoke

    def rows(self) -> Sequence[ClientRow]:
        return self._control.status().clients


class _Local:
    def __init__(self, workspace: Workspace) -> None:
        self._registry = workspace.registry()
        self.revoke = self._registry.revoke

    def accept(self, request: str) -> object:
        from headwater.security.enrolment import read_request

        return self._registry.accept(read_request(request))

    def rows(self) -> Sequence[ClientRow]:
        from headwater.protocol.control import ClientRow

        nothing = {"examples": 0, "accepted_rounds": 0, "failed_rounds": 0, "bytes_up": 0, "bytes_down": 0}
        return [
            ClientRow(
                client=name,
                state="revoked" if record.revoked_at else "offline",
                fingerprint=record.public.fingerprint(),
                seen_s_ago=None,
                doing="",
                version="",
                last_error="",
                **nothing,
            )
            for name, record in self._registry.by_name().items()
        ]
