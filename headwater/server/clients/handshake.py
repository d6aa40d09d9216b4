"""The handshake before the first round: every node says what it is and has: :func:`collect_profiles`."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.serverapp import Grid

from headwater.config.federation import Federation
from headwater.errors import ConfigError, DecodeError, FederationStopped, HeadwaterError, UpdateRejected
from headwater.proto.wire import decode_reply
from headwater.protocol.failures import OF_PACKAGES, Failure, coded
from headwater.protocol.messages import ClientFailure, ClientProfile, ProfileRequest, reported
from headwater.server.clients.exchange import Exchange, ReceivedReply
from headwater.server.clients.run_control import RunControl
from headwater.server.events import ClientFailed, Waiting
from headwater.strategies.assignment import assign
from headwater.training.context import TrainingContext


def collect_profiles(
    grid: Grid,
    run: str,
    context: TrainingContext,
    control: RunControl,
    *,
    expected: int,
    min_clients: int,
    owners: Sequence[str] = (),
) -> tuple[dict[str, ClientProfile], dict[str, int], dict[str, str]]:
    """Ask every node who it is; keep those that fit this federation.

    Args:
        grid: Flower's grid.
        run: the run's id.
        context: the base model and spec that clients must share.
        control: time, stop and observer.
        expected: wait until so many nodes are there.
        min_clients: how many must fit.
        owners: the names of all clients, a node for each; unknown if empty.

    Returns:
        Profiles by client name, sorted; Flower's node id by client name; by name, who failed and why.

    Raises:
        FederationStopped: too few clients, or a stop.
    """
    while len(ids := sorted(grid.get_node_ids())) < expected:
        if control.should_stop():
            raise _stopped_before(f"{len(ids)} of {expected} clients were there")
        control.pause()
    exchange = Exchange(grid, {str(i): i for i in ids})
    exchange.send([(str(i), ProfileRequest(run)) for i in ids], 0)
    profiles: dict[str, ClientProfile] = {}
    nodes: dict[str, int] = {}
    lost: dict[str, str] = {}
    nameless: dict[str, str] = {}
    known = frozenset(owners)
    ends_s = control.ends_s()
    if owners:
        control.observer(Waiting(0, len(ids), tuple(owners)))
    while exchange.waiting(ProfileRequest, 0) and control.clock() < ends_s and not control.should_stop():
        quiet = True
        for incoming in exchange.poll():
            quiet = False
            try:
                profile = profile_of(incoming, context, run)
                if profile.client in profiles:
                    raise DecodeError(f"client {profile.client}", expected="one node", got="two")
                profiles[profile.client], nodes[profile.client] = profile, int(incoming.address)
            except HeadwaterError as error:
                name, reason = _failed_as(incoming)
                if name in known:
                    lost[name] = reason or str(error)
                else:
                    nameless[f"node {incoming.address}"] = str(error)
        if quiet:
            control.pause()
        elif owners:
            silent = [name for name in owners if name not in profiles and name not in lost]
            control.observer(Waiting(len(profiles), len(ids), tuple(silent)))
    waited = not control.should_stop()  # who had no time to answer has not failed
    exchange.forget(ProfileRequest, 0)
    if not waited and len(profiles) < min_clients:
        raise _stopped_before(f"{len(profiles)} of {len(ids)} clients had answered")
    for name in (
        sorted(known - profiles.keys() - lost.keys()) if waited else ()
    ):  # whoever is left is one of these
        no_answer = f"client {name}: expected a profile, got no answer"
        lost[name] = "; ".join(dict.fromkeys(nameless.values())) or no_answer
    failed = sorted((lost if owners else nameless).items())
    for name, reason in failed:
        control.observer(ClientFailed(0, name, reason))
    if len(profiles) < min_clients:
        raise FederationStopped(
            "federation",
            expected=f"at least {min_clients} clients that can take part",
            got=f"{len(profiles)}{name_reasons(failed)}",
            hint="Mend what is wrong with them, then start again.",
        )
    return dict(sorted(profiles.items())), nodes, dict(sorted(lost.items()))


def _stopped_before(when: str) -> FederationStopped:
    """A stop that was asked for before the clients had said what they have: no client's fault."""
    return FederationStopped(
        "run",
        expected="the clients to answer before the first round",
        got=f"a stop when {when}",
        hint="Nothing is lost: go on with --resume.",
    )


def _failed_as(incoming: ReceivedReply) -> tuple[str, str]:
    """The name in a reply that cannot be used, and its own reason; empty where there are none."""
    if incoming.error:
        return "", ""
    try:
        reply = decode_reply(incoming.data, max_bytes=0)
    except DecodeError:
        return "", ""
    if isinstance(reply, ClientFailure):
        return reply.client, reply.reason
    return (reply.client, "") if isinstance(reply, ClientProfile) else ("", "")


def name_reasons(failed: Sequence[tuple[str, str]]) -> str:
    """In brackets who failed and why, in few words: once where all failed the same way."""
    if not failed:
        return ""
    without = {reason.replace(name, "…") for name, reason in failed}
    if len(without) == 1 and len(failed) > 1:
        name, reason = failed[0]
        return f" (all {len(failed)} failed the same way: {_by_name(name, reason)})"
    shown = [_by_name(name, reason) for name, reason in failed[:3]]
    more = [f"and {len(failed) - 3} more"] if len(failed) > 3 else []
    return f" ({'; '.join(shown + more)})"


def _by_name(name: str, reason: str) -> str:
    return reason if reason.startswith(f"client {name}") else f"{name}: {reason}"


def profile_of(
    incoming: ReceivedReply, context: TrainingContext, run: str, client: str = ""
) -> ClientProfile:
    """The node's profile, if it has this base model and adapter.

    Args:
        incoming: the reply.
        context: what the profile must fit.
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
        error = reported(reply, who, expected="a profile", remote=incoming.remote)
        raise _with_package(error, context.loaded.settings)
    if not isinstance(reply, ClientProfile):
        raise DecodeError(who, expected="a profile", got=type(reply).__name__)
    for what, theirs, ours in (
        ("base model sha256", reply.model_sha256, context.base_sha256),
        ("adapter spec", reply.spec, context.spec.fingerprint()),
        ("run", reply.run, run),
        ("name", reply.client, client or reply.client),
    ):
        if theirs != ours:
            raise DecodeError(f"client {reply.client}", expected=f"{what} {ours[:12]}", got=theirs[:12])
    _require_fit(reply, context.loaded.settings)
    return reply


def _with_package(error: UpdateRejected, federation: Federation) -> UpdateRejected:
    """With the name of the package of ``[plugins]`` whose number the client's failure has."""
    failure = error.failure
    if not isinstance(failure, Failure) or failure.code not in OF_PACKAGES:
        return error
    named = dict(enumerate(federation.packages.items(), start=1)).get(failure.numbers[0])
    if named is None:
        return error
    hint = f"It is {named[1]}, for {named[0]}: its owner decides whether it may run there."
    found = UpdateRejected(error.who, expected=error.expected, got=error.got, hint=hint)
    return coded(found, failure.code, *failure.numbers)


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
