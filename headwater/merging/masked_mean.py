"""A mean's sums as one vector of integers, for secure aggregation: deltas, or coefficients of seeds."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from headwater.errors import ConfigError
from headwater.merging.fixed_point import most_units, zeros
from headwater.merging.method_sums import MeanSums, MethodSums
from headwater.merging.participants import Participants
from headwater.merging.plan import MergePlan
from headwater.merging.sound_mean import MOST_COEFFICIENT
from headwater.merging.update_moments import UpdateNorm
from headwater.security.secagg.ring import Integers, RingLayout, RingPart


def mean_layout(plan: MergePlan) -> RingLayout:
    """Σ w·δ; where the plan has seeds Σ w·a in its place.

    Raises:
        ConfigError: methods are weighed by their updates, or steps along seeds are counted.
    """
    if plan.weighs or plan.use:
        raise ConfigError(
            "privacy.masks", expected="clients whose updates need not be looked at one by one",
            got="methods that are weighed by their updates" if plan.weighs else "seeds drawn by their use",
            hint="Use one method for all clients, without FedKSeed-Pro.",
        )  # fmt: skip
    if plan.seeds is not None:
        most = plan.total_weight * plan.seeds.entries * MOST_COEFFICIENT
        return RingLayout((RingPart("coefficients", plan.seeds.count, -most, most),))
    most = plan.total_weight * most_units(plan.value_bound, plan.scale_bits())
    return RingLayout((RingPart("deltas", plan.spec.numel, -most, most),))


def mean_to_sums(acc: MeanSums) -> list[Integers]:
    """The vector of an accumulator.

    Raises:
        ConfigError: somebody sent a delta in a plan with seeds.
    """
    plan = acc.participants.plan
    sums = acc.methods.get("") or MethodSums.none(plan)
    if plan.seeds is None:
        return [sums.total.numpy()]
    if sums.values:
        raise ConfigError("privacy.masks", expected="updates of one kind", got="deltas beside coefficients")
    return [sums.coefficients.numpy()]


def mean_from_sums(plan: MergePlan, clients: Collection[str], sums: Sequence[Integers]) -> MeanSums:
    """The accumulator of these clients."""
    found = MeanSums(Participants.all_of(plan, clients), plan.scale_bits())
    found.norms = {client: UpdateNorm(plan.weights[client]) for client in sorted(clients)}
    vector, count = torch.from_numpy(sums[0]), len(found.participants.clients)
    if not count:
        return found
    if plan.seeds is None:
        found.methods[""] = MethodSums(vector, zeros(0), values=count)
    else:
        found.methods[""] = MethodSums(zeros(plan.spec.numel), vector, scalars=count)
    return found
