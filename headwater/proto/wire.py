"""Messages to bytes and back: :func:`encode_request`, :func:`decode_reply` and their mates.

A request is an *envelope* (protobuf) and a *state* body beside it, so that one copy of the state
serves every client; a reply is one protobuf. ``docs/reference/wire-format.md`` describes both.
Decoding takes hostile bytes: the size is checked before parsing, every field after it, and anything
wrong is a ``DecodeError``.
"""

from __future__ import annotations

from typing import Any

from headwater.errors import DecodeError
from headwater.proto.fields import (
    MAX_READS,
    check_attempt,
    check_count,
    check_digest,
    check_hex,
    check_metrics,
    check_name,
    check_reads,
    check_run,
    check_step,
    check_weight,
    metrics_to_pb,
    parse,
    printable,
)
from headwater.proto.plan_json import device_from_json, device_to_json, plan_from_json, plan_to_json
from headwater.proto.v1 import messages_pb2 as pb
from headwater.protocol.failures import MAX_NUMBERS, read_failure
from headwater.protocol.messages import (
    ClientFailure,
    ClientProfile,
    EncodedUpdate,
    EvaluateRequest,
    Evaluation,
    MaskReply,
    MaskRequest,
    Payload,
    ProfileRequest,
    Reply,
    Request,
    TrainRequest,
)

MAX_ENVELOPE = 64 * 1024
"""Bytes of a request's envelope, and of everything in a reply but its payloads."""
MAX_STATISTICS = 8
MAX_REASON = 2000
_FAILURE_TAG = bytes([pb.Reply.FAILURE_FIELD_NUMBER << 3 | 2])


# --- requests -------------------------------------------------------------------------------------


def encode_request(request: Request) -> tuple[bytes, bytes]:
    """``(envelope, state body)``; a profile request's body is the federation's start. Deterministic."""
    message = pb.Request()
    match request:
        case ProfileRequest():
            message.profile.CopyFrom(
                pb.ProfileRequest(
                    run=request.run,
                    federation=request.federation,
                    model_sha256=request.model_sha256,
                    version=request.version,
                )
            )
            return message.SerializeToString(deterministic=True), request.start
        case TrainRequest():
            plan = plan_to_json(request.plan)
            train = pb.TrainRequest(**_task(request), accepted_round=request.accepted_round, plan=plan)
            train.masked_weight = request.masked_weight
            message.train.CopyFrom(train)
        case EvaluateRequest():
            message.evaluate.CopyFrom(pb.EvaluateRequest(**_task(request)))
        case MaskRequest():
            message.mask.CopyFrom(
                pb.MaskRequest(
                    run=request.run,
                    round=request.round,
                    client=request.client,
                    attempt=request.attempt,
                    step=request.step,
                )
            )
            return message.SerializeToString(deterministic=True), request.content
    return message.SerializeToString(deterministic=True), request.state.body


def decode_request(envelope: bytes, body: bytes) -> Request:
    """The inverse of :func:`encode_request`.

    Raises:
        DecodeError: too large, not a request, or a field out of range.
    """
    message = pb.Request()
    parse(message, envelope, MAX_ENVELOPE, "request")
    kind = message.WhichOneof("body")
    if kind == "profile":
        p = message.profile
        return ProfileRequest(
            run=check_name(p.run, "request.run"),
            federation=p.federation,
            model_sha256=check_hex(p.model_sha256, "request.model_sha256") if p.model_sha256 else "",
            version=check_name(p.version, "request.version") if p.version else "",
            start=body,
        )
    if kind == "train":
        t = message.train
        plan = plan_from_json(t.plan)
        return TrainRequest(
            **_checked_task(t, body),
            accepted_round=t.accepted_round,
            plan=plan,
            masked_weight=check_weight(t.masked_weight),
        )
    if kind == "evaluate":
        return EvaluateRequest(**_checked_task(message.evaluate, body))
    if kind == "mask":
        m = message.mask
        return MaskRequest(
            run=check_name(m.run, "request.run"),
            round=m.round,
            client=check_name(m.client, "request.client"),
            attempt=check_attempt(m.attempt),
            step=check_step(m.step),
            content=body,
        )
    raise DecodeError("request", expected="profile, train, evaluate or mask", got="none of them")


