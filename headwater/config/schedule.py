"""``[cohort]`` and ``[schedule]``: who takes part in a round, and when a round ends."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from headwater.config.settings import Settings


class CohortSettings(Settings):
    """``[cohort]``: who takes part in a round, and when a round ends."""

    clients_per_round: int | None = Field(default=None, ge=1, description="all if absent")
    sampling: Literal["fixed", "poisson"] = Field(
        default="fixed",
        exclude_if=lambda value: value == "fixed",  # runs were named without
        description="with noise in `[privacy]`: `poisson` draws each owner by itself, "
        "`clients_per_round`/`population` of them on average",
    )
    population: int | None = Field(
        default=None,
        ge=1,
        exclude_if=lambda value: value is None,
        description="with noise in `[privacy]`: how many owners there are, a number that is no secret",
    )
    target_clients: int | None = Field(
        default=None,
        ge=1,
        description="a round closes as soon as so many updates are in: over-selection, with more "
        "`clients_per_round`",
    )
    min_clients: int = Field(default=1, ge=1, description="fewer accepted updates end the run")
    deadline_s: float | None = Field(default=None, gt=0)
    upload_s: float | None = Field(
        default=None,
        gt=0,
        exclude_if=lambda value: value is None,  # runs were named without
        description="on a server, and with `[simulation.devices]`: an update is no longer than its client's "
        "link, as measured so far, carries in so many seconds",
    )
    retry_s: float = Field(
        default=60.0,
        gt=0,
        description="on a server: how long after a failure a client is asked again while the round waits; "
        "doubled each time, up to 16-fold",
    )

    @property
    def fixed_sample(self) -> bool:
        """Whether so many are drawn of more: who is in a round hangs on who else is."""
        number = self.clients_per_round
        return self.sampling == "fixed" and number is not None and number != self.population


class SynchronousSchedule(Settings):
    """Rounds: all start from the same version, and the next begins when this one has closed."""

    has_rounds: ClassVar[bool] = True
    buffer: ClassVar[int | None] = None
    kind: Literal["synchronous"] = "synchronous"


class BufferedSchedule(Settings):
    """FedBuff (arXiv 2106.06639): whoever is free works; so many updates make a new version."""

    has_rounds: ClassVar[bool] = False
    kind: Literal["buffered"]
    buffer: int = Field(ge=1, description="updates that make a new version")
    staleness_exponent: float = Field(
        default=0.5,
        ge=0,
        le=8,
        description="a in an update's weight · (1+s)⁻ᵃ, where s new versions were made since it started",
    )
    max_staleness: int = Field(default=20, ge=0, description="older updates are dropped")


Schedule = Annotated[SynchronousSchedule | BufferedSchedule, Field(discriminator="kind")]
