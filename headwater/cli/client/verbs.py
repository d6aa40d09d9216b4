"""``headwater client``: what a device's owner does: init, enroll, run, status, profile, adapter, receipts.

Only profile and adapter import torch.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from headwater.cli.client import adapter as client_adapter
from headwater.cli.client import profile as client_profile
from headwater.cli.client import status as client_status
from headwater.config.agent import NAME, TEMPLATE, AgentSettings, load_agent
from headwater.config.copied import server_address
from headwater.errors import ConfigError, StorageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "action",
        choices=["init", "enroll", "run", "status", "profile", "adapter", "receipts"],
        help="init writes a commented agent file; enroll makes this device's keys and prints the line for "
        "the organiser; run is the agent; status tells what it does; profile shows what each method of a "
        "federation takes here; adapter writes this device's own adapter of a run in space fedsa; "
        "receipts lists the updates that left this device, by their hashes",
    )
    parser.add_argument(
        "config",
        nargs="?",
        type=Path,
        metavar="CONFIG",
        help="the agent file, such as agent.toml; profile: or a federation file; adapter: or a run folder",
    )
    parser.add_argument(
        "--name", help="init, enroll: the name of this device; adapter of a run folder: whose"
    )
    parser.add_argument("--server", metavar="HOST:PORT", help="init: the organiser's server")
    parser.add_argument("--state", type=Path, metavar="DIR", help="enroll without CONFIG: the state folder")
    client_profile.configure(parser)
    client_adapter.configure(parser)


def run(options: argparse.Namespace) -> int:
    """Do what is asked."""
    action: dict[str, Callable[[argparse.Namespace], int]] = {
        "init": _init,
        "enroll": _enroll,
        "run": _run,
        "status": _status,
        "receipts": _receipts,
    }
    action |= {"profile": client_profile.profile, "adapter": client_adapter.adapter}
    return action[options.action](options)


def _config(options: argparse.Namespace) -> AgentSettings:
    if options.config is None:
        raise ConfigError(
            f"headwater client {options.action}", expected="CONFIG, the agent file", got="nothing"
        )
    return load_agent(options.config)


def _init(options: argparse.Namespace) -> int:
    """Write a commented agent file; print what to do next."""
    path = options.config or Path("agent.toml")
    name = options.name or "device-1"
    server = options.server or "federation.example.org:8443"
    if not NAME.fullmatch(name):
        raise ConfigError(
            "--name",
            expected="1 to 64 letters, digits, '.', '_' and '-'",
            got=repr(name),
            hint="For example: --name edge-7",
        )
    try:
        server = server_address(server)
    except ValueError as error:
        raise ConfigError(
            "--server",
            expected=str(error),
            got=repr(server)[:80],
            hint="For example: --server fl.example.org:8443",
        ) from None
    text = TEMPLATE.format(name=name, server=server)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(
            str(path), expected="the name of a new file", got="a file that exists", hint="Name another one."
        ) from None
    except OSError as error:
        raise StorageError(f"writing {path}", got=error.strerror or str(error)) from None
    try:
        load_agent(path)
    except ConfigError:
        path.unlink()
        raise
    print(f"{path}: written. Fill it in, put the organiser's ca.pem beside it, then:")
    print(f"  headwater client enroll {path}")
    print(f"  headwater client run {path}")
    return 0


def _enroll(options: argparse.Namespace) -> int:
    """Make keys if there are none; print the request line and the fingerprint."""
    from headwater.client.agent.preflight import read_authority
    from headwater.security.certificates import describe
    from headwater.security.enrolment import make_request
    from headwater.security.signing import Identity

    authority = ""
    if options.config is not None:
        if options.name or options.state:
            raise ConfigError("headwater client enroll", expected="CONFIG, or --name and --state", got="both")
        settings = load_agent(options.config)
        name, state = settings.file.name, settings.state
        if settings.ca.exists():
            authority = describe(read_authority(settings.ca))
        else:
            authority = f"not at {settings.ca} yet: ask the organiser for ca.pem"
    elif options.name:
        name, state = options.name, options.state or Path("state")
    else:
        raise ConfigError("headwater client enroll", expected="CONFIG, or --name NAME", got="neither")
    keys = state / "keys"
    if (keys / "identity.json").exists():
        identity = Identity.load(keys)
        if identity.name != name:
            raise ConfigError(
                f"keys in {keys}",
                expected=f"those of {name!r}",
                got=f"those of {identity.name!r}",
                hint="A device has one name: use it, or another state folder.",
            )
    else:
        identity = Identity.create(name)
        identity.save(keys)
    print(make_request(identity))
    print("\nGive this line to the organiser. It holds no secret.")
    print(f"Compare the fingerprint over another channel: {identity.public.fingerprint()}")
    if authority:
        print(f"Compare this, too, with what the organiser's server shows: {authority}")
    return 0


def _run(options: argparse.Namespace) -> int:
    """The agent, until SIGTERM or Ctrl-C."""
    from headwater.client.agent.agent import run_agent

    return run_agent(_config(options))


def _receipts(options: argparse.Namespace) -> int:
    """What left this device; ``headwater verify ADAPTER --owner`` finds it in an adapter."""
    from headwater.receipts.sent import SENT, read_sent

    state = _config(options).state
    for one in read_sent(state / SENT):
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.time))
        print(f"{when}  run {one.run}  round {one.round}  {one.sha256}")
    print(f"Are they in an adapter? headwater verify ADAPTER --owner {state}")
    return 0


def _status(options: argparse.Namespace) -> int:
    """What the agent does, and what it needs its owner for."""
    return client_status.status(_config(options))
