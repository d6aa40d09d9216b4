"""``headwater server init|run|backup|restore|renew``: what is done with a server's folder itself."""

from __future__ import annotations

import argparse
import os
import shlex
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from headwater.bits import enter
from headwater.config.daemon import split_address
from headwater.errors import ConfigError

if TYPE_CHECKING:
    from headwater.config import LoadedFederation

_STARTS_AGAIN = "A daemon that is running takes it when it starts again."


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the parser's verb."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="the server's folder")
    add: Callable[..., argparse.Action] = parser.add_argument
    match parser.get_default("verb"):
        case "init":
            add("--names", metavar="A,B", help="names and addresses by which agents reach it, with commas")
            add("--name", default="headwater", help="of the authority, for people")
            add("--listen", metavar="HOST:PORT", help="for agents (default: 0.0.0.0:8443)")
            add("--control", metavar="HOST:PORT", help="for the organiser (default: 127.0.0.1:8444)")
            add("--web", metavar="HOST:PORT", help="of the status page (default: 127.0.0.1:8445)")
            add("--federation", type=Path, metavar="FILE", help="becomes federation.toml")
        case "backup":
            add("archive", type=Path, metavar="FILE.tar", help="a new file")
            add("--with-secrets", action="store_true", help="private keys, too: keep the file like a key")
        case "restore":
            add("archive", type=Path, metavar="FILE.tar", help="a backup")
        case "renew":
            add("--organiser", action="store_true", help="the organiser's key and certificate")
            add("--token", action="store_true", help="the web page's token")
            add("--authority", action="store_true", help="a new authority: every agent needs the new ca.pem")


def run(options: argparse.Namespace) -> int:
    """Do what the verb says."""
    os.umask(0o077)  # whatever is written from here on is nobody else's
    verbs = {
        "init": _init,
        "run": _run,
        "page": _page,
        "backup": _backup,
        "restore": _restore,
        "renew": _renew,
    }
    return verbs[options.verb](options)


def _init(options: argparse.Namespace) -> int:
    from headwater.config import load_federation
    from headwater.security.certificates import describe
    from headwater.server.workspace.workspace import Workspace

    text, loaded = None, None
    if options.federation is not None:
        loaded = load_federation(options.federation)
        text = options.federation.read_text(encoding="utf-8")
    names = options.names.split(",") if options.names else _own_names(options.listen)
    workspace = Workspace.init(
        options.folder,
        names=[name.strip() for name in names],
        name=options.name,
        fleet=options.listen,
        control=options.control,
        web=options.web,
        federation=text,
        bits="machine" if loaded is None else loaded.settings.federation.bits,
    )
    listen, secrets = workspace.settings.listen, workspace.credentials
    folder = shlex.quote(str(options.folder))
    port = split_address(listen.fleet)[1]
    print(f"{options.folder}: made.")
    print(f"  {describe(secrets.server()[0])}")
    print(f"  {describe(secrets.ca())}")
    print(f"Owners need {secrets.folder / 'ca.pem'}, which is not secret, and its SHA-256 to compare.")
    if not options.names:
        print(f"Agents must reach this server as {' or '.join(listen.names)}; for others give --names.")
    if loaded is not None:
        _tell_moved(loaded, options.folder)
    print("\nStart the server:")
    print(f"  headwater server run {folder}")
    print("An owner enrols a device, with ca.pem beside agent.toml, and you accept the line it prints:")
    print(f"  headwater client init agent.toml --name NAME --server {_joined(listen.names[0], port)}")
    print("  headwater client enroll agent.toml")
    print(f"  headwater server clients accept {folder} LINE")
    return 0


def _run(options: argparse.Namespace) -> int:
    from headwater.server.workspace.workspace import Workspace

    workspace = Workspace.open(options.folder)
    enter(workspace.settings.bits, own_process=options.own_process)
    # before grpc is imported: a stranger's failed handshakes would fill standard error
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from headwater.server.daemon.daemon import run as run_daemon  # loads much: once the folder is in order

    return run_daemon(workspace)


def _page(options: argparse.Namespace) -> int:
    """Print the status page's link; the token in it is what opens the page."""
    from headwater.server.workspace.workspace import Workspace

    workspace = Workspace.open(options.folder)
    print(f"http://{workspace.settings.listen.web}/#token={workspace.credentials.web_token()}")
    return 0


