"""``[simulation.devices]``: the devices, links and people that a simulation pretends, and their time.

With this table a simulation has a clock of its own. What a client's task takes follows from its device, from
real bytes and real token counts, never from this machine's speed: :mod:`headwater.simulation.devices`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from headwater.config.settings import Settings


class Constant(Settings):
    """The same for all clients; a number alone means this."""

    kind: Literal["constant"]
    value: float = Field(ge=0)

    def ends(self) -> tuple[float, float]:
        """The least and the greatest value."""
        return self.value, self.value


class Uniform(Settings):
    """Between ``low`` and ``high``, each value as likely."""

    kind: Literal["uniform"]
    low: float = Field(ge=0)
    high: float = Field(ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if self.high < self.low:
            raise ValueError(f"high {self.high:g} is below low {self.low:g}")
        return self

    def ends(self) -> tuple[float, float]:
        """The least and the greatest value."""
        return self.low, self.high


class Lognormal(Settings):
    """Half of the clients below ``median``; ``sigma`` is the standard deviation of the logarithm."""

    kind: Literal["lognormal"]
    median: float = Field(gt=0)
    sigma: float = Field(ge=0, le=20)

    def ends(self) -> tuple[float, float]:
        """No value is ruled out but 0."""
        return 5e-324, inf


class Choice(Settings):
    """One of ``values``, each as likely as its weight says."""

    kind: Literal["choice"]
    values: tuple[float, ...] = Field(min_length=1, strict=False)
    weights: tuple[float, ...] | None = Field(default=None, strict=False)

    @model_validator(mode="after")
    def _one_each(self) -> Choice:
        if self.weights is not None and (len(self.weights) != len(self.values) or sum(self.weights) <= 0):
            raise ValueError(f"weights: one for each of {len(self.values)} values, not all 0")
        if min(*self.values, *(self.weights or ()), 0.0) < 0:
            raise ValueError("values and weights of at least 0")
        return self

    def ends(self) -> tuple[float, float]:
        """The least and the greatest value."""
        return min(self.values), max(self.values)


def _constant(value: Any) -> Any:  # noqa: ANN401 - whatever stands in the file
    """A number alone is a constant."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"kind": "constant", "value": value} if is_number else value


Distribution = Annotated[
    Annotated[Constant | Uniform | Lognormal | Choice, Field(discriminator="kind")],
    BeforeValidator(_constant),
]
"""Of one number over the clients. Each client draws from a stream of its own."""

NONE = Constant(kind="constant", value=0.0)


class AlwaysOnline(Settings):
    """Every client can be asked at any time."""

    kind: Literal["always"] = "always"


class DailyWindow(Settings):
    """Online once in 24 hours, such as at night while charging."""

    kind: Literal["daily"]
    from_h: Distribution = Field(description="hour of the day at which it comes online; hour 24 is hour 0")
    hours: Distribution = Field(description="how long it stays; 24 and more is always")


class Churn(Settings):
    """Online and offline by turns, for exponentially distributed times, from the start as in the long run."""

    kind: Literal["churn"]
    online_s: Distribution = Field(description="mean of a client's times online")
    offline_s: Distribution = Field(description="mean of its times offline")


class IntervalTrace(Settings):
    """Online in the intervals of a CSV file with the columns ``client``, ``start_s`` and ``end_s``."""

    kind: Literal["trace"]
    path: str = Field(min_length=1, description="the file; a client without a row is never online")
    repeat_s: float | None = Field(default=None, ge=1, description="the file begins anew after so long")


Availability = Annotated[AlwaysOnline | DailyWindow | Churn | IntervalTrace, Field(discriminator="kind")]

