"""Masking: the devices' side of masked sums, where the devices are in the server's process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from headwater.security.secagg.client import MaskingClient
from headwater.security.secagg.group import SumRound


class Masking(Protocol):
    """The devices' side."""

    def enrolled(self, names: tuple[str, ...]) -> Mapping[str, bytes]:
        """Signing keys by name."""

    def client(self, sum_round: SumRound, name: str, enrolled: Mapping[str, bytes]) -> MaskingClient:
        """One device's side of one sum."""
