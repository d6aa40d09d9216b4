"""SimulatedMasking: the devices' side of masked sums, for clients that are all in this process."""

from __future__ import annotations

from collections.abc import Mapping

from headwater.security.secagg.client import MaskingClient
from headwater.security.secagg.group import SumRound
from headwater.security.secagg.memory import ProcessMemory
from headwater.security.secagg.signer import Signer


class SimulatedMasking:
    """What each device has for itself: its key, and what it has told in masked rounds.

    Keys are new in each process. Masks cancel to the last bit, so that no result depends on them.
    """

    def __init__(self) -> None:
        self._signers: dict[str, Signer] = {}
        self._memories: dict[str, ProcessMemory] = {}

    def enrolled(self, names: tuple[str, ...]) -> Mapping[str, bytes]:
        """Signing keys by name."""
        return {name: self._signer(name).public for name in names}

    def client(self, sum_round: SumRound, name: str, enrolled: Mapping[str, bytes]) -> MaskingClient:
        """One device's side of one sum."""
        memory = self._memories.setdefault(name, ProcessMemory())
        memory.forget_unsigned(sum_round.run, sum_round.round)
        return MaskingClient(sum_round, name, self._signer(name).sign, enrolled, memory)

    def _signer(self, name: str) -> Signer:
        if name not in self._signers:
            self._signers[name] = Signer()
        return self._signers[name]
