"""Who trains how: ``[methods]``, ``[assignment]`` and the devices of a simulation.

``[training]`` is the method named ``default``. Further ones have names of their own; ``[assignment]`` says
which client uses which. Without it everybody uses ``default``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from headwater.config.dealing import deal
from headwater.config.settings import Settings
from headwater.config.training import Training

DEFAULT = "default"


class Method(Settings):
    """``[methods.NAME]``: a way to train, beside ``[training]``."""

    training: Training
    rank: int | None = Field(
        default=None, ge=1, description="train the first so many components of each LoRA pair only"
    )
    last_layers: int | None = Field(
        default=None, ge=1, description="train the adapter of the last so many layers (and the head) only"
    )
    max_bytes_up: int | None = Field(
        default=None, ge=256, description="byte budget of an update: lowers the codec's `density`"
    )


class AssignedByShare(Settings):
    """A share of the clients to each method, dealt at random once by the federation's seed."""

    by_device: ClassVar[bool] = False
    kind: Literal["shares"]
    shares: dict[str, float] = Field(min_length=1, description="method → fraction of the clients, sum 1")

    def methods(self) -> Collection[str]:
        """Names of the methods that it speaks of."""
        return self.shares

    def deal(self, clients: Sequence[str], seed: int) -> dict[str, str]:
        """The method's name for every client: quotas of all of them, so who comes may change another's."""
        return deal(clients, self.shares, seed)

    @model_validator(mode="after")
    def _sum(self) -> AssignedByShare:
        if min(self.shares.values()) < 0 or abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError(f"assignment.shares must be fractions that sum up to 1, not {self.shares}")
        return self


class AssignedByClient(Settings):
    """By name: the first pattern that fits, else ``default``."""

    by_device: ClassVar[bool] = False
    kind: Literal["clients"]
    clients: dict[str, str] = Field(description="pattern of names (`*`, `?`) → method, in order")

    def methods(self) -> Collection[str]:
        """Names of the methods that it speaks of."""
        return self.clients.values()

    def deal(self, clients: Sequence[str], seed: int) -> dict[str, str]:
        """The method's name for every client: that of the first pattern in the file's order that fits."""
        return {
            client: next((m for pattern, m in self.clients.items() if _fits(client, pattern)), DEFAULT)
            for client in clients
        }


class Device(Settings):
    """``[assignment.devices.NAME]``: a kind of device in a simulation."""

    share: float = Field(ge=0, le=1, description="fraction of the clients")
    memory_mb: int = Field(ge=1, le=2**30, description="what a training may use of it, in MiB")


class AssignedByPlanner(Settings):
    """By device: the first method of ``prefer`` whose predicted memory and time fit the device."""

    by_device: ClassVar[bool] = True
    kind: Literal["planner"]
    prefer: tuple[str, ...] = Field(
        default=(), description="methods, best first; absent: `default`, then `[methods]` as in the file"
    )
    round_s: float | None = Field(
        default=None,
        gt=0,
        description="seconds a client's round may take; steps are cut to fit. Measured times decide then, "
        "so two runs of the file may differ",
    )
    devices: dict[str, Device] = Field(
        default={}, description="what the clients of a simulation have; real devices measure themselves"
    )

    @model_validator(mode="after")
    def _sum(self) -> AssignedByPlanner:
        if self.devices and abs(sum(d.share for d in self.devices.values()) - 1) > 1e-6:
            raise ValueError("assignment.devices: the shares must sum up to 1")
        return self

    def methods(self) -> Collection[str]:
        """Names of the methods that it speaks of."""
        return self.prefer

    def deal(self, clients: Sequence[str], seed: int) -> dict[str, str]:
        """``default`` for everybody, before the devices have said what they can."""
        return dict.fromkeys(clients, DEFAULT)


Assignment = Annotated[AssignedByShare | AssignedByClient | AssignedByPlanner, Field(discriminator="kind")]


def _fits(client: str, pattern: str) -> bool:
    return fnmatchcase(client, pattern.replace("[", "[[]"))  # only * and ? mean more than themselves


def simulated_memory_mb(assignment: Assignment | None, clients: Sequence[str], seed: int) -> dict[str, int]:
    """What each client of a simulation has, by the kind of device that it is dealt; nothing without any."""
    if not isinstance(assignment, AssignedByPlanner) or not assignment.devices:
        return {}
    kinds = assignment.devices
    dealt = deal(clients, {name: kind.share for name, kind in kinds.items()}, seed)
    return {client: kinds[kind].memory_mb for client, kind in dealt.items()}
