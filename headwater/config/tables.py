"""The tables of a federation file, side by side: :class:`FederationTables`. Nothing here compares them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from headwater.bits import Bits
from headwater.config.adapter import Adapter
from headwater.config.assignment import DEFAULT, Assignment, Method
from headwater.config.attackers import Attacker
from headwater.config.codec import CodecSettings
from headwater.config.contribution import ContributionSettings
from headwater.config.data import Data
from headwater.config.devices import DeviceSettings
from headwater.config.evaluation import BaselineSettings, EvaluationSettings
from headwater.config.model import Model
from headwater.config.plugins import releases, require_releases
from headwater.config.privacy import PrivacySettings
from headwater.config.schedule import CohortSettings, Schedule, SynchronousSchedule
from headwater.config.settings import Settings
from headwater.config.strategy import MeanStrategy, OwnPart, Strategy
from headwater.config.training import Training


class FederationSettings(Settings):
    """``[federation]``: what the whole run has in common."""

    name: str = Field(min_length=1, max_length=80)
    seed: int = Field(default=0, ge=0, lt=2**63)
    rounds: int = Field(ge=1, le=100_000)
    threads: int = Field(default=1, ge=1, le=256, description="CPU threads of one training")
    bits: Bits = Field(
        default="machine",
        description="`portable`: the same adapter on every x86-64 processor, in up to twice the time",
    )

    @model_serializer(mode="wrap")
    def _without_bits(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """No key for the machine's own: runs were named without, and older devices know none."""
        content: dict[str, Any] = handler(self)
        if self.bits == "machine":
            content.pop("bits", None)
        return content


SENT = "(sent)"
"""``adapter.start`` as devices are told it: a file that the server sends."""
MOST_CLIENTS = 4096
"""In a batch."""


class SimulationSettings(Settings):
    """``[simulation]``: how clients that share one process are trained there."""

    cohort: int | Literal["auto"] = Field(
        default=1,
        description="most clients that are trained as one batch over the base, up to 4,096, or "
        '`"auto"`, which measures what pays; other last digits above 1',
    )
    devices: DeviceSettings | None = Field(
        default=None,
        description="simulated devices, links and availability, with a clock of their own",
    )
    attackers: tuple[Attacker, ...] = Field(
        default=(), strict=False, max_length=64, description="clients that lie, in an experiment"
    )

    @model_serializer(mode="wrap")
    def _without_devices(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """No key for devices and attackers that nobody asked for: runs were named without."""
        content: dict[str, Any] = handler(self)
        if not self.attackers:
            content.pop("attackers", None)
        if self.devices is None:
            content.pop("devices", None)
        return content

    @field_validator("cohort", mode="plain")
    @classmethod
    def _number(cls, value: object) -> object:
        if value == "auto" or (type(value) is int and 1 <= value <= MOST_CLIENTS):
            return value
        raise ValueError(f'a whole number from 1 to {MOST_CLIENTS:,}, or "auto"')


class FederationTables(Settings):
    """Every table of the file, each right by itself."""

    plugins: dict[str, str] = Field(
        default={},
        description="the installed packages whose kinds this file names, each with its version; "
        "headwater writes it, and where it is given, exactly these must be installed",
    )
    federation: FederationSettings
    model: Model
    adapter: Adapter | None = None
    data: Data
    training: Training
    methods: dict[str, Method] = Field(default={})
    assignment: Assignment | None = None
    codec: CodecSettings = CodecSettings()
    strategy: Strategy = MeanStrategy(kind="mean")
    cohort: CohortSettings = CohortSettings()
    schedule: Schedule = SynchronousSchedule()
    privacy: PrivacySettings = PrivacySettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    baselines: BaselineSettings = BaselineSettings()
    contribution: ContributionSettings | None = None
    simulation: SimulationSettings = SimulationSettings()

    @field_validator("plugins")
    @classmethod
    def _there(cls, value: dict[str, str]) -> dict[str, str]:
        require_releases(value)  # first of all tables: who lacks a package is told its name
        return value

    @model_validator(mode="after")
    def _no_others(self) -> FederationTables:
        if self.plugins and self.plugins != (used := self.packages):
            raise ValueError(f"[plugins] says {self.plugins}, and the tables use {used}: leave [plugins] out")
        return self

    @model_serializer(mode="wrap")
    def _with_packages(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """``[plugins]`` is what is used, absent where nothing is; so is an empty ``[simulation]``."""
        content: dict[str, Any] = handler(self)
        content.pop("plugins", None)
        if self.simulation == SimulationSettings():  # which runs were named without
            content.pop("simulation", None)
        if self.contribution is None:
            content.pop("contribution", None)
        return content | ({"plugins": packages} if (packages := self.packages) else {})

    @property
    def clients_evaluate(self) -> bool:
        """Whether clients are ever sent an adapter to measure it on rows that they held out."""
        held_out = self.data.validation_fraction > 0
        return held_out and self.evaluation.clients and self.evaluation.every > 0

    def sends(self, round: int) -> bool:
        """Whether clients are sent the adapter after this round: to train on it, or to evaluate it."""
        return round < self.federation.rounds or self.clients_evaluate

    @property
    def own_part(self) -> OwnPart:
        """What of the adapter each client keeps to itself."""
        if self.strategy.keeps_own:
            return "all but A"
        return "head" if self.adapter is not None and self.adapter.head == "own" else "nothing"

    @property
    def packages(self) -> dict[str, str]:
        """The packages whose kinds are used: ``{"rules:NAME": "package version"}``."""
        trainings = [("trainers", training) for training in self.trainings.values()]
        others = [
            ("rules", self.strategy),
            ("codecs", self.codec.up),
            ("codecs", self.codec.down),
            ("adapter_kinds", self.adapter),
            ("tasks", self.data),
        ]
        return releases([*trainings, *others])

    def told_to_devices(self, start_sha256: str = "") -> str:
        """The settings as JSON, without what devices need not know (:attr:`CodecSettings.for_devices`).

        Args:
            start_sha256: of the adapter's start, which is sent with them in the place of its path.
        """
        told = self.model_copy(update={"codec": self.codec.for_devices})
        if start_sha256 and self.adapter is not None:
            sent = {"start": SENT, "start_sha256": start_sha256}
            told = told.model_copy(update={"adapter": self.adapter.model_copy(update=sent)})
        # older devices refuse what came since; and who is measured with whom is none of a device's business
        since: dict[str, Any] = {"codec": {"up": self.codec.up.defaults_since()}, "contribution": True}
        since["privacy"] = {"padding"}  # the messages say it
        return told.model_dump_json(exclude_none=True, exclude=since)

    @property
    def trainings(self) -> dict[str, Training]:
        """The methods that clients may be told to use, by name."""
        return {DEFAULT: self.training} | {name: m.training for name, m in self.methods.items()}
