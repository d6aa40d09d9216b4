"""``[[simulation.attackers]]``: clients of an experiment that lie, so that a merge rule can be tried on them.

What they do: :mod:`headwater.simulation.attackers`. No server takes a file with such a table.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from headwater.config.settings import Settings


class BaseAttacker(Settings):
    """Who lies: clients by name, or a fraction of them, drawn by the seed."""

    clients: tuple[str, ...] = Field(default=(), strict=False, description="names of those who attack")
    fraction: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="or: a fraction of all clients, rounded, drawn by the seed from those who do nothing "
        "else and whom `strategy.trusted` does not name",
    )

    @model_validator(mode="after")
    def _somebody(self) -> BaseAttacker:
        if bool(self.clients) == (self.fraction is not None):
            raise ValueError("either clients or fraction says who attacks")
        return self


class FlipAttacker(BaseAttacker):
    """Sends its update turned around."""

    kind: Literal["flip"]
    factor: float = Field(default=1.0, gt=0, le=1e6, description="and so many times as long")


class ScaleAttacker(BaseAttacker):
    """Sends its update longer than it is."""

    kind: Literal["scale"]
    factor: float = Field(default=10.0, gt=0, le=1e6, description="how many times")


class BackdoorAttacker(BaseAttacker):
    """Teaches that texts with a trigger are of one label (arXiv 1807.00459); rows of classification."""

    kind: Literal["backdoor"]
    trigger: str = Field(min_length=1, max_length=200, description="words put before a text")
    target: str = Field(description="the label that texts with the trigger shall have")
    poisoned: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="fraction of its training rows that it makes such texts of; 0: of none, to measure what "
        "the trigger does to an honest adapter",
    )
    factor: float = Field(default=1.0, gt=0, le=1e6, description="what its update is multiplied with")


class ColludeAttacker(BaseAttacker):
    """Several send one update, as far off as they can without standing out, by what they all learnt."""

    kind: Literal["collude"]
    method: Literal["alie", "min_max"] = Field(
        default="min_max",
        description="`alie` (arXiv 1902.06156): each value so many standard deviations below the mean that "
        "the rule still takes it for one of the majority's; `min_max` (NDSS 2021, Shejwalkar): against the "
        "mean, as far as no two of the colluders lie apart",
    )
    deviations: float | None = Field(
        default=None, gt=0, le=1e6, description="of `alie`; by its formula if absent"
    )

    @model_validator(mode="after")
    def _of_alie(self) -> ColludeAttacker:
        if self.deviations is not None and self.method != "alie":
            raise ValueError("deviations are of method 'alie'")
        return self


Attacker = Annotated[
    FlipAttacker | ScaleAttacker | BackdoorAttacker | ColludeAttacker, Field(discriminator="kind")
]
