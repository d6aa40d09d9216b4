"""What a task takes: :class:`SimulatedDevice` in time and energy, :class:`Workload` in passes of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headwater.data.federated import FederatedData
from headwater.protocol.messages import EvaluateRequest, TrainRequest
from headwater.simulation.devices.clock import micros
from headwater.simulation.devices.online import OnlineTimes

FISHER_PASSES = 2
"""Forward and backward."""


@dataclass(frozen=True, slots=True)
class Link:
    """A device's way to the server; bit/s, None for no time.

    Args:
        download_bps: down.
        upload_bps: up.
        latency_s: of each download and each upload.
    """

    download_bps: float | None
    upload_bps: float | None
    latency_s: float

    def download(self, size: int) -> int:
        """Microseconds for so many bytes."""
        return micros(self.latency_s + _transfer_s(size, self.download_bps))

    def upload(self, size: int) -> int:
        """Microseconds for so many bytes."""
        return micros(self.latency_s + _transfer_s(size, self.upload_bps))


@dataclass(frozen=True, slots=True)
class Power:
    """What a device draws.

    Args:
        compute_watts: while it computes.
        send_watts: while it sends.
        receive_watts: while it receives.
        joules_per_byte: of each byte that it sends or receives, on top.
        idle_watts: in a round, while it does nothing.
    """

    compute_watts: float
    send_watts: float
    receive_watts: float
    joules_per_byte: float
    idle_watts: float

    def joules(self, download: int, compute: int, upload: int, size: float) -> float:
        """What a task takes: its parts in microseconds, and bytes, down and up."""
        work = self.receive_watts * download + self.compute_watts * compute + self.send_watts * upload
        return work / 1e6 + self.joules_per_byte * size


@dataclass(frozen=True, slots=True)
class SimulatedDevice:
    """One client's device, as ``[simulation.devices]`` and its trace describe it.

    Args:
        pass_s: seconds that a token's pass through the base takes, forward or backward.
        dropout: probability that a task ends in nothing.
        link: its way to the server.
        power: what it draws.
        times: when it is online.
    """

    pass_s: float
    dropout: float
    link: Link
    power: Power
    times: OnlineTimes

    def compute(self, passes: float) -> int:
        """Microseconds for so many passes of a token."""
        return micros(passes * self.pass_s)


def _transfer_s(size: int, bps: float | None) -> float:
    return 0.0 if bps is None else 8 * size / bps


class Workload:
    """Passes of tokens through the base that a request asks for.

    A step is ``passes`` passes over its rows (:meth:`~headwater.config.traits.TrainingSettings.passes`), each
    of the mean length of the client's rows. Without rows (``data.kind = "none"``) an example is one token,
    and a round trains on each once.

    Args:
        data: of the clients.
    """

    def __init__(self, data: FederatedData) -> None:
        self._data = data
        self._sizes: dict[tuple[str, int | None], tuple[int, float, int]] = {}

    def passes(self, request: TrainRequest | EvaluateRequest) -> float:
        """Tokens, each counted once for every pass."""
        if isinstance(request, EvaluateRequest):
            return float(self._size(request.client, None)[2])
        rows, mean, _ = self._size(request.client, request.plan.rows)
        training = request.plan.training
        fisher = request.plan.fisher
        extra = 0.0 if fisher is None else FISHER_PASSES * mean * min(rows, fisher.examples)
        if training.learns_from == "nothing":
            return rows * mean * training.passes() + extra
        steps, size = training.steps_of(rows) or 0, getattr(training, "batch_size", rows)
        whole, rest = divmod(steps, -(-rows // size))
        return (whole * rows + min(rows, rest * size)) * mean * training.passes() + extra

    def _size(self, client: str, rows: int | None) -> tuple[int, float, int]:
        """Rows to train on, their mean tokens, and the tokens of the validation split."""
        if (client, rows) not in self._sizes:
            data = self._data.client(client)
            tokens = [max(1, len(example.tokens)) for example in data.train[:rows]]
            held_out = sum(max(1, len(example.tokens)) for example in data.validation)
            self._sizes[client, rows] = len(tokens), sum(tokens) / max(1, len(tokens)), held_out
        return self._sizes[client, rows]


Passes = Callable[[TrainRequest | EvaluateRequest], float]
