"""``[contribution]``: what each owner, or group of owners, brings to a round."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from headwater.config.settings import Settings


class ContributionSettings(Settings):
    """``[contribution]``: players' values in the game whose worth is the deciding metric on ``data.test``."""

    kind: Literal["leave-one-out", "shapley"] = Field(
        description="`leave-one-out`: what is lost without a player; `shapley`: its mean gain over all orders"
    )
    every: int = Field(default=1, ge=1, description="rounds between measurements")
    permutations: int = Field(
        default=20,
        ge=1,
        le=100_000,
        description="of `shapley`: drawn orders; all subsets where that is cheaper",
    )
    tolerance: float = Field(
        default=0.0,
        ge=0,
        description="of `shapley`: an order ends once its worth is this near to that of all players",
    )
    groups: dict[str, tuple[str, ...]] = Field(
        default={}, description="clients that are one player, by its name; all others are one each"
    )
    max_kept_mb: int = Field(default=1024, ge=1, le=2**20, description="of memory for the players' sums")

    @field_validator("groups")
    @classmethod
    def _one_group_each(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        members = [client for clients in value.values() for client in clients]
        if twice := {client for client in members if members.count(client) > 1}:
            raise ValueError(f"client {min(twice)} is in two groups, or twice in one")
        if both := value.keys() & set(members):
            raise ValueError(f"{min(both)!r} is a group and a client")
        return value

    def player_of(self, client: str) -> str:
        """The group that a client is in, else itself."""
        return next((name for name, clients in self.groups.items() if client in clients), client)
