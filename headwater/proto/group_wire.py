"""What server and edge aggregator tell each other, to bytes and back; hostile bytes give ``DecodeError``."""

from __future__ import annotations

from headwater.errors import DecodeError
from headwater.proto.fields import check_metrics, check_name, parse
from headwater.proto.v1 import messages_pb2 as pb
from headwater.proto.wire import MAX_ENVELOPE
from headwater.protocol.messages import GroupReply, GroupRequest

MAX_GROUP = 64 * MAX_ENVELOPE
"""Bytes of a group request's envelope, and of everything in a group reply but its sums (4 MiB)."""
MAX_MEMBERS = 10_000


def encode_group_request(request: GroupRequest) -> bytes:
    """The envelope; the state travels beside it, as of any request."""
    message = pb.Request()
    message.group.CopyFrom(
        pb.GroupRequest(
            client=request.client,
            run=request.run,
            round=request.round,
            envelopes=request.envelopes,
            merge_plan=request.merge_plan,
        )
    )
    data: bytes = message.SerializeToString(deterministic=True)
    return data


def decode_group_request(envelope: bytes) -> GroupRequest | None:
    """The inverse; None for a request of another kind.

    Raises:
        DecodeError: too large, or a field out of range.
    """
    message = pb.Request()
    parse(message, envelope, MAX_GROUP, "request")
    if message.WhichOneof("body") != "group":
        return None
    g = message.group
    _require_few(len(g.envelopes))
    return GroupRequest(
        check_name(g.client, "group.client"),
        check_name(g.run, "group.run"),
        g.round,
        tuple(g.envelopes),
        g.merge_plan,
    )


def encode_group_reply(reply: GroupReply) -> bytes:
    """The reply, before it is signed."""
    message = pb.Reply()
    rows = [
        pb.MemberRow(
            client=client,
            numbers=[pb.Metric(name=name, value=value) for name, value in sorted(row.items())],
        )
        for client, row in sorted(reply.rows.items())
    ]
    group = pb.GroupReply(
        client=reply.client,
        run=reply.run,
        round=reply.round,
        replies=reply.replies,
        sum=reply.sum,
        gap=reply.gap,
        rows=rows,
    )
    message.group.CopyFrom(group)
    data: bytes = message.SerializeToString(deterministic=True)
    return data


def decode_group_reply(data: bytes, *, max_bytes: int) -> GroupReply:
    """The inverse.

    Args:
        data: bytes from an edge aggregator.
        max_bytes: what its sums may take together.

    Raises:
        DecodeError: no such reply, too large, or a field out of range.
    """
    message = pb.Reply()
    parse(message, data, MAX_GROUP + max_bytes, "reply of an edge aggregator")
    if message.WhichOneof("body") != "group":
        raise DecodeError("reply of an edge aggregator", expected="a group's", got="another kind")
    g = message.group
    _require_few(len(g.replies) + len(g.rows))
    rows = {check_name(row.client, "group.rows"): check_metrics(row.numbers) for row in g.rows}
    if len(rows) != len(g.rows):
        raise DecodeError("group.rows", expected="one of each client", got="several")
    return GroupReply(
        check_name(g.client, "group.client"),
        check_name(g.run, "group.run"),
        g.round,
        tuple(g.replies),
        rows,
        g.sum,
        g.gap,
    )


def _require_few(count: int) -> None:
    if count > MAX_MEMBERS:
        raise DecodeError("group", expected=f"at most {MAX_MEMBERS} clients", got=str(count))
