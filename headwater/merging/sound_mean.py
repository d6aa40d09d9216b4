"""What a mean's sums can be: :func:`require_sound_mean` refuses those that no updates add up to."""

from __future__ import annotations

import torch
from torch import Tensor

from headwater.errors import DecodeError
from headwater.merging.coverage import covered_by
from headwater.merging.fixed_point import from_fixed, most_units, require_norm, require_range
from headwater.merging.method_sums import MeanSums, MethodSums

MOST_COEFFICIENT = 2**15 - 1
"""Of one step along a seed."""
_ENERGY = 2.0**100
"""Beyond it a squared norm has overflowed, or is a lie."""


def require_sound_mean(acc: MeanSums) -> None:
    """Refuse sums that no updates of its clients can add up to.

    Raises:
        DecodeError: says what is wrong.
    """
    plan, clients = acc.participants.plan, acc.participants.clients
    _require("bits", plan.scale_bits(), acc.bits)
    _require("norms, clients", sorted(clients), sorted(acc.norms))
    _require("methods", sorted({acc.method(client) for client in clients}), sorted(acc.methods))
    for client, row in acc.norms.items():
        _require(f"weight of {client}", plan.weights[client], row.weight)
        most = _ENERGY if plan.weighs else 0.0
        if not 0 <= row.noise <= row.energy <= most:
            raise DecodeError(
                f"accumulator, norm of {client}",
                expected=f"0 ≤ noise ≤ energy ≤ {most:g}",
                got=f"{row.noise!r}, {row.energy!r}",
            )
    for name, sums in acc.methods.items():
        _require_sums(acc, sums, sorted(client for client in clients if acc.method(client) == name))
    steps = sum(sums.scalars for sums in acc.methods.values()) * _entries(acc)
    _require("use", plan.use, acc.use is not None)
    if acc.use is not None:
        counts, lengths = torch.from_numpy(acc.use.counts), torch.from_numpy(acc.use.lengths)
        require_range(counts, "counts of seeds", low=0, high=steps)
        require_range(lengths, "steps along seeds", low=0, high=counts * MOST_COEFFICIENT)


def _require_sums(acc: MeanSums, sums: MethodSums, clients: list[str]) -> None:
    """The sums of one method, whose clients these are."""
    plan = acc.participants.plan
    shapes = (plan.spec.numel,), (0 if plan.seeds is None else plan.seeds.count,)
    _require("shapes", shapes, (tuple(sums.total.shape), tuple(sums.coefficients.shape)))
    counted = sums.values >= 0 and sums.scalars >= 0 and sums.values + sums.scalars == len(clients)
    if not counted or (plan.seeds is None and sums.scalars):
        got = f"{sums.values} deltas and {sums.scalars} of coefficients"
        raise DecodeError("accumulator, updates", expected=f"{len(clients)} together", got=got)
    weight = sum(plan.weights[client] for client in clients)
    if sums.values:
        most = _weights(acc, clients) * most_units(plan.value_bound, acc.bits)
    else:
        most = torch.zeros(1, dtype=torch.int64)
    require_range(sums.total, "sums", low=-most, high=most)
    if plan.norm_bound is not None:  # each value is rounded by half a unit
        slack = weight * plan.spec.numel * 2.0**-acc.bits
        total = from_fixed(sums.total, acc.bits)
        require_norm(total, "sums", most=weight * plan.norm_bound, slack=slack)
    along = weight * _entries(acc) * MOST_COEFFICIENT if sums.scalars else 0
    require_range(sums.coefficients, "coefficients", low=-along, high=along)


def _weights(acc: MeanSums, clients: list[str]) -> Tensor:
    """Σ w of those who may train a value, int64 [numel], or [1] where all train all."""
    plan = acc.participants.plan
    kinds: dict[object, tuple[str, int]] = {}
    for client in clients:
        shape = plan.tensors.get(client), plan.ranks.get(client)
        kinds[shape] = client, kinds.get(shape, ("", 0))[1] + plan.weights[client]
    total = torch.zeros(1, dtype=torch.int64)
    for client, weight in kinds.values():
        mask = covered_by(plan, client)
        total = total + (weight if mask is None else mask.long() * weight)
    return total


def _entries(acc: MeanSums) -> int:
    seeds = acc.participants.plan.seeds
    return 0 if seeds is None else seeds.entries


def _require(what: str, expected: object, got: object) -> None:
    if expected != got:
        raise DecodeError(f"accumulator, {what}", expected=str(expected)[:200], got=str(got)[:200])
