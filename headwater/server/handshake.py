"""introduce: the handshake before the first round, in which every node says who it is and what it has."""

from __future__ import annotations

from flwr.serverapp import Grid

from headwater.config.federation import Federation
from headwater.errors import ConfigError, DecodeError, FederationStopped, HeadwaterError
from headwater.proto.wire import decode_reply
from headwater.protocol.messages import ClientFailure, ClientProfile, ProfileRequest, reported
from headwater.server.events import ClientFailed
from headwater.server.exchange import Exchange, Incoming
from headwater.server.watch import Watch
from headwater.strategies.assignment import assign
from headwater.training.build import Workbench


def introduce(
    grid: Grid, run: str, bench: Workbench, watch: Watch, *, expected: int, min_clients: int
) -> tuple[dict[str, ClientProfile], dict[str, int]]:
    """Ask every node who it is; keep those that fit this federation.

    Args:
        grid: Flower's grid.
        run: the run's id.
        bench: the base model and spec that clients must share.
        watch: time, stop and observer.
        expected: wait until so many nodes are there.
        min_clients: how many must fit.

    Returns:
        Profiles by client name, sorted, and Flower's node id by client name.

    Raises:
        FederationStopped: too few clients, or a stop.
    """
    while len(ids := sorted(grid.get_node_ids())) < expected:
        if watch.should_stop():
            raise FederationStopped(
                "federation", expected=f"{expected} nodes", got=f"{len(ids)}, then a stop"
            )
        watch.pause()
    exchange = Exchange(grid, {str(i): i for i in ids})
    exchange.send([(str(i), ProfileRequest(run)) for i in ids], 0)
    profiles: dict[str, ClientProfile] = {}
    nodes: dict[str, int] = {}
    ends_s = watch.ends_s()
    while exchange.waiting(ProfileRequest, 0) and watch.clock() < ends_s and not watch.should_stop():
        quiet = True
        for incoming in exchange.poll():
            quiet = False
            try:
                profile = profile_of(incoming, bench, run)
                if profile.client in profiles:
                    raise DecodeError(f"client {profile.client}", expected="one node", got="two")
                profiles[profile.client], nodes[profile.client] = profile, int(incoming.address)
            except HeadwaterError as error:
                watch.observer(ClientFailed(0, f"node {incoming.address}", str(error)))
        if quiet:
            watch.pause()
    exchange.forget(ProfileRequest, 0)
    if len(profiles) < min_clients:
        raise FederationStopped(
            "federation",
            expected=f"at least {min_clients} clients",
            got=f"{len(profiles)}",
            hint="The reasons are printed above.",
        )
    return dict(sorted(profiles.items())), nodes


def profile_of(incoming: Incoming, bench: Workbench, run: str, client: str = "") -> ClientProfile:
    """The node's profile, if it has this base model and adapter.

    Args:
        incoming: the reply.
        bench: what the profile must fit.
        run: the run that was asked about.
        client: whose node it is, where that is known beforehand.

    Raises:
        DecodeError: no profile, or one that does not fit.
        UpdateRejected: the client reports a failure.
    """
    who = f"client {client}" if client else f"node {incoming.address}"
    if incoming.error:
        raise DecodeError(who, expected="a profile", got=incoming.error)
    reply = decode_reply(incoming.data, max_bytes=0)
    if isinstance(reply, ClientFailure):
        raise reported(reply, who, expected="a profile", remote=incoming.remote)
    if not isinstance(reply, ClientProfile):
        raise DecodeError(who, expected="a profile", got=type(reply).__name__)
    for what, theirs, ours in (
        ("base model sha256", reply.model_sha256, bench.base_sha256),
        ("adapter spec", reply.spec, bench.spec.fingerprint()),
        ("run", reply.run, run),
        ("name", reply.client, client or reply.client),
    ):
        if theirs != ours:
            raise DecodeError(f"client {reply.client}", expected=f"{what} {ours[:12]}", got=theirs[:12])
    _require_fit(reply, bench.loaded.settings)
    return reply


def _require_fit(profile: ClientProfile, federation: Federation) -> None:
    """Refuse a device that no method fits, where the planner decides: it could be asked for nothing.

    Raises:
        DecodeError: what the planner says.
    """
    if profile.train_examples < 1:  # it only evaluates
        return
    try:
        assign(federation, {profile.client: profile})
    except ConfigError as error:
        raise DecodeError(
            f"client {profile.client}, device", expected=error.expected, got=error.got, hint=error.hint
        ) from None
