"""SimulatedTask: one request on its way through a device, and :class:`Spent`, what it took."""

from __future__ import annotations

from dataclasses import dataclass, field

from headwater.simulation.devices.clock import NEVER
from headwater.simulation.devices.costs import SimulatedDevice

DROPPED = "dropped out (simulated)"


@dataclass(frozen=True, slots=True)
class Spent:
    """What a client spent on one task.

    Args:
        client: its name.
        kind: Flower's type of the message: ``train`` or ``evaluate``.
        asked: when the request was sent, in microseconds, as all times here.
        ended: when the reply came, or the task was given up.
        download: time of it.
        compute: time of it.
        upload: time of it.
        joules: without idling.
        answered: whether a reply came: else it was lost, late or not needed.
        sent: bytes of its reply that were through.
    """

    client: str
    kind: str
    asked: int
    ended: int
    download: int
    compute: int
    upload: int
    joules: float
    answered: bool
    sent: float = 0.0

    @property
    def bytes_per_s(self) -> int | None:
        """How fast its reply came, or the part of it that did; None if nothing of it took any time."""
        return int(self.sent * 1e6 / self.upload) if self.upload and self.sent else None


@dataclass(slots=True)
class SimulatedTask:
    """A request that a simulated device works on. Times in microseconds.

    Args:
        client: whom it asks.
        kind: Flower's type of the message.
        device: the client's.
        asked: when it was sent.
        size_down: bytes.
        compute: time of its computation.
        drops_after: of download and computation together, after which the client drops out; None if not.
        why: it drops out.
    """

    client: str
    kind: str
    device: SimulatedDevice
    asked: int
    size_down: int
    compute: int
    drops_after: int | None = None
    why: str = DROPPED
    size_up: int = field(default=0, init=False)
    computed: int = field(default=NEVER, init=False)
    arrives: int = field(default=NEVER, init=False)
    failure: str = field(default="", init=False)

    def begin(self, *, resumes: bool) -> None:
        """Find out when the computation ends, or what comes between."""
        wanted = self.device.link.download(self.size_down) + self.compute
        amount = wanted if self.drops_after is None else self.drops_after
        when, done = self.device.times.work(self.asked, amount, resumes=resumes)
        if done and self.drops_after is None:
            self.computed = when
        else:
            self._fail(when, done)

    def finish(self, size_up: int, *, resumes: bool) -> None:
        """Find out when a reply of so many bytes arrives."""
        self.size_up = size_up
        when, done = self.device.times.work(self.computed, self.device.link.upload(size_up), resumes=resumes)
        if done:
            self.arrives = when
        else:
            self._fail(when, done)

    def _fail(self, when: int, dropped: bool) -> None:
        self.arrives = when
        self.failure = self.why if dropped else "went offline in mid-task (simulated)"

    def spent(self, now: int, *, resumes: bool) -> Spent:
        """What it took until it ended, or until ``now`` if it is given up then."""
        end, times = min(now, self.arrives), self.device.times
        start = self.asked if times.online(self.asked) else times.next_change(self.asked)
        left = max(0, times.time_online(start, end) if resumes else end - start)
        download, size = self._part(
            left, self.device.link.download(self.size_down), self.size_down, start <= end
        )
        compute = min(left - download, self.compute)
        upload, sent = 0, 0.0
        if self.computed <= end:
            whole = self.device.link.upload(self.size_up)
            upload, sent = self._part(left - download - compute, whole, self.size_up, True)
            size += sent
        joules = self.device.power.joules(download, compute, upload, size)
        answered = not self.failure and self.arrives <= now
        return Spent(
            self.client, self.kind, self.asked, end, download, compute, upload, joules, answered, sent
        )

    @staticmethod
    def _part(left: int, whole: int, size: int, begun: bool) -> tuple[int, float]:
        """How long a transfer was going on, and the bytes of it that were through."""
        part = min(left, whole)
        return part, size * (part / whole if whole else float(begun))
