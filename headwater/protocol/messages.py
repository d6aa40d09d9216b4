"""What coordinator and clients say to each other, as frozen data.

Requests travel down: :class:`ProfileRequest`, :class:`TrainRequest`, :class:`EvaluateRequest`,
:class:`MaskRequest`. Replies travel up: :class:`ClientProfile`, :class:`EncodedUpdate`,
:class:`Evaluation`, :class:`MaskReply`.
The bytes on the wire are the business of ``headwater.proto``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, TypeAlias

from headwater.config.codec import Codec
from headwater.config.training import Training
from headwater.errors import UpdateRejected
from headwater.protocol.failures import UNSPECIFIED, Failure, FailureCode, coded
from headwater.seeds.coefficients import SeedPlan

if TYPE_CHECKING:  # a device's agent reads messages without torch
    from headwater.seeds.coefficients import SeedPlan


WITHHELD = "withheld.v1"
"""Codec of an update that its device keeps until it is summed under masks: the body is a digest of the state
that it starts from and of its units, and no value."""


@dataclass(frozen=True, slots=True)
class Payload:
    """Encoded values and the stable id of the codec that wrote them."""

    codec: str
    body: bytes


@dataclass(frozen=True, slots=True)
class FisherPlan:
    """How a client estimates its diagonal Fisher: on how many examples, capped at what."""

    examples: int
    cap: float


@dataclass(frozen=True, slots=True)
class ClientPlan:
    """What one client is asked to do in one round.

    Args:
        training: the local method and its settings.
        codec: of the delta; a method that sends scalars does not use it.
        learning_rate_factor: the learning rates are multiplied by it.
        clip_l2: L2 bound of the update.
        fisher: whether, and how, a diagonal Fisher is estimated.
        seeds: the seeds whose coefficients the client sends; None for a method that sends a delta.
        tensors: train these tensors only, the others' delta is zero; all if None.
        rank: train the first so many components of each LoRA pair only; all if None.
        method: name of the method in the federation file, for people.
        control_bytes: the last so many bytes of the request's state are the server's control variate
            (SCAFFOLD), in the codec ``dense-fp32.v1``; 0 without one.
        rows: train on the first so many of the client's rows only; all if None.
    """

    training: Training
    codec: Codec
    learning_rate_factor: float = 1.0
    clip_l2: float | None = None
    fisher: FisherPlan | None = None
    seeds: SeedPlan | None = None
    tensors: tuple[str, ...] | None = None
    rank: int | None = None
    method: str = ""
    control_bytes: int = 0
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class ProfileRequest:
    """Asks a client for its profile.

    Args:
        run: id of the run.
        federation: the federation's settings as JSON, for a device that does not have the file.
        model_sha256: of the base model; empty without ``federation``.
        version: of the server's software; empty without ``federation``.
        start: the adapter that the federation starts from, as a safetensors file; empty where its seed says
            how it starts, or the client has the file.
    """

    run: str
    federation: str = ""
    model_sha256: str = ""
    version: str = ""
    start: bytes = b""


@dataclass(frozen=True, slots=True)
class MethodCost:
    """What one of the federation's methods costs on a device.

    Args:
        peak_bytes: resident memory of the process at its highest, predicted.
        step_s: seconds of one step; 0 if nobody measured.
        batch_size: the largest batch that fits the device's memory, at most the method's; 0 if none does.
    """

    peak_bytes: int
    step_s: float = 0.0
    batch_size: int = 0


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """What a device can do, in its own words.

    Args:
        memory_bytes: what a training may use.
        threads: CPU threads.
        costs: by the method's name in the federation file.
    """

    memory_bytes: int
    threads: int
    costs: Mapping[str, MethodCost]


@dataclass(frozen=True, slots=True)
class ClientProfile:
    """A client's answer before the first round: sizes only, never content.

    ``edge`` is the server's note behind which edge aggregator the client is; it does not travel. ``reads``
    are the ids of the codecs in which a state may come to it; an older client, which names none, is sent
    dense states. ``train_targets`` is how many targets its training examples have, by which it weighs with
    ``strategy.weighting = "targets"``; 0 in other federations, where nobody needs it.
    """

    client: str
    train_examples: int
    validation_examples: int
    model_sha256: str
    spec: str
    run: str = ""
    version: str = ""
    device: DeviceProfile | None = None
    edge: str = ""
    reads: tuple[str, ...] = ()
    train_targets: int = 0


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """Train from this state.

    Args:
        run: id of the run; updates of another run are refused.
        round: 1, 2, ….
        client: enrolled name of the addressee.
        spec: fingerprint of the state's spec.
        state_sha256: :meth:`AdapterState.sha256` of the decoded state.
        state: the encoded global state.
        accepted_round: the last round whose update from this client was accepted; 0 if none. It
            commits or rolls back the client's error feedback.
        plan: what to do.
        masked_weight: under masks, the weight of all of the round's clients, which decides the units of the
            integers that the client makes of its update, and keeps. 0 without masks.
    """

    run: str
    round: int
    client: str
    spec: str
    state_sha256: str
    state: Payload
    accepted_round: int
    plan: ClientPlan
    masked_weight: int = 0


@dataclass(frozen=True, slots=True)
class EncodedUpdate:
    """A client's update as it travels, before it is believed."""

    run: str
    round: int
    client: str
    spec: str
    base_sha256: str
    delta: Payload
    statistics: Mapping[str, Payload]
    examples: int
    steps: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class EvaluateRequest:
    """Evaluate this state on your validation split."""

    run: str
    round: int
    client: str
    spec: str
    state_sha256: str
    state: Payload


