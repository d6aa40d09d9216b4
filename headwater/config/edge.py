"""The edge aggregator's file, edge.toml, as frozen, typed settings: :func:`load_edge`. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from headwater.config.agent import EnrolledName, ServerAddress
from headwater.config.settings import Settings, first_problem, read_toml


class EdgeFile(Settings):
    """The whole file."""

    name: EnrolledName = Field(description="the name that this edge aggregator is enrolled under")
    server: ServerAddress = Field(description="host:port of the organiser's server")
    ca: str = Field(default="ca.pem", min_length=1, description="the organiser's certificate authority")
    state: str = Field(default="state", min_length=1, description="folder of keys, log and status")
    clients: str = Field(
        default="clients",
        min_length=1,
        description="folder made by headwater server init, for its own clients",
    )
    patience_s: float | None = Field(
        default=None,
        gt=0,
        description="its clients are waited for so long; 0.8 of the round's deadline if absent",
    )


@dataclass(frozen=True)
class EdgeSettings:
    """The file, and the folder that its relative paths start from."""

    file: EdgeFile
    folder: Path

    def path(self, name: str) -> Path:
        """``name`` as a path, relative to the file's folder."""
        return (self.folder / Path(name).expanduser()).resolve()


def load_edge(path: Path) -> EdgeSettings:
    """Read and check edge.toml.

    Raises:
        ConfigError: names the file, the key, what was expected and what was got.
    """
    hint = 'It has the keys name and server: name = "edge-1", server = "fl.example.org:8443".'
    raw, _ = read_toml(path, "edge", hint)
    try:
        return EdgeSettings(EdgeFile.model_validate(raw), path.parent.resolve())
    except ValidationError as error:
        raise first_problem(error, str(path)) from None
