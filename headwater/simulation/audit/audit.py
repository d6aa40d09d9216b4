"""audit_federation: train a federation with canaries among its owners, attack it, and tell both ε.

The run is that of ``headwater simulate``: its clients, codec, clip, sum, noise, ledger. Only who trains is
changed (:mod:`.stand_ins`). A lower bound above the promised ε is evidence of a defect, with
the confidence it has; one below it proves nothing: it is what these attacks got.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from headwater.client.execution.runtime import ClientRuntime
from headwater.config import LoadedFederation
from headwater.data.federated import FederatedData
from headwater.errors import ConfigError
from headwater.privacy.accounting import Relation
from headwater.privacy.audit.canaries import CanaryAudit, audit_canaries
from headwater.privacy.audit.membership import Membership
from headwater.seeds.keys import Key
from headwater.server.events import Notice, Observer
from headwater.server.storage.checkpoint import Checkpoint
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.audit.stand_ins import StandIns, stays
from headwater.simulation.audit.updates import UpdateAudit, audit_updates, losses
from headwater.simulation.simulate import simulate
from headwater.training.context import TrainingContext

DELTA = 1e-5
"""δ of bounds where the federation promises none."""
MOST_ROWS = 4096
"""Whose losses tell owners apart, of all owners together: some 80 s of MiniLM on a core."""


@dataclass(frozen=True, slots=True)
class Audit:
    """What attackers got of a federation, and what it had promised.

    Args:
        name: of the federation.
        rounds: that were run.
        seed: of coins, rows and training.
        promised: ε that the run's ledger adds up to, for one owner; None without noise in ``[privacy]``.
        budget: ε of the file; None without.
        delta: δ of bounds and promise.
        relation: whose difference the promise is for.
        reproducible: some noise can be drawn again: the promise does not hold.
        canaries: ε of an owner from below, by canaries; None without any.
        owners: the same, by the owners themselves.
        membership: of owners in the last adapter.
        updates: of rows in their owner's update; None where that cannot be tried.
    """

    name: str
    rounds: int
    seed: int
    promised: float | None
    budget: float | None
    delta: float
    relation: Relation | None
    reproducible: bool
    canaries: CanaryAudit | None
    owners: CanaryAudit
    membership: Membership
    updates: UpdateAudit | None

    @property
    def at_least(self) -> float:
        """The highest lower bound on an owner's ε that holds whatever the mechanism is."""
        return max(self.owners.epsilon, self.canaries.epsilon if self.canaries else 0.0)

    @property
    def broken(self) -> bool:
        """Whether a lower bound is above what was promised."""
        above = self.promised is not None and self.at_least > self.promised
        updates = self.updates
        return above or (
            updates is not None and updates.promised is not None and updates.bound.epsilon > updates.promised
        )


def audit_federation(
    loaded: LoadedFederation,
    folder: RunFolder,
    *,
    canaries: int | None = None,
    observer: Observer = lambda event: None,
) -> Audit:
    """Run the federation with canaries, and attack what it releases.

    Args:
        loaded: from :func:`audited`.
        folder: a new run folder.
        canaries: how many; None: as :meth:`StandIns.of` chooses.
        observer: is told what happens.

    Raises:
        HeadwaterError: what is wrong with file, data or model, or that the federation cannot go on.
    """
    context = TrainingContext.open(loaded)
    context.require_cohorts()
    settings = loaded.settings
    data = FederatedData.open(loaded, context.tokenizer, Key.root(settings.federation.seed))
    who = StandIns.of(settings, data.clients, context.spec, canaries)

    def opened(loaded: LoadedFederation) -> ClientRuntime:
        runtime = ClientRuntime.open(loaded, context, data.dealt(who.rows_of))
        runtime.context = replace(runtime.context, attacks=who)
        return runtime

    summary = simulate(loaded, folder, opened=opened, observer=observer)
    checkpoint = Checkpoint.load(folder.checkpoint, context.spec, loaded.run_id())
    if checkpoint is None or not summary["rounds"]:
        raise ConfigError(
            "headwater audit", expected="a budget that holds a round", got="none was run",
            hint="Raise privacy.epsilon or noise_multiplier.",
        )  # fmt: skip
    observer(Notice("attacking the last adapter, and some owners' updates"))
    start, last = context.initial_state(), checkpoint.server.state
    spent: Mapping[str, Any] = summary.get("privacy", {})
    delta = settings.privacy.delta or DELTA
    noises = [settings.privacy, *(t.example_privacy() for t in settings.trainings.values())]
    most = max(4, MOST_ROWS // len(who.owners))
    lots = [data.client(name).train[:most] for name in who.owners]
    lowered = losses(context, start, lots) - losses(context, last, lots)
    moved = (last.vector().double() - start.vector().double()).numpy()[who.places]
    found = audit_canaries(moved, who.canaries_inside, delta) if len(who.canaries) else None
    return Audit(
        settings.federation.name,
        int(summary["rounds"]),
        settings.federation.seed,
        spent.get("epsilon"),
        settings.privacy.epsilon,
        delta,
        spent.get("relation"),
        any(one is not None and one.noise == "reproducible" for one in noises),
        found,
        audit_canaries(lowered, who.inside, delta),
        Membership.of(lowered[who.inside], lowered[~who.inside]),
        audit_updates(context, data, delta),
    )


def audited(loaded: LoadedFederation) -> LoadedFederation:
    """The same federation without what is no part of what it releases: baselines, values, devices, trackers.

    Raises:
        ConfigError: clients that lie, a script, or a method whose update has no values.
    """
    settings = loaded.settings
    if settings.simulation.attackers:
        raise ConfigError(
            "headwater audit", expected="honest clients", got="[[simulation.attackers]]",
            hint="Leave the tables out.",
        )  # fmt: skip
    for training in settings.trainings.values():
        if training.by_script or training.sends == "coefficients":
            raise ConfigError(
                "headwater audit",
                expected="a method of Headwater's whose updates are values",
                got=f"training.kind {training.kind!r}",
                hint="headwater.privacy.audit has the parts, for a script of yours.",
            )
    fewest = {} if stays(settings) else {"min_clients": 1}  # half of the owners are away
    cohort = settings.cohort.model_copy(update={"upload_s": None, **fewest})
    changed = {
        "baselines": type(settings.baselines)(),
        "contribution": None,
        "simulation": settings.simulation.model_copy(update={"devices": None}),
        "cohort": cohort,
    }
    return replace(loaded, settings=settings.model_copy(update=changed), trackers=(), run="")
