"""The handshake before the first round: every node says what it is and has: :func:`collect_profiles`."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from itertools import islice

from flwr.serverapp import Grid

from headwater.config.federation import Federation
from headwater.errors import ConfigError, DecodeError, FederationStopped, HeadwaterError, UpdateRejected
from headwater.proto.wire import decode_reply
from headwater.protocol.failures import OF_PACKAGES, Failure, coded
from headwater.protocol.messages import (
    ClientFailure,
    ClientProfile,
    DeviceProfile,
    ProfileRequest,
    Reply,
    reported,
)
from headwater.server.clients.exchange import ASKED_AT_ONCE, Exchange, Introduces, ReceivedReply
from headwater.server.clients.run_control import RunControl
from headwater.server.events import ClientFailed, Waiting
from headwater.strategies.assignment import assign
from headwater.training.context import TrainingContext

TELL_S = 1.0
"""Who has not answered yet is told at most this often."""


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
    answers = _Answers(Exchange(grid, {str(i): i for i in ids}), run, context, frozenset(owners))
    waits = _Told(control, len(ids), owners)
    introduction = grid.introductions() if isinstance(grid, Introduces) else None
    if introduction is None:
        _ask_all(ids, answers, waits, control)
    else:
        for start in range(0, len(ids), ASKED_AT_ONCE):
            if control.should_stop():
                break
            for node in ids[start : start + ASKED_AT_ONCE]:
                answers.take(str(node), introduction(node))
            waits.tell(answers, last=start + ASKED_AT_ONCE >= len(ids))
    waited = not control.should_stop()  # who had no time to answer has not failed
    answers.exchange.forget(ProfileRequest, 0)
    profiles, lost, nameless = answers.profiles, answers.lost, answers.nameless
    if not waited and len(profiles) < min_clients:
        raise _stopped_before(f"{len(profiles)} of {len(ids)} clients had answered")
    for name in (
        sorted(set(owners) - profiles.keys() - lost.keys()) if waited else ()
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
    return dict(sorted(profiles.items())), answers.nodes, dict(sorted(lost.items()))


def _ask_all(ids: Sequence[int], answers: _Answers, waits: _Told, control: RunControl) -> None:
    """Ask the nodes by message until all have answered, the deadline has passed or a stop is asked for."""
    left, ends_s = iter(ids), control.ends_s()
    # where a wait ends, a silent client may take no other's turn
    at_once = ASKED_AT_ONCE if math.isinf(ends_s) else len(ids)
    answers.ask(left, at_once)
    while answers.awaited and control.clock() < ends_s and not control.should_stop():
        if answers.receive():
            answers.ask(left, at_once)
            waits.tell(answers, last=not answers.awaited)
        else:
            control.pause()


class _Answers:
    """What the nodes have said so far.

    Args:
        exchange: with the nodes, whose addresses are their numbers.
        run: the run's id.
        context: what a profile must fit.
        owners: the names of all clients, where they are known.

    Attributes:
        profiles, nodes: by client that can take part, its profile and its node.
        lost, nameless: why not, by client, or by node where that does not say whose it is.
    """

    def __init__(self, exchange: Exchange, run: str, context: TrainingContext, owners: Set[str]) -> None:
        self.exchange, self._run, self._context, self._owners = exchange, run, context, owners
        self.profiles: dict[str, ClientProfile] = {}
        self.nodes: dict[str, int] = {}
        self.lost: dict[str, str] = {}
        self.nameless: dict[str, str] = {}
        self._devices: dict[str, DeviceProfile] = {}

    @property
    def awaited(self) -> bool:
        """Whether an answer is still out."""
        return self.exchange.waiting(ProfileRequest, 0)

    def ask(self, left: Iterator[int], at_once: int) -> None:
        """Ask the next of the nodes that are left, so that ``at_once`` are asked in all."""
        some = islice(left, max(0, at_once - self.exchange.outstanding))
        self.exchange.send(((str(node), ProfileRequest(self._run)) for node in some), 0)

    def receive(self) -> bool:
        """Take what has arrived; whether that was anything."""
        quiet = True
        for incoming in self.exchange.poll():
            quiet = False
            try:
                reply = reply_of(incoming)
            except HeadwaterError as error:
                self.nameless[f"node {incoming.address}"] = str(error)
            else:
                self.take(incoming.address, reply, arrived=True)
        return not quiet

    def take(self, address: str, reply: Reply, *, arrived: bool = False) -> None:
        """Take what a node said; what arrived as bytes has its own copy of everything."""
        try:
            profile = fitting(reply, f"node {address}", self._context, self._run)
            if profile.client in self.profiles:
                raise DecodeError(f"client {profile.client}", expected="one node", got="two")
            self.profiles[profile.client] = self._shared(profile) if arrived else profile
            self.nodes[profile.client] = int(address)
        except HeadwaterError as error:
            if isinstance(reply, ClientFailure | ClientProfile) and reply.client in self._owners:
                reason = reply.reason if isinstance(reply, ClientFailure) else ""
                self.lost[reply.client] = reason or str(error)
            else:
                self.nameless[f"node {address}"] = str(error)

    def _shared(self, profile: ClientProfile) -> ClientProfile:
        """The profile; what many clients say alike is kept once: there may be 10⁵ of them."""
        device = profile.device and self._devices.setdefault(repr(profile.device), profile.device)
        return replace(
            profile,
            model_sha256=self._context.base_sha256,
            spec=self._context.spec.fingerprint(),
            run=self._run,
            version=sys.intern(profile.version),
            device=device,
        )


class _Told:
    """Tells who has not answered yet: at the start, every :data:`TELL_S`, and at the end.

    Args:
        control: the observer, and the time.
        count: of nodes.
        owners: names of all clients; without any nobody is told.
    """

    def __init__(self, control: RunControl, count: int, owners: Sequence[str]) -> None:
        self._control, self._count, self._owners = control, count, owners
        self._told_s = control.clock()
        if owners:
            control.observer(Waiting(0, count, tuple(owners)))

    def tell(self, answers: _Answers, *, last: bool) -> None:
        """Tell, if it is time to: each time it takes a look at every client."""
        now = self._control.clock()
        if self._owners and (now >= self._told_s + TELL_S or last):
            self._told_s = now
            silent = [n for n in self._owners if n not in answers.profiles and n not in answers.lost]
            self._control.observer(Waiting(len(answers.profiles), self._count, tuple(silent)))


def _stopped_before(when: str) -> FederationStopped:
    """A stop that was asked for before the clients had said what they have: no client's fault."""
    return FederationStopped(
        "run",
        expected="the clients to answer before the first round",
        got=f"a stop when {when}",
        hint="Nothing is lost: go on with --resume.",
    )


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
    return fitting(reply_of(incoming, who), who, context, run, client, remote=incoming.remote)


