"""What a round's players brought to it: :class:`PlayerSums` while it is open, :class:`Contributions` after.

A rule adds, so the merge of any set of players is the combination of their sums, exact in int64: nobody
trains again. What it costs is one combination and one evaluation on the server's test rows for each set
that is asked about, and each player's sums in memory while the round is open.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic

from headwater.config.contribution import ContributionSettings
from headwater.config.data import lower_is_better
from headwater.config.federation import Federation
from headwater.errors import ConfigError, EmptyRound, TrainingError
from headwater.merging.aggregator import Acc, Aggregator, Merged
from headwater.merging.plan import MergePlan, Update
from headwater.seeds.keys import Key
from headwater.server.metrics import metric_name
from headwater.state import AdapterState
from headwater.strategies.contribution import Asked, leave_one_out, shapley
from headwater.strategies.federated import FederatedStrategy
from headwater.strategies.rules import rule_for
from headwater.strategies.strategy import ServerState
from headwater.tasks.batches import Example
from headwater.training.context import TrainingContext


class PlayerSums(Generic[Acc]):
    """The sums of a round apart by player.

    Args:
        rule: of the round.
        plan: of its merge.
        settings: who is one player.

    Raises:
        ConfigError: they would take more memory than the settings allow.
    """

    def __init__(self, rule: Aggregator[Acc], plan: MergePlan, settings: ContributionSettings) -> None:
        self._rule, self._plan, self._settings = rule, plan, settings
        players = {settings.player_of(client) for client in plan.weights}
        size = 8 * plan.spec.numel * len(players)
        if size > settings.max_kept_mb << 20:
            raise ConfigError(
                "contribution.max_kept_mb",
                expected=f"room for the sums of {len(players)} players, {size >> 20} MB",
                got=f"{settings.max_kept_mb} MB",
                hint="Raise it, or make groups of clients: contribution.groups.",
            )
        self._sums: dict[str, Acc] = {}

    @property
    def players(self) -> tuple[str, ...]:
        """Who is in, sorted."""
        return tuple(sorted(self._sums))

    def add(self, update: Update) -> None:
        """A client's update, which the round has taken."""
        player = self._settings.player_of(update.client)
        sums = self._sums.pop(player, None)
        self._sums[player] = self._rule.add(self._rule.init(self._plan) if sums is None else sums, update)

    def join(self, edge: str, sums: Acc) -> None:
        """What an edge aggregator added up, whose clients are one player: nobody here sees them apart."""
        had = self._sums.pop(edge, None)
        self._sums[edge] = sums if had is None else self._rule.combine(had, sums)

    def of(self, players: Sequence[str]) -> Acc:
        """The accumulator of these players alone."""
        acc = self._rule.init(self._plan)
        for player in sorted(players):
            acc = self._rule.combine(acc, copy.deepcopy(self._sums[player], {id(self._plan): self._plan}))
        return acc

    def finalize(self, players: Sequence[str]) -> Merged:
        """The merge of these players alone."""
        return self._rule.finalize(self.of(players))


class Contributions:
    """Measures rounds.

    Args:
        federation: the settings.
        strategy: that moves the state.
        context: the base model.
        test: the server's rows.
        root: the federation's root key.

    Raises:
        ConfigError: a rule whose sums are no function of each player alone.
    """

    def __init__(
        self,
        federation: Federation,
        strategy: FederatedStrategy,
        context: TrainingContext,
        test: Sequence[Example] | None,
        root: Key,
    ) -> None:
        self._settings, self._strategy, self._root = federation.contribution, strategy, root
        self._context, self._test = context, test
        if self._settings is not None and rule_for(federation.strategy).passes > 1:
            raise ConfigError(
                "[contribution]",
                expected="a rule that is given each update once",
                got=f"strategy.kind '{federation.strategy.kind}'",
                hint="Leave the table out, or choose another rule.",
            )
        self._metric = metric_name(federation)

    def due(self, round: int) -> bool:
        """Whether this round is measured."""
        return self._settings is not None and round % self._settings.every == 0

    def opened(self, rule: Aggregator[Any], plan: MergePlan, round: int) -> PlayerSums[Any] | None:
        """What a round that is measured adds its updates to, beside the round's own sums."""
        if self._settings is None or not self.due(round):
            return None
        return PlayerSums(rule, plan, self._settings)

    def measure(self, before: ServerState, sums: PlayerSums[Any]) -> dict[str, Any]:
        """What each player brought to the round, for its record.

        A set's worth is the deciding metric, with its sign turned where lower is better, of the state that
        the server would have moved to with that set alone; nobody's is that of the state before. ``values``
        are missing where such a state could not be evaluated.
        """
        assert self._settings is not None, "asked for"
        settings, players = self._settings, sums.players
        worth = Asked(self._worth(before, sums))
        values: Mapping[str, float]
        if settings.kind == "shapley":
            draw = self._root.child("contribution", before.round + 1).numpy()
            values = shapley(
                players,
                worth,
                permutations=settings.permutations,
                tolerance=settings.tolerance,
                draw=draw,
            )
        else:
            values = leave_one_out(players, worth)
        whole, nobody = worth(frozenset(players)), worth(frozenset())
        found: dict[str, Any] = {"kind": settings.kind, "metric": self._metric}
        found |= {"gain": whole - nobody, "evaluations": len(worth.known), "merges": len(worth.known) - 1}
        if all(map(math.isfinite, values.values())):
            found["values"] = dict(sorted(values.items()))
        return found

    def _worth(self, before: ServerState, sums: PlayerSums[Any]) -> Callable[[frozenset[str]], float]:
        sign = -1.0 if lower_is_better(self._metric) else 1.0

        def worth(players: frozenset[str]) -> float:
            state: AdapterState = before.state
            if players:
                try:
                    merged = sums.finalize(tuple(players))
                except EmptyRound:
                    return math.nan
                state = self._strategy.update(before, merged).state
            try:
                (_, metrics), _ = self._context.evaluate_groups(state, self._test or ())
            except TrainingError:
                return math.nan
            return sign * metrics[self._metric]

        return worth
