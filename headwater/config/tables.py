"""The tables of a federation file, side by side: :class:`FederationTables`. Nothing here compares them."""

from __future__ import annotations

from pydantic import Field

from headwater.config.adapter import Adapter
from headwater.config.assignment import DEFAULT, Assignment, Method
from headwater.config.codec import CodecSettings
from headwater.config.data import Data
from headwater.config.evaluation import BaselineSettings, EvaluationSettings
from headwater.config.model import Model
from headwater.config.privacy import PrivacySettings
from headwater.config.schedule import CohortSettings, Schedule, SynchronousSchedule
from headwater.config.settings import Settings
from headwater.config.strategy import MeanStrategy, Strategy
from headwater.config.training import Training


class FederationSettings(Settings):
    """``[federation]``: what the whole run has in common."""

    name: str = Field(min_length=1, max_length=80)
    seed: int = Field(default=0, ge=0, lt=2**63)
    rounds: int = Field(ge=1, le=100_000)
    threads: int = Field(default=1, ge=1, le=256, description="CPU threads of one training")


class FederationTables(Settings):
    """Every table of the file, each right by itself."""

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

    @property
    def trainings(self) -> dict[str, Training]:
        """The methods that clients may be told to use, by name."""
        return {DEFAULT: self.training} | {name: m.training for name, m in self.methods.items()}