def _task(request: TrainRequest | EvaluateRequest) -> dict[str, Any]:
    """What training and evaluation have in common: to whom, of which run, from which state."""
    return {
        "run": request.run,
        "round": request.round,
        "client": request.client,
        "spec": request.spec,
        "state_codec": request.state.codec,
        "state_sha256": bytes.fromhex(request.state_sha256),
    }


def _checked_task(message: pb.TrainRequest | pb.EvaluateRequest, body: bytes) -> dict[str, Any]:
    """The inverse of :func:`_task`."""
    return {
        "run": check_name(message.run, "request.run"),
        "round": message.round,
        "client": check_name(message.client, "request.client"),
        "spec": check_hex(message.spec, "request.spec"),
        "state_sha256": check_digest(message.state_sha256, "request.state_sha256"),
        "state": Payload(check_name(message.state_codec, "request.state_codec"), body),
    }


# --- replies --------------------------------------------------------------------------------------


def encode_reply(reply: Reply) -> bytes:
    """The reply as one protobuf. Deterministic: lists are sorted by name."""
    message = pb.Reply()
    match reply:
        case ClientProfile():
            message.profile.CopyFrom(
                pb.ClientProfile(
                    client=reply.client,
                    train_examples=reply.train_examples,
                    validation_examples=reply.validation_examples,
                    model_sha256=reply.model_sha256,
                    spec=reply.spec,
                    run=reply.run,
                    version=reply.version,
                    device=device_to_json(reply.device),
                    reads=reply.reads,
                    train_targets=reply.train_targets,
                )
            )
        case EncodedUpdate():
            message.update.CopyFrom(
                pb.Update(
                    run=reply.run,
                    round=reply.round,
                    client=reply.client,
                    spec=reply.spec,
                    base_sha256=bytes.fromhex(reply.base_sha256),
                    delta=pb.Payload(codec=reply.delta.codec, body=reply.delta.body),
                    statistics=[
                        pb.NamedPayload(name=name, payload=pb.Payload(codec=p.codec, body=p.body))
                        for name, p in sorted(reply.statistics.items())
                    ],
                    examples=reply.examples,
                    steps=reply.steps,
                    metrics=metrics_to_pb(reply.metrics),
                )
            )
        case Evaluation():
            message.evaluation.CopyFrom(
                pb.Evaluation(
                    client=reply.client,
                    round=reply.round,
                    examples=reply.examples,
                    metrics=metrics_to_pb(reply.metrics),
                    run=reply.run,
                )
            )
        case ClientFailure():
            message.failure.CopyFrom(
                pb.Failure(
                    client=reply.client,
                    round=reply.round,
                    reason=reply.reason[:MAX_REASON],
                    run=reply.run,
                    code=int(reply.failure.code),
                    numbers=reply.failure.numbers,
                )
            )
        case MaskReply():
            message.mask.CopyFrom(
                pb.MaskReply(
                    client=reply.client,
                    run=reply.run,
                    round=reply.round,
                    attempt=reply.attempt,
                    step=reply.step,
                    content=reply.content,
                )
            )
    return message.SerializeToString(deterministic=True)


