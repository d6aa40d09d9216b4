"""Membership in one update: :func:`audit_updates`. What the server, or whoever reads an update, can tell.

Of some owners' rows a fair coin chooses which are trained on, as in the first round. The attacker knows the
candidates and the update as it was before its codec, and guesses by how much it lowers each one's loss. How
many rows there are, which ε of a row does not cover, hangs on the coins; no guess looks at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.config.codec import DenseCodec
from headwater.config.training import BackpropTraining
from headwater.data.federated import FederatedData
from headwater.errors import HeadwaterError
from headwater.privacy.accounting import price
from headwater.privacy.audit.canaries import CanaryAudit, audit_canaries
from headwater.privacy.audit.membership import Membership
from headwater.privacy.events import StepsReleased
from headwater.protocol.messages import ClientPlan
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.tasks.batches import Example, by_row
from headwater.training.cohort import TrainTask
from headwater.training.context import TrainingContext
from headwater.training.private_steps import StepPlan

OWNERS, ROWS = 8, 128
"""Owners whose update is attacked, and the most rows of one."""


@dataclass(frozen=True, slots=True)
class UpdateAudit:
    """What updates tell of rows.

    Args:
        membership: of rows in their owner's update.
        bound: ε of a row from below, by the same guesses.
        promised: ε of one update for a row; None without ``[training.privacy]``.
        owners: whose updates.
    """

    membership: Membership
    bound: CanaryAudit
    promised: float | None
    owners: int


def audit_updates(context: TrainingContext, data: FederatedData, delta: float) -> UpdateAudit | None:
    """Attack the first update of some owners; None where no owner has four rows, or none sends values.

    Args:
        context: without attacks of its own.
        data: of the owners.
        delta: δ where ``[training.privacy]`` has none.

    Raises:
        HeadwaterError: a training failed.
    """
    settings = context.loaded.settings
    training, root = settings.training, Key.root(settings.federation.seed).child("audit", "updates")
    if training.sends == "coefficients" or training.learns_from == "nothing":
        return None
    privacy = training.example_privacy()
    scores, coins, promised = [], [], [0.0]
    start, trainer = context.initial_state(), context.trainer(training)
    for name in root.numpy().permutation(np.array(data.clients)).tolist():
        key = root.child("owner", name)
        rows = by_row(data.client(name).train)[:ROWS]
        inside = key.numpy().random(len(rows)) < 0.5
        own = [part for row, mark in zip(rows, inside, strict=True) if mark for part in row]
        if len(rows) < 4 or not own:
            continue
        plan = ClientPlan(training, DenseCodec(kind="dense"))
        (result,) = trainer.train([TrainTask(name, start, own, plan)], key=key)
        if not isinstance(result.delta, AdapterState):
            raise result.error or HeadwaterError(f"update of {name}", expected="values", got="none")
        moved = losses(context, start + result.delta, rows)
        scores.append(losses(context, start, rows) - moved)
        coins.append(inside)
        if privacy is not None and isinstance(training, BackpropTraining):
            steps = StepPlan.of(own, training)
            clip = training.max_grad_norm or 1.0
            event = StepsReleased(1, name, steps.steps, clip, privacy.noise_multiplier, steps.sampling)
            promised.append(price([event], privacy.delta, "add-or-remove").epsilon)
        if len(scores) == OWNERS:
            break
    if not scores:
        return None
    found, marks = np.concatenate(scores), np.concatenate(coins)
    if min(marks.sum(), (~marks).sum()) < 2:
        return None
    at = delta if privacy is None else privacy.delta
    return UpdateAudit(
        Membership.of(found[marks], found[~marks]),
        audit_canaries(found, marks, at),
        None if privacy is None else max(promised),
        len(scores),
    )


def losses(
    context: TrainingContext, state: AdapterState, lots: Sequence[Sequence[Example]]
) -> npt.NDArray[np.float64]:
    """The mean loss of each lot of examples."""
    found = []
    for measured in context.evaluate_each([state] * len(lots), lots):
        if isinstance(measured, HeadwaterError):
            raise measured
        found.append(measured[1]["loss"])
    return np.array(found)
