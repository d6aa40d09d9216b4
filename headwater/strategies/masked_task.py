"""What a client under masks makes integers of, and what all clients of one sum must have been asked alike.

The server tells a client one number more than without masks: the weight of all clients. Its own weight,
bounds and units follow from the federation's settings and its own rows: a server that told one client a
heavier weight than another would find the two in other digits of their sum.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from headwater.config.federation import Federation
from headwater.errors import DecodeError
from headwater.merging.merge_plan_json import merge_plan_to_json
from headwater.merging.plan import MASKED_BITS, MergePlan
from headwater.proto.plan_json import plan_to_json
from headwater.protocol.messages import ClientPlan
from headwater.seeds.coefficients import directions_of
from headwater.seeds.keys import Key
from headwater.state import StateSpec
from headwater.strategies.federated import weight_of
from headwater.strategies.private_round import shared_sum


def masked_part(
    federation: Federation,
    spec: StateSpec,
    client: str,
    plan: ClientPlan,
    counted: int,
    whole: int,
    root: Key,
) -> MergePlan:
    """The merge plan of this client alone, as its server has it.

    Args:
        federation: its settings.
        spec: of the adapter.
        client: its name.
        plan: what it is asked.
        counted: what it weighs by: its training examples, or their targets.
        whole: the weight of all of the round's clients.
        root: the federation's key.

    Raises:
        DecodeError: they weigh less than this one alone.
        ConfigError: so much that no fractions are left.
    """
    weight, seeds = weight_of(federation, counted), plan.seeds
    if whole < weight:
        raise DecodeError(f"client {client}: weight of all", expected=f"at least {weight}", got=str(whole))
    merge = MergePlan(
        spec,
        {client: weight},
        federation.strategy.value_bound,
        seeds=seeds,
        directions=directions_of(seeds, root, spec.numel) if seeds else None,
        tensors={} if plan.tensors is None else {client: plan.tensors},
        ranks={} if plan.rank is None else {client: plan.rank},
        sum_bits=MASKED_BITS,
        private=shared_sum(federation),
        others_weight=whole - weight,
    )
    merge.scale_bits()
    return merge


def plan_digest(plan: ClientPlan) -> bytes:
    """SHA-256 of what a client is asked to do, but for what may be its own: codec, rows and coverage."""
    alike = replace(plan, rows=None, tensors=None, rank=None)
    content = json.loads(plan_to_json(alike))
    del content["codec"]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()


def common_digest(state_sha256: str, merge: MergePlan) -> bytes:
    """SHA-256 of the state that updates start from and of the units in which they are summed.

    Args:
        state_sha256: of the state.
        merge: the plan of all clients, or the part of one: the same comes out.
    """
    content = json.loads(merge_plan_to_json(merge))
    for own in ("weights", "tensors", "ranks", "groups", "others_weight", "others_methods", "others_ranks"):
        del content[own]
    facts = [state_sha256, content, merge.total_weight]
    if (private := merge.private) is not None:
        facts.append([private.clip.hex(), private.multiplier.hex(), private.bits])
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()
