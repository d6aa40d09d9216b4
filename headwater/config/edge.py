"""The edge aggregator's file, edge.toml, as frozen, typed settings: :func:`load_edge`. No torch."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError, field_validator

from headwater.config.agent import NAME
from headwater.config.copied import server_address
from headwater.config.settings import Settings, in_words
from headwater.errors import ConfigError


class EdgeFile(Settings):
    """The whole file."""

    name: str = Field(description="the name that this edge aggregator is enrolled under")
    server: str = Field(description="host:port of the organiser's server")
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

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not NAME.fullmatch(value):
            raise ValueError("1 to 64 letters, digits, '.', '_' and '-', the first one a letter or a digit")
        return value

    @field_validator("server")
    @classmethod
    def _server(cls, value: str) -> str:
        return server_address(value)


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
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = 'It has the keys name and server: name = "edge-1", server = "fl.example.org:8443".'
        raise ConfigError(f"edge file {path}", expected="a file", got="nothing there", hint=hint) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"edge file {path}", expected="readable UTF-8 text", got=str(error)) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"edge file {path}", expected="valid TOML", got=str(error)) from None
    try:
        return EdgeSettings(EdgeFile.model_validate(raw), path.parent.resolve())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "(file)"
        expected, got = in_words(first)
        if first["type"] == "extra_forbidden":
            expected = "no such key"
        elif first["type"] == "missing":
            expected, got = "this key", "nothing"
        raise ConfigError(f"{path}: {key}", expected=expected, got=got) from None
