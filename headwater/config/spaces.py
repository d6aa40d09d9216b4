"""What ``strategy.space`` goes with: :func:`require_space`."""

from __future__ import annotations

from headwater.config.tables import FederationTables


def require_space(federation: FederationTables) -> None:
    """Refuse a space that cannot be merged in, or that would change what another setting means.

    Raises:
        ValueError: says which, and what to change.
    """
    strategy, adapter = federation.strategy, federation.adapter
    space = strategy.space
    if strategy.blends_factors():
        raise ValueError(
            f"strategy '{strategy.kind}' in space 'factors' merges A and B coordinate by coordinate, "
            'which is noise of the basis: use space = "ffa", or set allow_factors = true if you mean it'
        )
    if space == "ffa" and strategy.linear and adapter is not None and not adapter.has_factors:
        raise ValueError(f"space 'ffa' freezes LoRA's A; adapter.kind is '{adapter.kind}'")
    if getattr(strategy, "rank_weights", "holders") == "all" and not strategy.merges_products:
        raise ValueError(f'strategy.rank_weights = "all" is for space "product" or "fair", not "{space}"')
    if federation.own_part == "head":
        _require_own_heads(federation)
    if not (strategy.merges_products or strategy.alternates or strategy.keeps_own):
        return
    if adapter is None or not adapter.has_factors:
        kind = "missing" if adapter is None else f"of kind '{adapter.kind}'"
        raise ValueError(f"space '{space}' merges pairs of factors: [adapter] is {kind}, use kind = \"lora\"")
    if scalar := [t.kind for t in federation.trainings.values() if t.sends == "coefficients"]:
        raise ValueError(
            f"method '{scalar[0]}' sends coefficients of seeds, which move all factors at once: "
            f'use space = "factors" or "ffa", not \'{space}\''
        )
    if not federation.schedule.has_rounds:
        raise ValueError(
            f"space '{space}' needs rounds: a buffered version has updates of several global factors"
        )
    if strategy.merges_products:
        _require_still_basis(federation)
    if strategy.keeps_own:
        _require_own_evaluation(federation, "space 'fedsa' leaves B with each client")
        _require_whole(federation, "space 'fedsa' gives every client all of A")


def _require_own_heads(federation: FederationTables) -> None:
    """A head of each client's own, which moves with its client's own steps and is averaged by nobody."""
    model = federation.model
    if not (model.pooled or model.own_head):
        raise ValueError(f"adapter.head 'own' needs a model with a head: model.kind '{model.kind}' has none")
    if scalar := [t.kind for t in federation.trainings.values() if t.sends == "coefficients"]:
        raise ValueError(
            f"method '{scalar[0]}' sends coefficients of seeds, which move all heads alike: leave out "
            "adapter.head"
        )
    if not federation.schedule.has_rounds:
        raise ValueError("adapter.head 'own' needs rounds: by them a client knows which of its heads counts")
    if federation.strategy.merges_products:
        raise ValueError(
            "adapter.head 'own' goes with spaces 'factors', 'ffa' and 'rolora', "
            f"not '{federation.strategy.space}'"
        )
    if not federation.strategy.takes_parts:
        raise ValueError(
            f"strategy '{federation.strategy.kind}' merges whole adapters, and heads stay with their clients "
            "(adapter.head 'own'): use 'mean' or 'median'"
        )
    _require_own_evaluation(federation, "adapter.head 'own' leaves a head with each client")
    _require_whole(federation, "adapter.head 'own' has every client train all of the adapter")


def _require_own_evaluation(federation: FederationTables, why: str) -> None:
    """Nobody but a client has a whole adapter: the server cannot measure."""
    if federation.data.test is not None or any(value for _, value in federation.baselines):
        raise ValueError(
            f"{why}, so that the server has no adapter to measure: leave "
            "out data.test and [baselines], and set data.validation_fraction for what clients measure"
        )


def _require_whole(federation: FederationTables, why: str) -> None:
    """No client is dealt a part of the adapter."""
    parts = any(m.rank or m.last_layers for m in federation.methods.values())
    if parts or any(training.splits_layers for training in federation.trainings.values()):
        raise ValueError(f"{why}: no methods.NAME.rank, last_layers, and no 'spry'")


def _require_still_basis(federation: FederationTables) -> None:
    """The merge turns A and B: nothing may be kept from one round to the next in their coordinates."""
    strategy = federation.strategy
    if strategy.server_momentum or strategy.server_learning_rate != 1:
        raise ValueError(
            f"space '{strategy.space}' gives new factors in each round, between which a server's momentum or "
            "rate means nothing: leave server_momentum at 0 and server_learning_rate at 1"
        )
    if not federation.codec.down.whole:
        raise ValueError(
            f"space '{strategy.space}' gives new factors in each round, so that all of the adapter changes: "
            f"leave out codec.down '{federation.codec.down.kind}', which sends changes"
        )
    if getattr(federation.codec.up, "error_feedback", False):
        raise ValueError(
            f"space '{strategy.space}' gives new factors in each round, and error feedback keeps what it did "
            'not send in the coordinates of the old ones: use codec.up = {kind = "dense"}, or set its '
            "error_feedback = false"
        )
