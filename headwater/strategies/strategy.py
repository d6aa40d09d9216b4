"""The server's maths, state in and state out: :class:`Strategy` and :class:`ServerState`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from headwater.errors import StorageError
from headwater.merging.aggregator import Aggregator, Merged
from headwater.protocol.keys import Key
from headwater.protocol.messages import ClientProfile, RoundPlan
from headwater.state import AdapterState, StateSpec


@dataclass(frozen=True)
class ServerState:
    """The server's whole checkpoint.

    Args:
        round: the last finished round; 0 before the first.
        state: the global adapter.
        momentum: the server optimiser's momentum, of the same spec; None without one.
    """

    round: int
    state: AdapterState
    momentum: AdapterState | None = None

    def to_tensors(self) -> dict[str, Tensor]:
        """Flat tensors for a file: ``state/NAME``, and ``momentum/NAME`` if there is a momentum."""
        tensors = {f"state/{name}": value for name, value in self.state.items()}
        if self.momentum is not None:
            tensors |= {f"momentum/{name}": value for name, value in self.momentum.items()}
        return tensors

    @staticmethod
    def from_tensors(spec: StateSpec, round_: int, tensors: Mapping[str, Tensor]) -> ServerState:
        """The inverse of :meth:`to_tensors`, for the spec and round that were stored beside them.

        Raises:
            SpecMismatch: a tensor is missing or has another shape or dtype.
            StorageError: a tensor belongs to neither state nor momentum.
        """
        parts: dict[str, dict[str, Tensor]] = {"state": {}, "momentum": {}}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            if part not in parts:
                raise StorageError(
                    f"server state, tensor {key}", expected="a name under state/ or momentum/", got=key
                )
            parts[part][name] = value
        state = AdapterState(spec, parts["state"])
        return ServerState(
            round_, state, AdapterState(spec, parts["momentum"]) if parts["momentum"] else None
        )


class Strategy(ABC):
    """Who trains what, and how the result moves the model. No clock, no file, no network."""

    @abstractmethod
    def init(self, state: AdapterState) -> ServerState:
        """The server's state before round 1, for an initial global adapter."""

    @abstractmethod
    def plan(self, server: ServerState, profiles: Mapping[str, ClientProfile], *, key: Key) -> RoundPlan:
        """The next round, number ``server.round + 1``: a function of its arguments.

        Args:
            server: the state after the last finished round.
            profiles: every client that can take part, by enrolled name.
            key: the federation's root key; the round's own key is derived from it.

        Raises:
            FederationStopped: no client can take part.
        """

    @abstractmethod
    def aggregator(self, plan: RoundPlan) -> Aggregator[Any]:
        """The rule that merges the updates of ``plan``."""

    @abstractmethod
    def update(self, server: ServerState, merged: Merged) -> ServerState:
        """The state after the round.

        Raises:
            SpecMismatch: the merged delta has another spec than the global adapter.
        """
