"""The server's settings, ``server.toml``: :class:`DaemonSettings`, :func:`load_daemon`. No torch.

Every key but ``name`` and ``listen.names`` has a default; :func:`daemon_toml` writes a file that says
what each is for.
"""

from __future__ import annotations

import ipaddress
import json
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationError

from headwater.bits import Bits
from headwater.config.plugins import AllowedPlugins
from headwater.config.settings import Settings, first_problem, read_toml


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` as host and port.

    Raises:
        ValueError: it is neither.
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]\s/]+)):([0-9]{1,5})", address)
    if match is None or int(match[3]) > 65535:
        raise ValueError("HOST:PORT, for example 127.0.0.1:8443 or [::1]:8443")
    return match[1] or match[2], int(match[3])


def _address(text: str) -> str:
    split_address(text)
    return text


def _loopback(text: str) -> str:
    if split_address(text)[0] not in ("127.0.0.1", "localhost"):
        raise ValueError("127.0.0.1:PORT: the page is for this machine, reach it from others by ssh -L")
    return text


def _host_name(text: str) -> str:
    """A DNS name or an IP address, as it may stand in a certificate."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        pass
    label = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
    if len(text) > 253 or not re.fullmatch(rf"{label}(?:\.{label})*", text):
        raise ValueError("a DNS name such as fl.example.org, or an IP address")
    return text.lower()


def _authority_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}", text):
        raise ValueError("1 to 64 letters, digits, spaces, '.', '_' and '-', a letter or digit first")
    return text


Address = Annotated[str, AfterValidator(_address)]
HostName = Annotated[str, AfterValidator(_host_name)]


class Listen(Settings):
    """``[listen]``: where the daemon listens, and under which names agents reach it."""

    fleet: Address = Field(default="0.0.0.0:8443", description="agents (TLS); the only port others need")
    control: Address = Field(default="127.0.0.1:8444", description="the organiser's commands (mutual TLS)")
    web: Annotated[str, AfterValidator(_loopback)] = Field(
        default="127.0.0.1:8445", description="status page and Prometheus; loopback only, with a token"
    )
    names: tuple[HostName, ...] = Field(
        min_length=1, max_length=64, description="DNS names and IP addresses in the server's certificate"
    )

    def certificate_names(self) -> tuple[str, ...]:
        """``names``, and those under which this machine reaches itself."""
        hosts = [*self.names, "localhost", "127.0.0.1"]
        control = split_address(self.control)[0]
        if control not in ("0.0.0.0", "::"):
            hosts.append(_host_name(control))
        return tuple(dict.fromkeys(hosts))


class Limits(Settings):
    """``[limits]``: what one client may ask of the server. Beyond them it is refused, and no other is."""

    bytes_per_hour: int = Field(default=2**34, ge=2**20, le=2**44, description="of one client, both ways")
    requests_at_once: int = Field(default=16, ge=1, le=256, description="of one client")
    body_s: float = Field(
        default=120.0, gt=0, le=3600, description="for one request's body, at most 1 MiB: slower links fail"
    )


class Retention(Settings):
    """``[retention]``: what is kept on disk, so that weeks do not fill it."""

    adapters: int = Field(default=64, ge=1, le=100_000, description="a run's latest adapter versions")
    log_bytes: int = Field(default=16 * 2**20, ge=2**16, le=2**34, description="size of one log file")
    logs: int = Field(default=8, ge=2, le=1000, description="number of log files")


class DaemonSettings(Settings):
    """All of ``server.toml``."""

    name: Annotated[str, AfterValidator(_authority_name)]
    bits: Bits = Field(default="machine", description="of its runs: others are refused")
    listen: Listen
    limits: Limits = Limits()
    retention: Retention = Retention()
    plugins: AllowedPlugins = AllowedPlugins()
    edges: dict[str, Annotated[int, Field(ge=1, le=10_000)]] = Field(
        default={}, description="enrolled names that are edge aggregators: clients each may speak for"
    )


def load_daemon(path: Path) -> DaemonSettings:
    """Read and check ``server.toml``.

    Raises:
        ConfigError: names the file, the key, what was expected and what was got.
    """
    hint = f"Is this the right folder? A new one is made by: headwater server init {path.parent}"
    raw, _ = read_toml(path, "server", hint)
    return check_daemon(raw, str(path))


def check_daemon(raw: dict[str, object], who: str) -> DaemonSettings:
    """The settings in ``raw``, which came from ``who``.

    Raises:
        ConfigError: names the key, what was expected and what was got.
    """
    try:
        return DaemonSettings.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        raise first_problem(error, who) from None


def daemon_toml(settings: DaemonSettings) -> str:
    """``settings`` as a commented ``server.toml``, every key in it."""
    lines = [
        "# Headwater's server. Changes take effect when the daemon starts again, but for listen.names:",
        "# those stand in its certificate, so also run: headwater server renew DIR",
        "",
        f"name = {json.dumps(settings.name)}  # of the authority that signs the certificates",
    ]
    if settings.bits != "machine":
        lines.append(
            f"bits = {json.dumps(settings.bits)}  # {DaemonSettings.model_fields['bits'].description}"
        )
    # [plugins] only where something is allowed: nothing is, if it is absent
    for table in ("listen", "limits", "retention", *(["plugins"] if settings.plugins.allow else [])):
        section: Settings = getattr(settings, table)
        lines += ["", f"[{table}]"]
        for key, field in type(section).model_fields.items():
            value = json.dumps(section.model_dump(mode="json")[key])
            lines.append(f"{key} = {value}  # {field.description}")
    if settings.edges:
        about = DaemonSettings.model_fields["edges"].description
        rows = [f"{json.dumps(name)} = {most}" for name, most in sorted(settings.edges.items())]
        lines += ["", f"[edges]  # {about}", *rows]
    return "\n".join(lines) + "\n"
