"""headwater_mod: a ClientApp's mod that compresses what a train reply changed."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TypeAlias

from flwr.app import ArrayRecord, ConfigRecord, Context, Message

from headwater.compression.feedback import FeedbackState, compensate, faded, sent, settle
from headwater.compression.feedback_file import read_state, to_pieces
from headwater.compression.table import codec_for
from headwater.errors import DecodeError
from headwater.flower import as_array
from headwater.flower_strategy.records import spec_of, state_of, to_record
from headwater.flower_strategy.settings import Asked
from headwater.protocol.messages import Payload
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec

ClientAppCallable: TypeAlias = Callable[[Message, Context], Message]
"""The app, or the mod after this one."""
_KEPT = "headwater.held-back"
_SERIES = "headwater.series"


def headwater_mod(msg: Message, ctxt: Context, call_next: ClientAppCallable) -> Message:
    """Compress the ArrayRecord of the app's reply against the one that came in.

    It does what the message's HeadwaterStrategy asks, with the codec of that strategy, and nothing to other
    messages. What a codec drops is kept in ``ctxt.state`` and added to the next reply (error feedback).
    Give it as the first of ``ClientApp(mods=[…])``: it must see the arrays last.

    Raises:
        DecodeError, SpecMismatch: message and reply do not hold one ArrayRecord each, of equal float arrays.
        TrainingError: a value that is not finite.
    """
    asked = _asked(msg)
    if asked is None:
        return call_next(msg, ctxt)
    before = dict(_arrays(msg, "the message"))  # the app may change the record
    reply = call_next(msg, ctxt)
    if reply.has_error():
        return reply
    record = _arrays(reply, "the reply")
    spec = spec_of(before, "the message")
    delta = state_of(record, spec, "the reply") - state_of(before, spec, "the message")
    payload = _compressed(delta, asked, ctxt)
    (name,) = reply.content.array_records
    reply.content[name] = to_record(payload)
    return reply


def _asked(msg: Message) -> Asked | None:
    for config in msg.content.config_records.values():
        if (asked := Asked.of(config)) is not None:
            return asked
    return None


def _arrays(message: Message, what: str) -> ArrayRecord:
    records = list(message.content.array_records.values())
    if len(records) != 1:
        raise DecodeError(f"headwater_mod, {what}", expected="one ArrayRecord", got=f"{len(records)}")
    return records[0]


def _compressed(delta: AdapterState, asked: Asked, ctxt: Context) -> Payload:
    """The change as bytes; what of it they do not carry is in the context."""
    codec = codec_for(asked.codec)
    key = Key.root(asked.seed).child("client", ctxt.node_id, asked.number)
    if not asked.codec.error_feedback:
        return codec.encode(delta, key=key)
    settled = faded(
        settle(_load(ctxt, asked, delta.spec), asked.accepted), asked.number, *asked.codec.fading()
    )
    held = compensate(settled, delta)
    payload, decoded = codec.round_trip(held, key=key)
    _save(ctxt, asked, sent(settled, asked.number, held, decoded, b"", payload))
    return payload


def _load(ctxt: Context, asked: Asked, spec: StateSpec) -> FeedbackState:
    """What was held back for this strategy; nothing of another one's: its model is another, too."""
    series, kept = ctxt.state.get(_SERIES), ctxt.state.get(_KEPT)
    if not isinstance(series, ConfigRecord) or series.get("series") != asked.series:
        return FeedbackState()
    if not isinstance(kept, ArrayRecord):
        return FeedbackState()
    return read_state(io.BytesIO(kept[_KEPT].data), spec)


def _save(ctxt: Context, asked: Asked, state: FeedbackState) -> None:
    ctxt.state[_KEPT] = ArrayRecord({_KEPT: as_array(b"".join(bytes(p) for p in to_pieces(state)))})
    ctxt.state[_SERIES] = ConfigRecord({"series": asked.series})
