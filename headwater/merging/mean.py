"""MeanAggregator: the weighted mean of the updates, deltas and coefficients of seeds in one sum.

FedAvg (McMahan et al. 2017, arXiv 1602.05629): Δ = Σ w_i·δ_i / Σ w_i. A delta adds to Σ w·δ; coefficients
add to Σ w·a, one number for each seed (FedKSeed, arXiv 2312.06353), and are expanded once, when the round
ends: Σ_i w_i Σ_s a_is·z_s = Σ_s (Σ_i w_i·a_is)·z_s. Where methods are weighed against each other
(:mod:`.weighing`), each method's sums are kept apart until the round ends, and a client's coefficients are
also expanded once, for how long its update is. A value's divisor depends on who trained it
(:mod:`headwater.merging.coverage`). The server's optimiser is the business of the strategy.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from headwater.errors import ConfigError, EmptyRound, UpdateRejected
from headwater.merging.aggregator import Aggregator, Merged
from headwater.merging.coverage import divisors, require_covered
from headwater.merging.fixed_point import add_bounded, add_fixed_at, require_bounded, within_bound
from headwater.merging.masked_mean import mean_from_sums, mean_layout, mean_to_sums
from headwater.merging.method_sums import MeanSums, by_method, expanded, weighted
from headwater.merging.participants import Participants
from headwater.merging.plan import MergePlan, Update
from headwater.merging.sound_mean import require_sound_mean
from headwater.merging.update_moments import UpdateNorm, UpdateSums, energy_of, require_noise
from headwater.merging.weighing import weigh
from headwater.security.secagg.ring import Integers, RingLayout
from headwater.seeds.coefficients import SeedCoefficients
from headwater.seeds.slopes import SeedUse
from headwater.state import AdapterState, SparseState


class MeanAggregator(Aggregator[MeanSums]):
    """Weighted mean. Error of a value: at most half a unit 2^-bits, then one rounding to fp32."""

    def init(self, plan: MergePlan) -> MeanSums:
        """Nothing yet; 8 bytes a value and a seed for each method that arrives.

        Raises:
            ConfigError: weights and seeds whose sums could overflow.
        """
        seeds = 0 if plan.seeds is None else plan.seeds.count
        if plan.seeds is not None:
            # in finalize, Σ|mean| ≤ entries·2^15·2^FINE_BITS/LEAST_PROGRESS
            too_many = plan.seeds.entries >= 2**17
            too_heavy = plan.total_weight * plan.seeds.entries >= 2**47
            lost = plan.directions is None or plan.directions.size != plan.spec.numel
            if lost or too_many or too_heavy:
                raise ConfigError(
                    "merge plan",
                    expected="directions of the adapter's size, entries below 2^17, weights times entries "
                    "below 2^47",
                    got=f"total weight {plan.total_weight}, {plan.seeds.entries} entries",
                    hint='Use weighting = "equal".',
                )
        return MeanSums(Participants(plan), plan.scale_bits(), use=SeedUse.none(seeds) if plan.use else None)

    def require_sound(self, acc: MeanSums) -> None:  # noqa: D102 - inherited
        require_sound_mean(acc)

    def add(self, acc: MeanSums, update: Update) -> MeanSums:
        """Add w·δ, or w·a.

        Raises:
            UpdateRejected: also scalars of another plan, values outside what the client trains, or a
                noise that is not a number ≥ 0.
        """
        plan, who = acc.participants.plan, f"client {update.client}"
        weight, energy = acc.participants.weight_of(update), 0.0
        require_noise(update.noise, update.client)
        if isinstance(update.delta, SeedCoefficients):
            if plan.seeds is None or plan.directions is None:
                raise UpdateRejected(who, expected="a delta", got="coefficients of seeds")
            if update.client in plan.tensors or update.client in plan.ranks:
                raise UpdateRejected(
                    who, expected="a delta: its plan names tensors or a rank", got="coefficients of seeds"
                )
            update.delta.require(plan.seeds, who)
            sums = acc.of(update.client)
            sums.coefficients.add_(torch.from_numpy(update.delta.sums), alpha=weight)
            sums.scalars += 1
            energy = update.delta.energy(plan.directions) if plan.weighs else 0.0
            if acc.use is not None:
                acc.use.add(update.delta)
        else:
            energy = _add_values(acc, update.delta, update.client, weight)
        seeded = isinstance(update.delta, SeedCoefficients) and update.noise == update.delta.noise(
            plan.spec.numel
        )
        acc.norms[update.client] = UpdateNorm(weight, energy, min(update.noise, energy), seeded)
        acc.participants.enter(update.client)
        return acc

    def combine(self, left: MeanSums, right: MeanSums) -> MeanSums:
        """Add the sums of two groups."""
        left.participants.require_disjoint(right.participants)
        for name, sums in right.methods.items():
            if name in left.methods:
                left.methods[name].add(sums)
            else:
                left.methods[name] = sums
        left.norms |= right.norms
        if left.use is not None and right.use is not None:
            left.use.join(right.use)
        left.participants.join(right.participants)
        return left

    def sum_layout(self, plan: MergePlan) -> RingLayout:  # noqa: D102 - inherited
        return mean_layout(plan)

    def to_sums(self, acc: MeanSums) -> list[Integers]:  # noqa: D102 - inherited
        return mean_to_sums(acc)

    def from_sums(  # noqa: D102 - inherited
        self, plan: MergePlan, clients: Collection[str], sums: Sequence[Integers]
    ) -> MeanSums:
        return mean_from_sums(plan, clients, sums)

    def finalize(self, acc: MeanSums) -> Merged:
        """The mean, value by value.

        The report has ``delta_norm`` (L2), ``resolution`` (the unit), and where methods are weighed against
        each other ``between`` (a squared norm), ``shortened`` (what the mean was multiplied by, below 1 if it
        was too long), and ``noise_METHOD``, ``progress_METHOD`` and ``weight_METHOD``, the fraction of the
        planned weight that its clients have.
        """
        participants, plan = acc.participants, acc.participants.plan
        if not participants.clients:
            raise EmptyRound("mean", expected="at least one accepted update", got="none")
        names, methods = sorted(acc.methods), dict[str, UpdateSums]()
        only_scalars = not any(sums.values for sums in acc.methods.values())
        if plan.weighs or not only_scalars:
            methods = by_method(acc)
        weighing = weigh(plan, names, methods)
        by_client = {client: weighing.shares[acc.method(client)] for client in acc.norms}
        weights = {client: row.weight * by_client[client].weight for client, row in acc.norms.items()}
        divisor = divisors(plan, weights, {client: share.progress for client, share in by_client.items()})
        values, coefficients = weighted(methods, weighing.shares, divisor, plan.spec.numel), None
        shortened = weighing.shortening(values)
        if only_scalars:
            assert isinstance(divisor, float), "whoever sends scalars trains all"
            parts = [(acc.methods[name], weighing.shares[name].weight) for name in names]
            coefficients, values = expanded(plan, parts, divisor / shortened)
        else:
            values *= shortened
        delta = AdapterState.from_vector(plan.spec, values.float())
        report = {"delta_norm": delta.norm(), "resolution": 2.0**-acc.bits, **weighing.report(shortened)}
        return Merged(
            delta,
            tuple(sorted(participants.clients)),
            participants.weight,
            report,
            coefficients=coefficients,
            noise=weighing.noise,
            use=acc.use,
        )


def _add_values(acc: MeanSums, delta: AdapterState, client: str, weight: int) -> float:
    """Add w·δ; what :func:`energy_of` says of it where methods are weighed, else 0."""
    plan = acc.participants.plan
    whole = plan.weighs or client in plan.tensors or client in plan.ranks
    if isinstance(delta, SparseState) and not whole and within_bound(delta.entries, plan.value_bound):
        sums = acc.of(client)
        add_fixed_at(sums.total, delta.places, delta.entries, acc.bits, weight)
        sums.values += 1
        return 0.0
    vector, who = delta.flat(), f"client {client}"
    restricted = client in plan.tensors or client in plan.ranks
    if restricted or acc.method(client) not in acc.methods:  # before anything is changed
        require_bounded(vector, plan.spec, bound=plan.value_bound, who=who)
        require_covered(vector, plan, client)
    sums, bound = acc.of(client), plan.value_bound
    add_bounded(sums.total, vector, plan.spec, bound=bound, bits=acc.bits, weight=weight, who=who)
    sums.values += 1
    return energy_of(vector) if plan.weighs else 0.0
