"""The control service's messages and the rows of ``headwater.protocol.control``, both ways.

A row and its message have the same fields under the same names; only lists, maps and what may be absent
need a word of their own. The receiver of a row is the organiser's own client and the sender the organiser's
own daemon: what they send is typed, but not taken for hostile.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

from google.protobuf.message import Message

from headwater.proto.v1 import control_pb2 as pb
from headwater.protocol.control import (
    AdapterRow,
    ClientRow,
    ClientState,
    RunRow,
    RunState,
    Status,
    WatchEvent,
)


def status_to_message(status: Status) -> pb.Status:
    """A status as it travels."""
    return pb.Status(
        version=status.version,
        started=status.started,
        rss_bytes=status.rss_bytes,
        certificate_days=status.certificate_days,
        runs=[run_to_message(r) for r in status.runs],
        clients=[client_to_message(c) for c in status.clients],
        refused=dict(status.refused),
        errors=[event_to_message(e) for e in status.errors],
    )


def status_from_message(message: pb.Status) -> Status:
    """The inverse of :func:`status_to_message`."""
    return Status(
        version=message.version,
        started=message.started,
        rss_bytes=message.rss_bytes,
        certificate_days=message.certificate_days,
        runs=tuple(run_from_message(r) for r in message.runs),
        clients=tuple(client_from_message(c) for c in message.clients),
        refused=dict(sorted(message.refused.items())),
        errors=tuple(event_from_message(e) for e in message.errors),
    )


def run_to_message(row: RunRow) -> pb.RunRow:
    """A run's row as it travels."""
    return pb.RunRow(**_fields_of(row))


def run_from_message(message: pb.RunRow) -> RunRow:
    """The inverse of :func:`run_to_message`."""
    state, warnings = cast(RunState, message.state), tuple(message.warnings)
    return RunRow(**_scalars_of(message, RunRow, state=state, warnings=warnings))


def client_to_message(row: ClientRow) -> pb.ClientRow:
    """A client's row as it travels."""
    return pb.ClientRow(**_fields_of(row))


def client_from_message(message: pb.ClientRow) -> ClientRow:
    """The inverse of :func:`client_to_message`."""
    seen = message.seen_s_ago if message.HasField("seen_s_ago") else None
    state = cast(ClientState, message.state)
    return ClientRow(**_scalars_of(message, ClientRow, state=state, seen_s_ago=seen))


def adapter_to_message(row: AdapterRow) -> pb.AdapterRow:
    """An adapter version's row as it travels."""
    return pb.AdapterRow(**_fields_of(row))


def adapter_from_message(message: pb.AdapterRow) -> AdapterRow:
    """The inverse of :func:`adapter_to_message`."""
    return AdapterRow(**_scalars_of(message, AdapterRow, cohort=tuple(message.cohort)))


def event_to_message(event: WatchEvent) -> pb.WatchEvent:
    """An event as it travels."""
    data = {}
    for key, value in event.data.items():
        match value:
            case str():
                data[key] = pb.Value(text=value)
            case int():
                data[key] = pb.Value(integer=value)
            case float():
                data[key] = pb.Value(number=value)
    return pb.WatchEvent(
        seq=event.seq, time=event.time, kind=event.kind, run=event.run, text=event.text, data=data
    )


def event_from_message(message: pb.WatchEvent) -> WatchEvent:
    """The inverse of :func:`event_to_message`; values of a kind that is not known here are left out."""
    data = {}
    for key in sorted(message.data):
        if kind := message.data[key].WhichOneof("kind"):
            data[key] = getattr(message.data[key], kind)
    return WatchEvent(message.seq, message.time, message.kind, message.run, message.text, data)


def _fields_of(row: RunRow | ClientRow | AdapterRow) -> dict[str, Any]:
    return {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}


def _scalars_of(
    message: Message, kind: type[RunRow | ClientRow | AdapterRow], **others: object
) -> dict[str, Any]:
    return {f.name: getattr(message, f.name) for f in dataclasses.fields(kind)} | others
