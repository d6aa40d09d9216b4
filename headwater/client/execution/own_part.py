"""A client's own part of the adapter, which never leaves it: its head, or in space ``fedsa`` B and the head.

FedSA-LoRA (arXiv 2410.01463): all clients train A, B and the head; the server merges A alone. With
``adapter.head = "own"`` it merges all but the head (FedPer, arXiv 1912.00818, over an adapter). A client goes
on with its own part, kept in two steps as a control variate is: whether the update that was made with it
counts is known when the server speaks again. A client that is new has what everybody starts with.
"""

from __future__ import annotations

from dataclasses import replace

from headwater.client.execution.control_variate import ControlVariate
from headwater.client.execution.store import ClientStore
from headwater.config.strategy import OwnPart
from headwater.errors import ConfigError
from headwater.merging.pairs import shared_tensors
from headwater.protocol.messages import ClientPlan, EvaluateRequest, TrainRequest
from headwater.state import AdapterState, StateSpec


def own_spec(spec: StateSpec, own: OwnPart) -> StateSpec:
    """Of the tensors that stay with a client."""
    shared = set(shared_tensors(spec, own))
    return spec.only(t.name for t in spec if t.name not in shared)


def with_own(
    request: TrainRequest | EvaluateRequest, state: AdapterState, store: ClientStore, own_part: OwnPart
) -> AdapterState:
    """The global state with the client's own part in its place.

    To train, it goes on from what the server has accepted. What is evaluated after a round is with what the
    client made of that round, which then is not known to be accepted.
    """
    kept = store.load_own(request.client, own_spec(state.spec, own_part))
    known = request.accepted_round if isinstance(request, TrainRequest) else request.round
    own = kept.settled(known)
    return state if own is None else AdapterState(state.spec, {**state, **own})


def trained_with_own(plan: ClientPlan, spec: StateSpec, own_part: OwnPart) -> ClientPlan:
    """The plan with the own part among what is trained; its tensors are what is sent."""
    if plan.tensors is None:
        return plan
    names = {*plan.tensors, *own_spec(spec, own_part).by_name}
    return replace(plan, tensors=None if len(names) == len(spec) else tuple(sorted(names)))


def keep_own(
    request: TrainRequest, start: AdapterState, delta: AdapterState, store: ClientStore, own_part: OwnPart
) -> AdapterState:
    """Remember the own part as it was, and as training left it; what is left of the delta is for the server.

    Args:
        request: that was trained for.
        start: the state that the training started from.
        delta: what it learned.
        store: of the client.
        own_part: what the client keeps.
    """
    spec = own_spec(delta.spec, own_part)
    before = AdapterState(spec, {name: start[name] for name in spec.by_name})
    after = AdapterState(spec, {name: start[name] + delta[name] for name in spec.by_name})
    store.save_own(request.client, ControlVariate(before, request.round, after))
    zeros = AdapterState.zeros(spec)
    return AdapterState(delta.spec, {**delta, **zeros})


def own_adapter(
    client: str, state: AdapterState, store: ClientStore, own_part: OwnPart
) -> tuple[AdapterState, int]:
    """The adapter that the client is measured with, and the round of its own part.

    Args:
        client: whose.
        state: the global one that it was sent last.
        store: of the client.
        own_part: what the client keeps.

    Raises:
        ConfigError: the client has trained in no round.
        StorageError, SpecMismatch: what is kept is damaged, or of another adapter.
    """
    kept = store.load_own(client, own_spec(state.spec, own_part))
    own = kept.settled(kept.round)
    if own is None:
        raise ConfigError(
            f"client {client}",
            expected="one that has trained in this run, and so has a part of its own",
            got="one of which nothing is kept",
            hint="Check the name; a client that never trained has what everybody starts with.",
        )
    return AdapterState(state.spec, {**state, **own}), kept.round
