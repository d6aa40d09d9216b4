"""The device owner's file, agent.toml, as frozen, typed settings: :func:`load_agent`. No torch.

It says where the server is, where the owner's data is, and what the owner allows. What the federation
is, the server says. What the server learns of this file: docs/reference/agent-file.md.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import time
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from headwater.config.copied import server_address
from headwater.config.plugins import AllowedPlugins
from headwater.config.settings import Settings, first_problem, read_toml
from headwater.config.training import TRAINING_KINDS

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What a device may be enrolled as."""


def _enrolled_name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError("1 to 64 letters, digits, '.', '_' and '-', the first one a letter or a digit")
    return value


EnrolledName = Annotated[str, AfterValidator(_enrolled_name)]
ServerAddress = Annotated[str, AfterValidator(server_address)]
"""host:port, as people copy it."""
_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


class DataFolder(Settings):
    """``[data]``: the owner's data."""

    path: str = Field(min_length=1, description="JSONL, CSV or Parquet file, or a folder of them")


class ModelFolders(Settings):
    """``[models]``: base models on this device. None is ever downloaded."""

    folders: list[str] = Field(default=[], description="folders of base models, or folders of such folders")
    allow: list[str] | None = Field(default=None, description="only base models of these sha256")

    @field_validator("allow")
    @classmethod
    def _hashes(cls, value: list[str] | None) -> list[str] | None:
        for text in value or ():
            if not re.fullmatch(r"[0-9a-f]{64}", text):
                raise ValueError("sha256 of base models, each 64 lower-case hex digits")
        return value


class PolicySettings(Settings):
    """``[policy]``: what the owner allows. What is absent is not limited."""

    memory_mb: int | None = Field(default=None, ge=512, description="of the worker process")
    threads: int | None = Field(default=None, ge=1, le=256)
    nice: int = Field(default=10, ge=0, le=19, description="19 yields to everything else")
    hours: str | None = Field(default=None, description='"22:00-06:00", local time')
    metered: bool = Field(default=False, description="ask the server less often; needs max_mb_per_day")
    max_mb_per_day: float | None = Field(default=None, gt=0)
    max_work_s_per_day: float | None = Field(default=None, gt=0)
    max_steps: int | None = Field(default=None, ge=1, description="optimiser steps of one task")
    max_rank: int | None = Field(default=None, ge=1, description="of a LoRA adapter")
    max_examples: int | None = Field(default=None, ge=1, description="training examples of one task")
    allow_evaluate: bool = True
    min_masked_clients: int | None = Field(
        default=None,
        ge=3,
        description="an update leaves in masked sums that at least so many are asked for only",
    )
    training: list[str] = Field(
        default=list(TRAINING_KINDS), description="kinds of training that headwater brings"
    )

    @field_validator("hours")
    @classmethod
    def _hours(cls, value: str | None) -> str | None:
        if value is not None and not _HOURS.fullmatch(value):
            raise ValueError('hours such as "22:00-06:00"')
        return value

    @field_validator("training")
    @classmethod
    def _kinds(cls, value: list[str]) -> list[str]:
        if unknown := [kind for kind in value if kind not in TRAINING_KINDS]:
            raise ValueError(f"kinds out of {', '.join(TRAINING_KINDS)}, not '{unknown[0]}'")
        return value

    @model_validator(mode="after")
    def _metered_has_a_cap(self) -> PolicySettings:
        if self.metered and self.max_mb_per_day is None:
            raise ValueError("metered = true without max_mb_per_day, which it needs")
        return self

    def allows_training(self, kind: str) -> bool:
        """Whether the owner allows this kind. Of a package's, ``[plugins]`` has decided already."""
        return kind in self.training or kind not in TRAINING_KINDS

    def window(self) -> tuple[time, time] | None:
        """Start and end of ``hours``; equal ones mean the whole day."""
        if self.hours is None or (found := _HOURS.fullmatch(self.hours)) is None:
            return None
        h, m, h2, m2 = (int(part) for part in found.groups())
        return time(h, m), time(h2, m2)


class AgentFile(Settings):
    """The whole file."""

    name: EnrolledName = Field(description="the name this device is enrolled under")
    server: ServerAddress = Field(description="host:port of the organiser's server")
    ca: str = Field(default="ca.pem", min_length=1, description="the organiser's certificate authority")
    state: str = Field(default="state", min_length=1, description="folder of keys, residuals, logs")
    simulated_memory_mb: int | None = Field(
        default=None,
        ge=1,
        le=2**30,
        description="play a device with so much memory: what the planner is told, no cap",
    )
    data: DataFolder
    models: ModelFolders = ModelFolders()
    policy: PolicySettings = PolicySettings()
    plugins: AllowedPlugins = AllowedPlugins()


@dataclass(frozen=True)
class AgentSettings:
    """The file, the folder that its relative paths start from, and the SHA-256 of its bytes."""

    file: AgentFile
    folder: Path
    sha256: str = ""

    def path(self, name: str) -> Path:
        """``name`` as a path, relative to the file's folder."""
        return (self.folder / Path(name).expanduser()).resolve()

    @property
    def state(self) -> Path:
        """Where the agent keeps what must survive it."""
        return self.path(self.file.state)

    @property
    def data(self) -> Path:
        """The owner's data."""
        return self.path(self.file.data.path)

    @property
    def ca(self) -> Path:
        """The organiser's certificate authority."""
        return self.path(self.file.ca)

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """Where base models may be."""
        return tuple(self.path(folder) for folder in self.file.models.folders)


def load_agent(path: Path) -> AgentSettings:
    """Read and check agent.toml.

    Raises:
        ConfigError: names the file, the key, what was expected and what was got.
    """
    raw, content = read_toml(path, "agent", "Write one with: headwater client init FILE")
    try:
        file = AgentFile.model_validate(raw)
    except ValidationError as error:
        raise first_problem(error, str(path), "See docs/reference/agent-file.md.") from None
    return AgentSettings(file, path.parent.resolve(), hashlib.sha256(content).hexdigest())


TEMPLATE = """\
# What this device does for a federation. Paths are relative to this file. No row leaves the device.
# Every key: docs/reference/agent-file.md. After a change: end the agent and start it again.

name = "{name}"                 # the name you are enrolled under
server = "{server}"  # where the organiser's server is
ca = "ca.pem"                   # the organiser's certificate authority: ask for the file
state = "state"                 # keys, what is held between rounds, logs: keep it private, back up its keys/

[data]
path = "data.jsonl"             # JSONL, CSV or Parquet, or a folder of them; it never leaves this device

[models]
folders = ["models"]            # where base models are; a federation asks for one by its hash
# allow = ["0123…"]             # only these, by sha256

[policy]                        # a task outside it is refused with the reason; what is absent is not limited
# memory_mb = 4000              # of the worker process
# threads = 2
# nice = 10                     # 19 yields to everything else on this device
# hours = "22:00-06:00"         # local time
# metered = false               # true: ask the server less often; needs max_mb_per_day
# max_mb_per_day = 500
# max_work_s_per_day = 7200
# max_steps = 1000              # of one task
# min_masked_clients = 10       # updates leave in masked sums of so many only
# max_rank = 16                 # of a LoRA adapter
# max_examples = 100000
# allow_evaluate = true
# training = ["backprop"]       # kinds of training

# [plugins]                     # what runs of packages that you have installed here; nothing if absent
# allow = ["trainers:NAME"]     # see: headwater plugins
"""
"""A commented agent.toml with ``{{name}}`` and ``{{server}}`` to fill in."""