def reply_of(incoming: ReceivedReply, who: str = "") -> Reply:
    """What has arrived, decoded.

    Raises:
        DecodeError: nothing that can be.
    """
    if incoming.error:
        raise DecodeError(who or f"node {incoming.address}", expected="a profile", got=incoming.error)
    return decode_reply(incoming.data, max_bytes=0)


def fitting(
    reply: Reply, who: str, context: TrainingContext, run: str, client: str = "", *, remote: bool = False
) -> ClientProfile:
    """The profile that the reply is, if it has this base model and adapter.

    Raises:
        DecodeError, UpdateRejected: as :func:`profile_of`.
    """
    if isinstance(reply, ClientFailure):
        error = reported(reply, who, expected="a profile", remote=remote)
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
    by_targets = context.loaded.settings.strategy.weighting == "targets"
    if by_targets and reply.train_examples and not reply.train_targets:
        raise DecodeError(
            f"client {reply.client}",
            expected='how many targets it trains on, by which it weighs (strategy.weighting = "targets")',
            got=f"0, of {reply.train_examples} examples",
            hint="Its software may be older than this setting: its owner updates headwater.",
        )
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
    by = federation.assignment
    if profile.train_examples < 1 or by is None or not by.by_device:  # it only evaluates, or any device fits
        return
    try:
        assign(federation, {profile.client: profile})
    except ConfigError as error:
        raise DecodeError(
            f"client {profile.client}, device", expected=error.expected, got=error.got, hint=error.hint
        ) from None
