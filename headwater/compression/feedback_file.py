"""Error feedback as a file that checks itself: :func:`to_pieces`, :func:`read_state`, :func:`pending_round`.

Layout: ``HWFB3`` and a line feed; the CRC-32 of all that follows (u32); the size of the head (u32); the head,
JSON; the values, fp32 in name order; what was sent, where the update does not say it; the update's bytes;
zero bytes up to a multiple of 4096, so that a client's files mostly have one size and a database overwrites
them in place. :mod:`.feedback_file_before` reads ``HWFB1`` and ``HWFB2``.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from headwater.compression.feedback import FeedbackState, Pending
from headwater.compression.feedback_file_before import (
    EARLIER,
    Readable,
    earlier_round,
    earlier_state,
    of_another,
    torn,
)
from headwater.protocol.messages import Payload
from headwater.state import AdapterState, SparseState, StateSpec, sparse_where_few

_MAGIC = b"HWFB3\n"
_START = len(_MAGIC) + 8
_BLOCK = 4096

Bytes = bytes | memoryview


def to_pieces(state: FeedbackState) -> list[Bytes]:
    """``state`` as the content of a file, one piece after the other; the same state gives the same bytes."""
    pending = state.pending
    values = state.residual if pending is None else pending.residual_if_accepted
    head: dict[str, Any] = {
        "spec": "" if values is None else values.spec.fingerprint(),
        "round": None if pending is None else pending.round,
    }
    head |= {"made": state.made} if state.made else {}
    head |= {"shifts": True} if state.shifts else {}
    data: list[Bytes] = [] if values is None else [_bytes_of(values.flat().numpy(), "<f4")]
    if pending is not None:
        head["envelope"] = len(pending.envelope)
        head["sent"], more = _carried(pending)
        data += [*more, pending.envelope]
    text = json.dumps(head, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-(_START + len(text)) % 4)
    content: list[Bytes] = [len(text).to_bytes(4, "little"), text, *data]
    content.append(bytes(-(_START - 4 + sum(map(len, content))) % _BLOCK))
    check = 0
    for piece in content:
        check = zlib.crc32(piece, check)
    return [_MAGIC + check.to_bytes(4, "little"), *content]


def _carried(pending: Pending) -> tuple[dict[str, Any], list[Bytes]]:
    """What the head says of what was sent, and the bytes of it that the envelope does not have."""
    carried = pending.carried
    if isinstance(carried, Payload) and (at := pending.envelope.find(carried.body)) >= 0:
        return {"codec": carried.codec, "at": at, "size": len(carried.body)}, []
    sent = sparse_where_few(pending.sent)
    if isinstance(sent, SparseState):
        return {"places": len(sent.places)}, [_bytes_of(sent.places, "<i8"), _bytes_of(sent.entries, "<f4")]
    return {}, [_bytes_of(sent.flat().numpy(), "<f4")]


def _bytes_of(values: np.ndarray[Any, Any], kind: str) -> Bytes:
    flat = np.ascontiguousarray(values, kind)
    return flat.data.cast("B") if flat.size else b""


def read_state(file: Readable, spec: StateSpec) -> FeedbackState:
    """The state in an open file.

    Raises:
        StorageError: torn, altered or foreign bytes.
        SpecMismatch: intact, but of another adapter than ``spec``.
    """
    content = bytearray(file.read())  # what is made of it shares its memory
    magic = bytes(content[: len(_MAGIC)])
    if magic in EARLIER:
        return earlier_state(bytes(content), spec)
    with memoryview(content) as view:
        intact = len(view) >= _START and zlib.crc32(view[_START - 4 :]) == int.from_bytes(
            view[_START - 8 : _START - 4], "little"
        )
    if not intact or magic != _MAGIC:
        raise torn("a file that carries its own CRC-32", f"{len(content)} bytes that do not")
    try:
        size = int.from_bytes(content[_START - 4 : _START], "little")
        head = _Head.of(content[_START : _START + size], spec)
        return _state(content, _START + size, head, spec)
    except (ValueError, OverflowError, KeyError, TypeError, IndexError, AttributeError) as error:
        # the checksum held, so another program or version wrote this
        raise torn("a feedback state of this version", repr(error)[:80]) from None


@dataclass(frozen=True, slots=True)
class _Head:
    """What a file says of itself.

    Args:
        values: whether there are any.
        round: of the pending update; None without one.
        envelope: bytes of it.
        sent: how what was sent stands there.
        made, shifts: of the state.
    """

    values: bool
    round: int | None
    envelope: int
    sent: Mapping[str, Any]
    made: int
    shifts: bool

    @staticmethod
    def of(text: bytes | bytearray, spec: StateSpec) -> _Head:
        """The head in ``text``.

        Raises:
            SpecMismatch: of another adapter.
            ValueError, KeyError, TypeError, AttributeError: it is none.
        """
        entry = json.loads(text)
        if entry["spec"] not in ("", spec.fingerprint()):
            raise of_another(entry["spec"], spec)
        number = entry["round"]
        return _Head(
            entry["spec"] != "",
            None if number is None else int(number),
            int(entry.get("envelope", 0)),
            dict(entry.get("sent", {})),
            int(entry.get("made", 0)),
            entry.get("shifts") is True,
        )


def _state(content: bytearray, begin: int, head: _Head, spec: StateSpec) -> FeedbackState:
    state = FeedbackState(made=head.made, shifts=head.shifts)
    if not head.values:
        return state
    end = begin + spec.nbytes
    values = _vector(content, begin, spec)
    if head.round is None:
        return replace(state, residual=values)
    sent = head.sent
    if "codec" in sent:
        envelope = bytes(content[end : end + head.envelope])
        body = envelope[sent["at"] : sent["at"] + sent["size"]]
        return replace(state, pending=Pending(head.round, envelope, values, Payload(sent["codec"], body)))
    carried: AdapterState
    if "places" in sent:
        count, middle = int(sent["places"]), end + 8 * int(sent["places"])
        places = np.frombuffer(content, "<i8", count, end).astype(np.int64)
        entries = np.frombuffer(content, "<f4", count, middle).astype(np.float32)
        carried, end = SparseState(spec, places, entries), middle + 4 * count
    else:
        carried, end = _vector(content, end, spec), end + spec.nbytes
    envelope = bytes(content[end : end + head.envelope])
    return replace(state, pending=Pending(head.round, envelope, values, carried))


def _vector(content: bytearray, begin: int, spec: StateSpec) -> AdapterState:
    values = np.frombuffer(content, "<f4", spec.numel, begin).astype(np.float32, copy=False)
    return AdapterState.from_vector(spec, torch.from_numpy(values))


def pending_round(file: Readable, spec: StateSpec) -> int | None:
    """The pending update's round, or None, from the head of an open file alone, which nothing checks.

    Whoever goes on with the state reads the whole file, and so finds out if the head was wrong.

    Raises:
        StorageError: no head of such a file.
        SpecMismatch: of another adapter than ``spec``.
    """
    start = file.read(_START)
    if start[: len(_MAGIC)] in EARLIER:
        return earlier_round(start, file, spec)
    try:
        if start[: len(_MAGIC)] != _MAGIC:
            raise ValueError("other first bytes")
        return _Head.of(file.read(int.from_bytes(start[-4:], "little")), spec).round
    except (ValueError, KeyError, TypeError, OverflowError, AttributeError) as error:
        raise torn("the head of a feedback state", repr(error)[:80]) from None