def decode_reply(data: bytes, *, max_bytes: int) -> Reply:
    """The inverse of :func:`encode_reply`.

    Args:
        data: bytes from a client.
        max_bytes: what all payloads of the reply may take together.

    Raises:
        DecodeError: too large, not a reply, or a field out of range.
    """
    message = pb.Reply()
    parse(message, data, MAX_ENVELOPE + max_bytes, "reply")
    kind = message.WhichOneof("body")
    if kind == "profile":
        p = message.profile
        return ClientProfile(
            client=check_name(p.client, "profile.client"),
            train_examples=check_count(p.train_examples, "profile.train_examples"),
            validation_examples=check_count(p.validation_examples, "profile.validation_examples"),
            model_sha256=check_hex(p.model_sha256, "profile.model_sha256"),
            spec=check_hex(p.spec, "profile.spec"),
            run=check_run(p.run, "profile.run"),
            version=check_name(p.version, "profile.version") if p.version else "",
            device=device_from_json(p.device),
            reads=check_reads(tuple(p.reads[: MAX_READS + 1])),
            train_targets=check_count(p.train_targets, "profile.train_targets"),
        )
    if kind == "update":
        u = message.update
        statistics = {check_name(s.name, "update.statistics"): s.payload for s in u.statistics}
        if len(statistics) != len(u.statistics) or len(statistics) > MAX_STATISTICS:
            raise DecodeError(
                "update.statistics", expected=f"at most {MAX_STATISTICS} of distinct names", got="others"
            )
        return EncodedUpdate(
            run=check_name(u.run, "update.run"),
            round=u.round,
            client=check_name(u.client, "update.client"),
            spec=check_hex(u.spec, "update.spec"),
            base_sha256=check_digest(u.base_sha256, "update.base_sha256"),
            delta=Payload(check_name(u.delta.codec, "update.delta.codec"), u.delta.body),
            statistics={
                name: Payload(check_name(p.codec, "update.statistics.codec"), p.body)
                for name, p in statistics.items()
            },
            examples=check_count(u.examples, "update.examples"),
            steps=check_count(u.steps, "update.steps"),
            metrics=check_metrics(u.metrics),
        )
    if kind == "evaluation":
        e = message.evaluation
        return Evaluation(
            client=check_name(e.client, "evaluation.client"),
            round=e.round,
            examples=check_count(e.examples, "evaluation.examples"),
            metrics=check_metrics(e.metrics),
            run=check_run(e.run, "evaluation.run"),
        )
    if kind == "failure":
        f = message.failure
        return ClientFailure(
            check_name(f.client, "failure.client"),
            f.round,
            printable(f.reason[:MAX_REASON]),
            check_run(f.run, "failure.run"),
            read_failure(f.code, tuple(f.numbers[:MAX_NUMBERS])),
        )
    if kind == "mask":
        m = message.mask
        return MaskReply(
            client=check_name(m.client, "mask.client"),
            run=check_name(m.run, "mask.run"),
            round=m.round,
            attempt=check_attempt(m.attempt),
            step=check_step(m.step),
            content=m.content,
        )
    raise DecodeError("reply", expected="profile, update, evaluation, failure or mask", got="none of them")


def tells_failure(data: bytes) -> bool:
    """Whether a reply is a client's failure, by its first byte."""
    return data[:1] == _FAILURE_TAG


def decode_failure(data: bytes) -> ClientFailure | None:
    """The reply, if it is a client's failure; None for any other, of which only the first byte is read."""
    if not tells_failure(data):
        return None
    reply = decode_reply(data, max_bytes=0)
    return reply if isinstance(reply, ClientFailure) else None


def encode_signed(reply: bytes, signature: bytes) -> bytes:
    """A reply and the client's signature over it, as an agent sends them."""
    return pb.SignedReply(reply=reply, signature=signature).SerializeToString(deterministic=True)


def decode_signed(data: bytes, *, max_bytes: int) -> tuple[bytes, bytes]:
    """The inverse of :func:`encode_signed`; ``max_bytes`` as in :func:`decode_reply`.

    Raises:
        DecodeError: too large, not a signed reply, or a signature of another length.
    """
    message = pb.SignedReply()
    parse(message, data, MAX_ENVELOPE + max_bytes + 128, "signed reply")
    if len(message.signature) != 64:
        raise DecodeError("signed reply", expected="a signature of 64 bytes", got=f"{len(message.signature)}")
    return message.reply, message.signature
