"""FisherAggregator: average each coordinate by how much each client's loss depends on it.

Fisher merging (Matena & Raffel 2022, arXiv 2111.09832, equation 5) with diagonal Fishers F_i that
the clients estimate on their own data::

    Δ = Σ w·(F + ε)·δ / Σ w·(F + ε) = (Σ wFδ + ε·Σ wδ) / (Σ wF + ε·Σ w)

A client scales its F to mean 1 and then caps it, so that no client outweighs another through the
size of its loss, and ε is ε times the mean Fisher. Where no client has information the result is
the weighted mean. (The reference code scales F to L2 norm 1 and floors only the first model's.)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from headwater.errors import ConfigError, DecodeError, EmptyRound, UpdateRejected
from headwater.merging.aggregator import Aggregator, Merged
from headwater.merging.fixed_point import (
    blocks,
    from_fixed,
    most_units,
    require_bounded,
    require_norm,
    require_range,
    to_fixed,
    zeros,
)
from headwater.merging.participants import Participants
from headwater.merging.plan import MergePlan, Update
from headwater.security.secagg.ring import Integers, RingLayout, RingPart
from headwater.state import AdapterState, StateSpec

MEAN_LIMIT = 1.06
"""A Fisher of mean 1 may exceed it by this much through the rounding of its codec (2^(1/12) = 1.0595)."""


@dataclass(frozen=True)
class FisherSums:
    """Four int64 sums [numel].

    ``product`` is Σ round(wFδ·2^product_bits); ``remainder`` is what that rounding left, in units
    of 2^-(product_bits + remainder_bits). The product alone has so large a bound (cap·value_bound)
    that one int64 would leave no digits to coordinates of small F.
    """

    participants: Participants
    delta_bits: int
    fisher_bits: int
    product_bits: int
    remainder_bits: int
    delta: Tensor
    fisher: Tensor
    product: Tensor
    remainder: Tensor


class FisherAggregator(Aggregator[FisherSums]):
    """Fisher merging with the clients' diagonal Fishers from ``update.statistics["fisher"]``.

    Args:
        cap: no value of a Fisher may be larger, after scaling to mean 1.
        epsilon: added to every client's F; relative to F's mean of 1.
    """

    def __init__(self, cap: float = 256.0, epsilon: float = 1e-8) -> None:
        if not (cap >= 1 and epsilon > 0):
            raise ConfigError(
                "fisher", expected="cap of at least 1 and epsilon above 0", got=f"{cap}, {epsilon}"
            )
        self.cap, self.epsilon = cap, epsilon

    def init(self, plan: MergePlan) -> FisherSums:
        """Zeros, 32 bytes a value."""
        sums = [zeros(plan.spec.numel) for _ in range(4)]
        return FisherSums(
            Participants(plan),
            plan.scale_bits(),
            plan.scale_bits(self.cap),
            plan.scale_bits(self.cap * plan.value_bound),
            plan.scale_bits(0.5),
            *sums,
        )

    def require_sound(self, acc: FisherSums) -> None:
        """No Fisher is above its cap or of a mean above 1, no product above F times the bound."""
        plan, weight = acc.participants.plan, acc.participants.weight
        wanted, given = self.init(plan), (acc.delta_bits, acc.fisher_bits, acc.product_bits)
        if (*given, acc.remainder_bits) != (
            wanted.delta_bits,
            wanted.fisher_bits,
            wanted.product_bits,
            wanted.remainder_bits,
        ):
            raise DecodeError("accumulator, bits", expected="those of the plan", got=str(given))
        most = weight * most_units(plan.value_bound, acc.delta_bits)
        require_range(acc.delta, "deltas", low=-most, high=most)
        if plan.norm_bound is not None:
            slack = weight * plan.spec.numel * 2.0**-acc.delta_bits
            deltas = from_fixed(acc.delta, acc.delta_bits)
            require_norm(deltas, "deltas", most=weight * plan.norm_bound, slack=slack)
            slack = weight * plan.spec.numel * 2.0**-acc.product_bits
            products = from_fixed(acc.product, acc.product_bits)
            require_norm(products, "products", most=weight * plan.norm_bound * self.cap, slack=slack)
        require_range(acc.fisher, "Fishers", low=0, high=weight * most_units(self.cap, acc.fisher_bits))
        half = weight * (2**acc.remainder_bits // 2)
        require_range(acc.remainder, "remainders", low=-half, high=half)
        # Fδ is at most F·bound, each rounded: in float64, whose own rounding the last factor covers
        fisher = from_fixed(acc.fisher, acc.fisher_bits) + weight * 2.0 ** -(acc.fisher_bits + 1)
        product = fisher * plan.value_bound * (1 + 2.0**-40) + weight * 2.0**-acc.product_bits
        found = from_fixed(acc.product, acc.product_bits)
        require_range(found, "products", low=-product, high=product)
        mean = float(np.mean(from_fixed(acc.fisher, acc.fisher_bits).numpy())) if len(found) else 0.0
        if mean > weight * MEAN_LIMIT * (1 + 1e-9):
            raise DecodeError("accumulator, Fishers", expected="a mean of 1", got=f"{mean / weight:.4g}")

    def add(self, acc: FisherSums, update: Update) -> FisherSums:
        """Add w·δ, w·F and w·F·δ.

        Raises:
            UpdateRejected: also when the Fisher is missing, negative, above the cap, or its mean is
                above 1: a client could otherwise multiply its own weight.
        """
        plan, who = acc.participants.plan, f"client {update.client}"
        weight = acc.participants.weight_of(update)
        statistic = update.statistics.get("fisher")
        if statistic is None:
            raise UpdateRejected(
                who,
                expected="a statistic 'fisher'",
                got=f"{sorted(update.statistics) or 'no statistic'}",
                hint="The client's training must estimate it; see the plan's fisher settings.",
            )
        statistic.require_spec(plan.spec, f"{who}, statistic fisher")
        delta, fisher = acc.participants.values_of(update).vector(), statistic.vector()
        require_bounded(delta, plan.spec, bound=plan.value_bound, who=who)
        require_bounded(fisher, plan.spec, bound=self.cap, who=f"{who}, fisher", non_negative=True)
        mean = float(np.mean(fisher.numpy(), dtype=np.float64)) if fisher.numel() else 0.0
        if mean > MEAN_LIMIT:
            raise UpdateRejected(f"{who}, fisher", expected="values scaled to mean 1", got=f"mean {mean:.4g}")
        for part in blocks(delta.numel()):
            d, f = delta[part], fisher[part]
            # The product of two float32 is exact in float64, and so is what its rounding leaves.
            product = d.double().mul_(f).mul_(2.0**acc.product_bits)
            whole = product.round()
            acc.product[part].add_(whole.long(), alpha=weight)
            acc.remainder[part].add_(to_fixed(product.sub_(whole), acc.remainder_bits), alpha=weight)
            acc.delta[part].add_(to_fixed(d, acc.delta_bits), alpha=weight)
            acc.fisher[part].add_(to_fixed(f, acc.fisher_bits), alpha=weight)
        acc.participants.enter(update.client)
        return acc

    def combine(self, left: FisherSums, right: FisherSums) -> FisherSums:
        """Add the sums of two groups."""
        left.participants.require_disjoint(right.participants)
        left.delta.add_(right.delta)
        left.fisher.add_(right.fisher)
        left.product.add_(right.product)
        left.remainder.add_(right.remainder)
        left.participants.join(right.participants)
        return left

    def sum_layout(self, plan: MergePlan) -> RingLayout:
        """Σ wδ, Σ wF, Σ wFδ and what its rounding left."""
        acc, weight, size = self.init(replace(plan, spec=StateSpec(()))), plan.total_weight, plan.spec.numel
        delta = weight * most_units(plan.value_bound, acc.delta_bits)
        fisher = weight * most_units(self.cap, acc.fisher_bits)
        product = weight * round(self.cap * plan.value_bound * 2.0**acc.product_bits)
        remainder = weight * (2**acc.remainder_bits // 2)
        return RingLayout(
            (
                RingPart("delta", size, -delta, delta),
                RingPart("fisher", size, 0, fisher),
                RingPart("product", size, -product, product),
                RingPart("remainder", size, -remainder, remainder),
            )
        )

    def to_sums(self, acc: FisherSums) -> list[Integers]:  # noqa: D102 - inherited
        return [part.numpy() for part in (acc.delta, acc.fisher, acc.product, acc.remainder)]

    def from_sums(  # noqa: D102 - inherited
        self, plan: MergePlan, clients: Collection[str], sums: Sequence[Integers]
    ) -> FisherSums:
        delta, fisher, product, remainder = (torch.from_numpy(part) for part in sums)
        return replace(
            self.init(replace(plan, spec=StateSpec(()))),
            participants=Participants.all_of(plan, clients),
            delta=delta,
            fisher=fisher,
            product=product,
            remainder=remainder,
        )

    def finalize(self, acc: FisherSums) -> Merged:
        """The quotient of the sums.

        The report has ``mass`` (Σ wF over Σ w, averaged over coordinates: 1 unless capped),
        ``uninformed`` (fraction of coordinates where every F is 0, merged by the plain mean) and
        ``delta_norm`` (L2).
        """
        participants = acc.participants
        if not participants.clients:
            raise EmptyRound("fisher", expected="at least one accepted update", got="none")
        fisher = from_fixed(acc.fisher, acc.fisher_bits)
        mean = from_fixed(acc.delta, acc.delta_bits)
        values = from_fixed(acc.remainder, acc.remainder_bits + acc.product_bits)
        values.add_(from_fixed(acc.product, acc.product_bits)).add_(mean.mul_(self.epsilon))
        values.div_(fisher + self.epsilon * participants.weight)
        delta = AdapterState.from_vector(participants.plan.spec, values.float())
        size = max(1, fisher.numel())
        report = {
            "mass": float(np.sum(fisher.numpy())) / participants.weight / size,
            "uninformed": int((acc.fisher == 0).sum()) / size,
            "delta_norm": delta.norm(),
        }
        return Merged(delta, tuple(sorted(participants.clients)), participants.weight, report)
