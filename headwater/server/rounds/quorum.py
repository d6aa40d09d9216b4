"""Quorum: whether enough clients are there for a round, and who is missing."""

from __future__ import annotations

from collections.abc import Mapping

from headwater.config.federation import Federation
from headwater.protocol.messages import ClientProfile
from headwater.server.clients.client_pool import ClientPool
from headwater.server.events import Notice, Observer
from headwater.server.storage.durability import Durability, OpenRoundRecord
from headwater.strategies.federated import FederatedStrategy
from headwater.strategies.strategy import ServerState


class Quorum:
    """How many clients a round needs under these settings.

    Args:
        settings: of the federation.
        strategy: theirs, which says whom a round may not ask, whoever is there.
        durability: what a daemon adds: a round that an earlier process left open needs nobody new.
    """

    def __init__(
        self, settings: Federation, strategy: FederatedStrategy, durability: Durability | None
    ) -> None:
        self._settings, self._strategy, self._durability = settings, strategy, durability

    @property
    def need(self) -> int:
        """How many clients must be there for a round."""
        schedule, least = self._settings.schedule, self._settings.cohort.min_clients
        buffer: int = schedule.buffer or 0
        return max(least, buffer)

    def reached(self, have: int) -> bool:
        """Whether a round can begin with so many clients that have rows to train on.

        One that a crash left open goes on with any number: it is known who was asked.
        """
        return have >= self.need or self._has_open_round()

    def have(self, profiles: Mapping[str, ClientProfile], server: ServerState | None) -> int:
        """How many of these clients the round after ``server`` can ask; before round 0 there is none."""
        able = [name for name, profile in profiles.items() if profile.train_examples > 0]
        return len(able) - (len(self._strategy.not_in_turn(server, able)) if server else 0)

    def stuck(self, pool: ClientPool, server: ServerState | None) -> bool:
        """Whether too few may be asked even if all came: in a simulation, which nobody joins, for ever."""
        waiting = self._strategy.not_in_turn(server, pool.profiles()) if server else {}
        return bool(waiting) and len(pool.profiles()) - len(waiting) < self.need

    def missing(self, pool: ClientPool, server: ServerState | None) -> tuple[str, ...]:
        """Who is not counted among those that can train, each with the reason, sorted by name."""
        ready = pool.ready()
        waiting = self._strategy.not_in_turn(server, ready) if server else {}
        only = {n: "has no rows to train on" for n, p in ready.items() if p.train_examples < 1}
        return tuple(f"{name} ({why})" for name, why in sorted({**pool.missing(), **waiting, **only}.items()))

    def drop_small_round(self, observer: Observer) -> None:
        """Forget an open round that has fewer clients than the organiser wants by now: it could never end.

        It is planned anew. What was accepted into it stays in the spool and is folded all the same.
        """
        if self._durability is None:
            return
        if self._settings.privacy.noised and not self._settings.privacy.shares:
            return  # it ends with any number
        left = OpenRoundRecord.load(self._durability.open_round)
        if left is not None and (have := trainable(left.profiles)) < self.need:
            observer(Notice(f"round {left.round} had {have} clients: it is planned anew with more"))
            self._durability.open_round.unlink()

    def _has_open_round(self) -> bool:
        return self._durability is not None and self._durability.open_round.exists()


def trainable(profiles: Mapping[str, ClientProfile]) -> int:
    """How many of these clients have rows to train on."""
    return sum(profile.train_examples > 0 for profile in profiles.values())
