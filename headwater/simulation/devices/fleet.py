"""Fleet: the device of every client, drawn from ``[simulation.devices]`` or read from its trace."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from statistics import NormalDist

from headwater.config.devices import (
    SPEEDS,
    AlwaysOnline,
    Choice,
    Churn,
    Constant,
    DailyWindow,
    DeviceSettings,
    Distribution,
    IntervalTrace,
    Lognormal,
    Uniform,
)
from headwater.seeds.keys import Key
from headwater.simulation.devices.clock import micros
from headwater.simulation.devices.costs import Link, Power, SimulatedDevice
from headwater.simulation.devices.growth import Growth
from headwater.simulation.devices.online import Always, Changes, Churning, Daily, OnlineTimes
from headwater.simulation.devices.traces import DeviceTrace

_HOUR = 3600.0
_ENDLESS_MB = 2**30
_ALWAYS = Always()


def drawn(distribution: Distribution, key: Key) -> float:
    """The value at a key: by the inverse of the distribution, so that one uniform number is enough."""
    if isinstance(distribution, Constant):
        return distribution.value
    share = key.numpy().random()
    if isinstance(distribution, Uniform):
        return distribution.low + share * (distribution.high - distribution.low)
    if isinstance(distribution, Lognormal):
        normal = NormalDist().inv_cdf(min(max(share, 2.0**-53), 1 - 2.0**-53))
        return max(distribution.ends()[0], distribution.median * math.exp(distribution.sigma * normal))
    return _chosen(distribution, share)


def _chosen(choice: Choice, share: float) -> float:
    weights = choice.weights or (1.0,) * len(choice.values)
    left = share * sum(weights)
    for value, weight in zip(choice.values, weights, strict=True):
        left -= weight
        if left < 0:
            return value
    return max(zip(weights, choice.values, strict=True))[1]


@dataclass
class Fleet:
    """Devices by client, each drawn when it is first asked for: a client's hangs on no other's.

    Args:
        settings: the table.
        key: the root key.
        parameters: of the base, for a speed in FLOP.
        trace: what the table's ``trace`` says; None without one.
        intervals: by client, when it comes and goes, of availability ``trace``.
    """

    settings: DeviceSettings
    key: Key
    parameters: int
    trace: DeviceTrace | None
    intervals: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        self._devices: dict[str, SimulatedDevice] = {}
        self._online: dict[str, OnlineTimes] = {}

    @property
    def resumes(self) -> bool:
        """Whether a task goes on after its client was offline."""
        return self.settings.interrupted == "resumes"

    def device(self, client: str) -> SimulatedDevice:
        """The device of this client."""
        if client not in self._devices:
            self._devices[client] = self._made(client)
        return self._devices[client]

    @property
    def always_online(self) -> bool:
        """Whether nobody ever comes or goes."""
        return isinstance(self.settings.availability, AlwaysOnline)

    def times(self, client: str) -> OnlineTimes:
        """When this client is online."""
        if self.always_online:
            return _ALWAYS
        if client not in self._online:
            self._online[client] = self._times(client)
        return self._online[client]

    @property
    def grows(self) -> bool:
        """Whether a client's rows may come with time."""
        at_start = self.settings.start_rows is not None
        return at_start or (self.trace is not None and self.trace.has("start_rows"))

    def growth(self, client: str) -> Growth:
        """How this client comes by its rows."""
        start, per_hour = self._number(client, "start_rows"), self._number(client, "rows_per_hour")
        return Growth(start, per_hour or 0.0)

    @property
    def has_memory(self) -> bool:
        """Whether some devices have less memory than this machine."""
        set_here = self.settings.memory_mb is not None
        return set_here or (self.trace is not None and self.trace.has("memory_mb"))

    def memory_mb(self, client: str) -> int:
        """What a training of this client may use, in MiB; what no device has if nothing says."""
        found = self._number(client, "memory_mb")
        return _ENDLESS_MB if found is None else min(_ENDLESS_MB, math.floor(found))

    def uniform(self, client: str, *path: str | int) -> float:
        """A number in [0, 1) at a place of the client's stream."""
        return float(self._key(client).child(*path).numpy().random())

    def _key(self, client: str) -> Key:
        return self.key.child("devices", client)

    def _made(self, client: str) -> SimulatedDevice:
        row = self._row(client)

        def of(name: str) -> float | None:
            return self._number(client, name, row)

        power = [of(field.name) or 0.0 for field in fields(Power)]
        return SimulatedDevice(
            pass_s=self._pass_s(row, client),
            dropout=of("dropout") or 0.0,
            link=Link(of("download_bps"), of("upload_bps"), of("latency_s") or 0.0),
            power=Power(*power),
            times=self.times(client),
        )

    def _row(self, client: str) -> Mapping[str, float]:
        return {} if self.trace is None else self.trace.row(client, self._key(client))

    def _number(self, client: str, name: str, row: Mapping[str, float] | None = None) -> float | None:
        """By the client's row of the trace, else by the table."""
        row = self._row(client) if row is None else row
        if name in row:
            return row[name]
        distribution = getattr(self.settings, name)
        return None if distribution is None else drawn(distribution, self._key(client).child(name))

    def _pass_s(self, row: Mapping[str, float], client: str) -> float:
        """Seconds of a token's pass: by the trace's speed, else by the table's."""
        name = next((n for n in SPEEDS if n in row), None)
        name = name or next((n for n in SPEEDS if getattr(self.settings, n) is not None), None)
        if name is None:
            return 0.0
        value = row.get(name)
        if value is None:
            value = drawn(getattr(self.settings, name), self._key(client).child(name))
        if name == "tokens_per_s":
            return 1 / value
        return value / 1000 if name == "seconds_per_1000_tokens" else 2 * self.parameters / value

    def _times(self, client: str) -> OnlineTimes:
        settings, key = self.settings.availability, self._key(client).child("availability")
        if isinstance(settings, DailyWindow):
            start = _HOUR * drawn(settings.from_h, key.child("from_h"))
            return Daily(micros(start), micros(_HOUR * drawn(settings.hours, key.child("hours"))))
        if isinstance(settings, Churn):
            online_s = drawn(settings.online_s, key.child("online_s"))
            return Churning(online_s, drawn(settings.offline_s, key.child("offline_s")), key.numpy())
        assert isinstance(settings, IntervalTrace)
        repeat = None if settings.repeat_s is None else micros(settings.repeat_s)
        return Changes(self.intervals.get(client, ()), repeat)
