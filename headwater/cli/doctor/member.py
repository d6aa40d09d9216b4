"""What a federation file, an agent file or a server's folder needs on this machine."""

from __future__ import annotations

import email.utils
import http.client
import importlib.util
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from headwater.cli.doctor import machine
from headwater.cli.doctor.findings import Finding
from headwater.config.agent import AgentSettings, load_agent
from headwater.config.daemon import load_daemon, split_address
from headwater.config.load import LoadedFederation, load_federation, read_tables
from headwater.config.model import BaseModelSettings
from headwater.errors import (
    ConnectionLost,
    DataError,
    HeadwaterError,
    MissingDependency,
    ModelError,
)

MOST_OFF_S = 300.0
"""Seconds by which a device's clock may be off before a server refuses what it signed."""
SOME_OFF_S = 30.0
_ANSWER_S = 10.0


def needs(path: Path) -> Iterator[Finding]:
    """What the file, or a server's folder, asks for."""
    try:
        if path.is_dir() or path.name == "server.toml":
            yield from _server(path if path.is_dir() else path.parent)
        elif "federation" in read_tables(path):
            yield from _federation(load_federation(path))
        else:
            yield from _agent(load_agent(path))
    except HeadwaterError as error:
        found = f"expected {error.expected}, got {error.got}" if error.expected else str(error)
        yield Finding(error.who, "bad", found, error.hint, error.exit_code)


def reach(address: str, ca: Path | None, now: Callable[[], float] = time.time) -> Iterator[Finding]:
    """Whether a server answers over TLS, and how far its clock is from this one.

    Args:
        address: ``HOST:PORT`` of its fleet port.
        ca: the organiser's certificate authority; None does not check who answers, for its clock alone.
        now: this machine's Unix seconds.
    """
    check, code = f"server {address}", ConnectionLost.exit_code
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
        if ca is None:  # nothing is sent but an empty request, and nothing believed but the time
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        host, number = split_address(address)
        connection = http.client.HTTPSConnection(host, number, timeout=_ANSWER_S, context=context)
        try:
            connection.request("GET", "/")
            date = connection.getresponse().getheader("date", "")
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        yield Finding(check, "bad", f"{type(error).__name__}: {error}"[:300], _advice(str(error)), code)
        return
    yield Finding(
        check, "ok", "it answers over TLS" + (", unchecked: no ca.pem was given" if ca is None else "")
    )
    try:
        off = now() - email.utils.parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError):
        yield Finding("clock, server", "note", "the server did not say its time")
        return
    text = f"this clock is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the server's"
    if abs(off) > MOST_OFF_S:
        advice = "Set the clock: what is signed more than 5 minutes off may be refused."
        yield Finding("clock, server", "bad", text, advice, code)
    else:
        yield Finding("clock, server", "note" if abs(off) > SOME_OFF_S else "ok", text)


def _advice(got: str) -> str:
    if "CERTIFICATE_VERIFY_FAILED" not in got:
        return "Is the server running, and is the address right?"
    if "expired" in got or "not yet valid" in got:
        return "Is this clock right? Else the organiser renews: headwater server renew DIR"
    return "Is the address one of [listen] names, and ca.pem the organiser's?"


def _server(folder: Path) -> Iterator[Finding]:
    from headwater.server.workspace.lock import FolderLock

    listen = load_daemon(folder / "server.toml").listen
    holder = FolderLock(folder).holder()
    yield Finding("daemon", "ok", "none runs" if holder is None else f"runs, process {holder or 'not known'}")
    for what in ("fleet", "control", "web"):
        host, number = split_address(getattr(listen, what))
        yield from machine.port(what, host, number, ours=holder is not None)
    yield from machine.disk("server", folder)


def _agent(settings: AgentSettings) -> Iterator[Finding]:
    from headwater.client.agent.preflight import missing_paths, read_authority

    for text in missing_paths(settings):
        yield Finding("agent file", "bad", text, "Put it there, or change the path.", DataError.exit_code)
    yield from machine.disk("agent", settings.state)
    read_authority(settings.ca)
    yield from reach(settings.file.server, settings.ca)


def _federation(loaded: LoadedFederation) -> Iterator[Finding]:
    settings = loaded.settings
    yield Finding("federation file", "ok", f"{settings.federation.name}, sha256 {loaded.sha256()[:12]}")
    model = settings.model
    if isinstance(model, BaseModelSettings):
        if model.quantization != "none":
            yield from _package("bitsandbytes", "gpu", f"model.quantization = '{model.quantization}'")
        folder = loaded.path(model.path)
        if not folder.exists() and (model.path.count("/") != 1 or model.path.startswith(".")):
            yield Finding("model.path", "bad", f"{folder} is not there", "Change it.", ModelError.exit_code)
    for key in ("path", "test"):
        name = getattr(settings.data, key, None)
        if name and not loaded.path(name).exists():
            text = f"{loaded.path(name)} is not there"
            yield Finding(f"data.{key}", "bad", text, "Change it.", DataError.exit_code)
        elif name and _has_parquet(loaded.path(name)):
            yield from _package("pyarrow", "simulation", f"data.{key}")
    if settings.baselines.probe:
        yield from _package("sklearn", "simulation", "baselines.probe")


def _has_parquet(path: Path) -> bool:
    return path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet")))


def _package(module: str, extra: str, who: str) -> Iterator[Finding]:
    if importlib.util.find_spec(module) is None:
        advice = f'pip install "headwater[{extra}]"'
        yield Finding(who, "bad", f"{module} is not installed", advice, MissingDependency.exit_code)
