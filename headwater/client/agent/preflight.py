"""What must lie on the device beside the agent file: the organiser's ca.pem, the data, base models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from headwater.config.agent import AgentSettings
from headwater.errors import ConfigError, StorageError
from headwater.security.certificates import role


def read_authority(path: Path) -> bytes:
    """The organiser's authority, PEM: the only one that may vouch for the server.

    Raises:
        ConfigError: there is no such file, or it holds something else, such as the server's own certificate.
    """
    hint = "Ask the organiser for ca.pem: it lies in the server's secrets/ and is not secret."
    try:
        pem = path.read_bytes()
        got = f"a certificate of the {found}" if (found := role(pem)) != "authority" else ""
    except OSError as error:
        got = error.strerror or str(error)
    except StorageError as error:
        got = error.got
    if got:
        raise ConfigError(
            f"ca {path}", expected="the certificate of the organiser's authority", got=got, hint=hint
        )
    return pem


def missing_paths(settings: AgentSettings) -> Iterator[str]:
    """A line for the owner for each path of the file where nothing is yet; the agent waits all the same."""
    paths = {"data.path": (settings.data,), "models.folders": settings.model_folders}
    for key, named in paths.items():
        for path in named:
            if not path.exists():
                yield f"{key} {path}: nothing there yet; no task can be done without it"
