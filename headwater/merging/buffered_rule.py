"""BufferedRule: a rule that needs every update at once, such as a median.

Its accumulator is the updates themselves, by client. Joining two such tables is as associative and
commutative as adding two sums, so every law of an :class:`~headwater.merging.aggregator.Aggregator` holds,
and replies on disk are folded again to the same bits. What it costs is memory: 4 bytes a value *and client*,
until the round is merged. (The spool keeps encoded replies, and grows no further than with other rules.) And
a secure sum, which shows the server nothing but the sum, can never feed it: ``additive`` is False.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headwater.errors import ConfigError, DecodeError, EmptyRound
from headwater.merging.aggregator import Aggregator, Merged
from headwater.merging.coverage import covered_by, require_covered
from headwater.merging.fixed_point import require_bounded, require_norm
from headwater.merging.participants import Participants
from headwater.merging.plan import MergePlan, Update
from headwater.state import AdapterState, StateSpec
from headwater.text import human_bytes

MOST_WEIGHT = 2**61
"""Twice the sum of all weights must be an int64."""
_AT_ONCE = 2**20
"""Values of all clients together that are merged at a time."""


@dataclass(frozen=True)
class BufferedUpdates:
    """Who is in, and what each of them sent: float32 [numel] by client."""

    participants: Participants
    values: dict[str, Tensor] = field(default_factory=dict)


class BufferedRule(Aggregator[BufferedUpdates]):
    """Keeps updates; :meth:`merged` is what a rule adds to that.

    Args:
        most_bytes: that the updates of one round may take in memory.
    """

    additive: ClassVar[bool] = False
    name: str
    """For errors: the rule's ``strategy.kind``."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes

    @abstractmethod
    def merged(self, acc: BufferedUpdates) -> npt.NDArray[np.float64]:
        """The result, of one update or more: float64 [numel].

        The same bits for any order of the clients: take them in order of name.
        """

    def kept_bytes(self, spec: StateSpec, clients: int) -> int:  # noqa: D102 - inherited
        return spec.nbytes * clients

    def require_room(self, spec: StateSpec, clients: int) -> None:  # noqa: D102 - inherited
        needed = self.kept_bytes(spec, clients)
        if needed > self.most_bytes:
            raise ConfigError(
                f"strategy '{self.name}'",
                expected=f"at most {human_bytes(self.most_bytes)} of updates, kept until a round ends",
                got=f"{clients:,} clients x {human_bytes(spec.nbytes)} = {human_bytes(needed)}",
                hint="Set cohort.clients_per_round, raise strategy.max_kept_mb if the server has that much "
                "memory, or use a strategy that adds updates up, such as mean or ties.",
            )

    def init(self, plan: MergePlan) -> BufferedUpdates:
        """No update yet.

        Raises:
            ConfigError: weights whose sum could overflow.
        """
        if plan.total_weight > MOST_WEIGHT:
            raise ConfigError(
                "merge plan",
                expected=f"a total weight of at most {MOST_WEIGHT}",
                got=str(plan.total_weight),
                hint='Use weighting = "equal".',
            )
        return BufferedUpdates(Participants(plan))

    def require_sound(self, acc: BufferedUpdates) -> None:
        """Each update by itself, as when it is added.

        Raises:
            DecodeError: other clients than it says.
            UpdateRejected: names the client whose values must not be merged.
        """
        plan = acc.participants.plan
        if acc.values.keys() != acc.participants.clients:
            raise DecodeError("accumulator, values", expected="one update of each client", got="others")
        for client, vector in acc.values.items():
            if tuple(vector.shape) != (plan.spec.numel,) or vector.dtype != torch.float32:
                raise DecodeError(
                    f"accumulator, client {client}",
                    expected=f"float32 ({plan.spec.numel},)",
                    got=f"{vector.dtype} {tuple(vector.shape)}",
                )
            require_bounded(vector, plan.spec, bound=plan.value_bound, who=f"client {client}")
            require_covered(vector, plan, client)
            if plan.norm_bound is not None:
                require_norm(vector, f"client {client}", most=plan.norm_bound)

    def add(self, acc: BufferedUpdates, update: Update) -> BufferedUpdates:
        """Keep the values.

        Raises:
            UpdateRejected: also coefficients of seeds, and values outside what the client trains.
        """
        plan = acc.participants.plan
        acc.participants.weight_of(update)
        vector = acc.participants.values_of(update).vector()
        require_bounded(vector, plan.spec, bound=plan.value_bound, who=f"client {update.client}")
        require_covered(vector, plan, update.client)
        acc.values[update.client] = vector
        acc.participants.enter(update.client)
        return acc

    def combine(self, left: BufferedUpdates, right: BufferedUpdates) -> BufferedUpdates:
        """The updates of both groups."""
        left.participants.require_disjoint(right.participants)
        left.values.update(right.values)
        left.participants.join(right.participants)
        return left

    def finalize(self, acc: BufferedUpdates) -> Merged:
        """Merge.

        The report has ``delta_norm`` (L2) and ``kept_bytes``, the memory that the updates took.
        """
        participants = acc.participants
        if not participants.clients:
            raise EmptyRound(self.name, expected="at least one accepted update", got="none")
        spec = participants.plan.spec
        merged = self.merged(acc)
        # adding zero makes one zero of two: which of -0.0 and 0.0 stood there is a matter of order
        delta = AdapterState.from_vector(spec, torch.from_numpy((merged + 0.0).astype(np.float32)))
        kept = float(self.kept_bytes(spec, len(participants.clients)))
        report = {"delta_norm": delta.norm(), "kept_bytes": kept}
        return Merged(delta, tuple(sorted(participants.clients)), participants.weight, report)


class CoordinateRule(BufferedRule):
    """One that goes coordinate by coordinate."""

    @abstractmethod
    def merge(
        self, values: npt.NDArray[np.float32], weights: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """The result, coordinate by coordinate: float64 [block].

        The same bits for any order of the clients.

        Args:
            values: [clients, block], finite.
            weights: [clients, block]: 0 where a client does not train that value, and perhaps for all.
        """

    def merged(self, acc: BufferedUpdates) -> npt.NDArray[np.float64]:
        """Some coordinates of all clients at a time."""
        merged = np.zeros(acc.participants.plan.spec.numel, np.float64)
        for part, values, weights in _blocks(acc):
            merged[part] = self.merge(values, weights)
        return merged


def _blocks(
    acc: BufferedUpdates,
) -> Iterator[tuple[slice, npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
    """Coordinates, their values and their weights, of all clients in order of name."""
    plan, names = acc.participants.plan, sorted(acc.values)
    rows = [acc.values[name].numpy() for name in names]
    whole = np.array([plan.weights[name] for name in names], np.int64)[:, None]
    masks = [covered_by(plan, name) for name in names]
    size = max(1, _AT_ONCE // len(names))
    for start in range(0, plan.spec.numel, size):
        part = slice(start, min(start + size, plan.spec.numel))
        values = np.stack([row[part] for row in rows])
        weights = np.repeat(whole, values.shape[1], axis=1)
        for row, mask in zip(weights, masks, strict=True):
            if mask is not None:
                row[~mask[part].numpy()] = 0
        yield part, values, weights