def _backup(options: argparse.Namespace) -> int:
    from headwater.server.workspace.backup import backup
    from headwater.server.workspace.workspace import Workspace

    workspace = Workspace(options.folder)  # not opened: what is out of order must not keep it from a backup
    facts = backup(workspace, options.archive, with_secrets=options.with_secrets)
    print(f"{options.archive}: {facts.files} files, {facts.bytes / 1e6:.1f} MB, read back and compared.")
    if facts.secrets:
        print("It holds PRIVATE KEYS (rights 0600): whoever has it can be this server. Keep it encrypted.")
    else:
        print(f"Without keys: keep a copy of {workspace.credentials.folder} apart, or use --with-secrets.")
    return 0


def _restore(options: argparse.Namespace) -> int:
    from headwater.server.workspace.backup import restore

    facts = restore(options.folder, options.archive)
    folder = shlex.quote(str(options.folder))
    print(f"{options.folder}: {facts.files} files of {facts.created}, headwater {facts.version}.")
    print("Who was revoked since then is enrolled again: revoke them once more before you start.")
    if not facts.secrets:
        print("The backup holds no keys. Before you start the server, either put your copy back:")
        print(f"  cp -r COPY/secrets {folder}/ && chmod 700 {folder}/secrets && chmod 600 {folder}/secrets/*")
        print("or make a new authority, whose ca.pem every owner then needs:")
        print(f"  headwater server renew {folder} --authority")
    print("The old server must not run any more. Start this one:")
    print(f"  headwater server run {folder}")
    return 0


def _renew(options: argparse.Namespace) -> int:
    from headwater.security.certificates import describe
    from headwater.server.workspace.workspace import Workspace

    workspace = Workspace(options.folder)
    settings, secrets = workspace.settings, workspace.credentials
    names = settings.listen.certificate_names()
    if options.authority:
        if options.organiser or options.token:
            raise ConfigError(
                "--authority", expected="no option beside it, since it renews everything", got="another"
            )
        if holder := workspace.holder():
            raise ConfigError(
                f"server folder {options.folder}",
                expected="a folder in which no daemon runs",
                got=f"one that process {holder} runs in",
                hint="A new authority changes every key: end the daemon first.",
            )
        secrets.renew_authority(settings.name, names)
        print(describe(secrets.ca()))
        print(f"Agents trust the old authority: give each owner {secrets.folder / 'ca.pem'} and its SHA-256.")
        print("Devices keep their keys and need not enrol again.")
        return 0
    if options.organiser:
        print(secrets.renew_organiser())
        print("The old organiser.pem stays good until it ends; if its key was stolen, use --authority.")
    if options.token:
        secrets.renew_token()
        print(f"{secrets.folder / 'web.token'}: new. {_STARTS_AGAIN}")
    if not options.organiser and not options.token:
        print(secrets.renew_server(names))
        print(f"Agents go on as before. {_STARTS_AGAIN}")
    return 0


def _tell_moved(loaded: LoadedFederation, folder: Path) -> None:
    """Which relative paths of a federation file that was copied to ``folder`` lead nowhere from there."""
    from headwater.config.data import NoData
    from headwater.config.model import VectorModel

    settings = loaded.settings
    paths = {} if isinstance(settings.model, VectorModel) else {"model.path": settings.model.path}
    if not isinstance(settings.data, NoData) and settings.data.test is not None:
        paths["data.test"] = settings.data.test
    if settings.adapter is not None and settings.adapter.start is not None:
        paths["adapter.start"] = settings.adapter.start
    for key, path in paths.items():
        if loaded.path(path).exists() and not (folder.resolve() / Path(path).expanduser()).exists():
            there = loaded.path(path)
            print(f"Relative paths start at {folder} now: {key} {path!r} is not there, but at {there}.")
            print(f"  Put it into {folder}, or write the whole path into {folder / 'federation.toml'}.")


def _own_names(listen: str | None) -> list[str]:
    """What agents may call this machine, if nobody says."""
    if listen is not None:
        try:
            host = split_address(listen)[0]
        except ValueError:
            return ["localhost"]  # the address is refused later, by name
        if host not in ("0.0.0.0", "::"):
            return [host]
    return [socket.gethostname().partition(".")[0] or "localhost", "localhost"]


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
