"""SimulatedMasking: the devices' side of masked sums, for clients that are all in this process."""

from __future__ import annotations

from collections.abc import Mapping

from headwater.security.secagg.client import MaskingClient
from headwater.security.secagg.group import SumRound
from headwater.security.secagg.signer import Signer


class SimulatedMasking:
    """What each device has for itself: its key, and in which rounds it has signed a list of survivors.

    Keys are new in each process. Masks cancel to the last bit, so that no result depends on them.
    """

    def __init__(self) -> None:
        self._signers: dict[str, Signer] = {}
        self._signed: dict[str, set[tuple[str, int]]] = {}

    def enrolled(self, names: tuple[str, ...]) -> Mapping[str, bytes]:
        """Signing keys by name."""
        return {name: self._signer(name).public for name in names}

    def client(self, sum_round: SumRound, name: str, enrolled: Mapping[str, bytes]) -> MaskingClient:
        """One device's side of one sum."""
        signed = self._signed.setdefault(name, set())
        return MaskingClient(sum_round, name, self._signer(name).sign, enrolled, signed)

    def _signer(self, name: str) -> Signer:
        if name not in self._signers:
            self._signers[name] = Signer()
        return self._signers[name]