class MaskStep(IntEnum):
    """The steps of a masked sum, in order: :mod:`headwater.security.secagg`."""

    KEYS = 1
    SHARES = 2
    VECTOR = 3
    LIST = 4
    REVEAL = 5


@dataclass(frozen=True, slots=True)
class MaskRequest:
    """One step of a masked sum.

    Args:
        run: id of the run.
        round: whose trained updates are summed.
        client: enrolled name of the addressee.
        attempt: at this sum.
        step: which.
        content: what the step brings. The first one's is read by :mod:`headwater.proto.mask_wire`, the
            others' by :mod:`headwater.security.secagg.messages`.
    """

    run: str
    round: int
    client: str
    attempt: bytes
    step: MaskStep
    content: bytes


@dataclass(frozen=True, slots=True)
class MaskReply:
    """What a client answers to a :class:`MaskRequest`; fields as there."""

    client: str
    run: str
    round: int
    attempt: bytes
    step: MaskStep
    content: bytes


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics over ``examples`` examples (for a causal model: of its tokens)."""

    client: str
    round: int
    examples: int
    metrics: Mapping[str, float]
    run: str = ""


@dataclass(frozen=True, slots=True)
class ClientFailure:
    """A client could not do what it was asked.

    Args:
        client: enrolled name.
        round: that it was asked about.
        reason: for people. A simulation's has the whole text of the error; a device sends
            :meth:`Failure.sentence`, so that nothing leaves it but code and numbers.
        run: id of the run.
        failure: by which whoever must decide something decides.
    """

    client: str
    round: int
    reason: str
    run: str = ""
    failure: Failure = UNSPECIFIED

    @staticmethod
    def coded(client: str, round: int, failure: Failure, run: str = "") -> ClientFailure:
        """The failure as a device sends it: its reason is made of code and numbers alone."""
        return ClientFailure(client, round, failure.sentence(), run, failure)


@dataclass(frozen=True, slots=True)
class GroupRequest:
    """Asks an edge aggregator to ask clients behind it.

    Args:
        client: enrolled name of the edge aggregator.
        run: id of the run.
        round: 1, 2, ….
        envelopes: one encoded request each; they start from the one state that travels beside them.
        merge_plan: the clients' part of the round's merge plan, as JSON; empty if nothing is to be summed.
    """

    client: str
    run: str
    round: int
    envelopes: tuple[bytes, ...]
    merge_plan: str = ""


@dataclass(frozen=True, slots=True)
class GroupReply:
    """What an edge aggregator answers for the clients behind it.

    Args:
        client: enrolled name of the edge aggregator.
        run: id of the run.
        round: that it was asked about.
        replies: encoded replies: profiles, evaluations, failures.
        rows: by client in the sum, numbers for the round's record.
        sum: the updates of those clients, added up: HWAC1; empty without any.
        gap: their gap sketch, likewise.
    """

    client: str
    run: str
    round: int
    replies: tuple[bytes, ...]
    rows: Mapping[str, Mapping[str, float]]
    sum: bytes = b""
    gap: bytes = b""


def reported(failure: ClientFailure, who: str, *, expected: str, remote: bool = False) -> UpdateRejected:
    """The error of a server that waited for ``expected`` and got this failure; it carries the code.

    Of a ``remote`` client's failure people are told what its code and numbers say: its own text is believed
    only where it has no code, as that of an older client.
    """
    coded_text = remote and failure.failure.code is not FailureCode.UNSPECIFIED
    reason = failure.failure.sentence() if coded_text else failure.reason
    error = UpdateRejected(who, expected=expected, got=f"failure: {reason.removeprefix(f'{who}: ')}")
    return coded(error, failure.failure.code, *failure.failure.numbers)


Request: TypeAlias = ProfileRequest | TrainRequest | EvaluateRequest | MaskRequest
Reply: TypeAlias = ClientProfile | EncodedUpdate | Evaluation | ClientFailure | MaskReply