SPEEDS = ("tokens_per_s", "seconds_per_1000_tokens", "flop_per_s")


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a number may be: at least 0, or above it, and at most ``most``."""

    above_zero: bool
    most: float

    def holds(self, value: float) -> bool:
        """Whether it is allowed."""
        return (value > 0 if self.above_zero else value >= 0) and value <= self.most

    def __str__(self) -> str:
        least = "above 0" if self.above_zero else "of at least 0"
        return f"a number {least} and at most {self.most:g}"


def allowed(name: str) -> Allowed:
    """What a setting of a device, or a column of a trace, may be."""
    positive = name in (*SPEEDS, "download_bps", "upload_bps", "online_s", "offline_s", "memory_mb")
    return Allowed(positive, 1.0 if name == "dropout" else 1e18)


class DeviceSettings(Settings):
    """``[simulation.devices]``: numbers, or distributions over the clients; ``trace`` has them by client."""

    trace: str | None = Field(
        default=None,
        min_length=1,
        description="CSV file whose columns have the names of the settings below, one row a client named in "
        "column `client`; without that column each client is dealt a row. What it lacks is taken from here",
    )
    tokens_per_s: Distribution | None = Field(
        default=None,
        description="tokens of one forward pass a second; a backward pass costs as much as a forward pass",
    )
    seconds_per_1000_tokens: Distribution | None = Field(default=None, description="the same, upside down")
    flop_per_s: Distribution | None = Field(
        default=None, description="a token's pass takes 2 FLOP for each parameter of the base"
    )
    download_bps: Distribution | None = Field(default=None, description="bit/s; no time if absent")
    upload_bps: Distribution | None = Field(default=None, description="bit/s; no time if absent")
    latency_s: Distribution = Field(default=NONE, description="added to each download and each upload")
    dropout: Distribution = Field(
        default=NONE, description="probability that a task ends in nothing, somewhere in its computation"
    )
    availability: Availability = AlwaysOnline()
    interrupted: Literal["lost", "resumes"] = Field(
        default="lost",
        description="a task whose client goes offline fails at once, or goes on when it is back",
    )
    memory_mb: Distribution | None = Field(
        default=None,
        description="what a training may use, in MiB; without end if absent. A planner goes by it, and what "
        "is predicted to take more fails",
    )
    start_rows: Distribution | None = Field(
        default=None, description="training rows that a client has at the start; all if absent"
    )
    rows_per_hour: Distribution = Field(
        default=NONE, description="rows that it gets from then on, in their order, until it has all"
    )
    compute_watts: Distribution = Field(default=NONE, description="while it computes")
    send_watts: Distribution = Field(default=NONE, description="while it sends")
    receive_watts: Distribution = Field(default=NONE, description="while it receives")
    joules_per_byte: Distribution = Field(default=NONE, description="of each byte sent or received, on top")
    idle_watts: Distribution = Field(
        default=NONE, description="of who was asked in a round and neither computes, sends nor receives"
    )
    server_s: float = Field(default=0.0, ge=0, description="what the server takes to close a round")

    @property
    def has_uploads(self) -> bool:
        """Whether an update takes time by its length."""
        return self.upload_bps is not None or self.trace is not None

    @model_serializer(mode="wrap")
    def _without_later_ones(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """No key for what nobody asked for: runs were named without."""
        content: dict[str, Any] = handler(self)
        for name in ("memory_mb", "start_rows", "rows_per_hour"):
            if getattr(self, name) == type(self).model_fields[name].default:
                content.pop(name, None)
        return content

    @model_validator(mode="after")
    def _possible(self) -> DeviceSettings:
        said = [name for name in SPEEDS if getattr(self, name) is not None]
        if len(said) > 1:
            raise ValueError(f"{said[0]} and {said[1]} say the same: leave one of them out")
        distributions = [(name, getattr(self, name)) for name in COLUMNS]
        if isinstance(self.availability, Churn):
            distributions += [(n, getattr(self.availability, n)) for n in ("online_s", "offline_s")]
        for name, found in distributions:
            if found is None:
                continue
            limit, (least, most) = allowed(name), found.ends()
            if not limit.holds(least) or not (limit.holds(most) or (most == inf and limit.most > 1)):
                raise ValueError(f"{name} must be {limit} for every client, not {least:g} to {most:g}")
        return self


COLUMNS = tuple(
    name
    for name in DeviceSettings.model_fields
    if name not in ("trace", "availability", "interrupted", "server_s")
)
"""The settings that a trace may have as columns."""
