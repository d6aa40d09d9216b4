"""A merge plan as canonical JSON: what an edge aggregator is told, and what accumulators are named after."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from headwater.errors import DecodeError, HeadwaterError
from headwater.merging.plan import SUM_BITS, MergePlan
from headwater.seeds.coefficients import SeedPlan
from headwater.seeds.directions import Directions
from headwater.state import StateSpec, TensorSpec


def merge_plan_to_json(plan: MergePlan) -> str:
    """Keys sorted, no spaces; the same text for equal plans. What only a merge needs is left out."""
    seeds = None if plan.seeds is None else {**asdict(plan.seeds), "odds": plan.seeds.odds.hex()}
    given = plan.directions
    directions = (
        None
        if given is None
        else {"key": given.key.hex(), "distribution": given.distribution, "size": given.size}
    )
    content = {
        "spec": [asdict(tensor) for tensor in plan.spec],
        "weights": dict(plan.weights),
        "value_bound": float(plan.value_bound),
        "seeds": seeds,
        "directions": directions,
        "tensors": {client: list(names) for client, names in plan.tensors.items()},
        "ranks": dict(plan.ranks),
        "groups": dict(plan.groups),
        "use": plan.use,
        "norm_bound": None if plan.norm_bound is None else float(plan.norm_bound),
        "others_weight": plan.others_weight,
        "others_methods": sorted(plan.others_methods),
        "others_ranks": sorted(plan.others_ranks),
    }
    if plan.sum_bits != SUM_BITS:  # a plan without masks is what it was before there were any
        content["sum_bits"] = plan.sum_bits
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def merge_plan_from_json(text: str) -> MergePlan:
    """The inverse of :func:`merge_plan_to_json`, for whoever trusts the sender with the rule's memory.

    Raises:
        DecodeError: not a plan.
    """
    try:
        content: dict[str, Any] = json.loads(text)
        seeds, directions = content["seeds"], content["directions"]
        plan = MergePlan(
            StateSpec(tuple(_tensor(row) for row in content["spec"])),
            _integers(content["weights"]),
            float(content["value_bound"]),
            seeds=None if seeds is None else SeedPlan(**{**seeds, "odds": bytes.fromhex(seeds["odds"])}),
            directions=None
            if directions is None
            else Directions(**{**directions, "key": bytes.fromhex(directions["key"])}),
            tensors={client: tuple(names) for client, names in content["tensors"].items()},
            ranks=_integers(content["ranks"]),
            groups=dict(content["groups"]),
            use=bool(content["use"]),
            norm_bound=None if content["norm_bound"] is None else float(content["norm_bound"]),
            sum_bits=int(content.get("sum_bits", SUM_BITS)),
            others_weight=int(content["others_weight"]),
            others_methods=frozenset(content["others_methods"]),
            others_ranks=frozenset(int(rank) for rank in content["others_ranks"]),
        )
        plan.scale_bits()
    except (
        ValueError,
        OverflowError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        HeadwaterError,
    ) as error:
        got = f"{type(error).__name__}: {error}"[:200]
        raise DecodeError("merge plan", expected="the plan of a round", got=got) from None
    return plan


def _tensor(row: dict[str, Any]) -> TensorSpec:
    return TensorSpec(**{**row, "shape": tuple(int(size) for size in row["shape"])})


def _integers(table: dict[str, Any]) -> dict[str, int]:
    return {str(name): int(value) for name, value in table.items()}
