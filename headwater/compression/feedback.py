"""Error feedback as explicit client state with a two-step commit. Pure functions, no files.

A lossy codec drops part of every delta; the part it drops is the *residual*, and is added to the next
delta (Seide et al. 2014; STC, arXiv 1903.02891 eq. 8–11). Whether round t's update was accepted is
known only when the server speaks again, so both outcomes are kept until then. In one round a client:

1. :func:`repeat`: was this round answered already? Then the same bytes again, and nothing else.
2. :func:`settle`: with the request's ``accepted_round``, commit or roll back the last update.
3. trains, then :func:`compensate`: delta + residual.
4. encodes, decodes its own payload, and :func:`sent`: remember both outcomes. Store, then reply.

Between rounds :func:`to_bytes` and :func:`from_bytes` keep it on disk.

Law: Σ decoded updates that were accepted + what is held back = Σ deltas, up to fp32 rounding.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from headwater.errors import SpecMismatch, StorageError
from headwater.state import AdapterState, StateSpec
from headwater.tensor_bytes import load, save

_MAGIC = b"HWFB1\n"
_ENTRY = "headwater"


@dataclass(frozen=True, slots=True)
class Pending:
    """An update whose fate is unknown.

    Args:
        round: the round that it answers.
        envelope: the exact bytes that were sent.
        residual_if_accepted: the residual if the server folded it: compensated − decoded.
        sent: what the server decodes.
    """

    round: int
    envelope: bytes
    residual_if_accepted: AdapterState
    sent: AdapterState


@dataclass(frozen=True, slots=True)
class FeedbackState:
    """A client's error feedback.

    Args:
        residual: what no accepted update has carried yet; ``None`` is all zero, and while an update is
            pending, whose two outcomes hold it.
        pending: the last update, until the server says whether it was accepted.
    """

    residual: AdapterState | None = None
    pending: Pending | None = None


def repeat(state: FeedbackState, round: int) -> bytes | None:
    """The bytes already sent for ``round``, or ``None`` if it has to be trained."""
    if state.pending is not None and state.pending.round == round:
        return state.pending.envelope
    return None


def is_stale(state: FeedbackState, round: int) -> bool:
    """Whether ``round`` is older than the pending one: a late duplicate, to be refused unsettled."""
    return state.pending is not None and round < state.pending.round


def settle(state: FeedbackState, accepted_round: int) -> FeedbackState:
    """Commit or roll back the pending update. Only for a request of a *later* round.

    Or of the same round from another base: then the pending update cannot have been accepted.

    ``accepted_round`` is :attr:`TrainRequest.accepted_round`, the last round accepted from this client.
    Equal to the pending round: committed. Earlier: refused or lost, its delta returns to the residual.
    Later (this store was restored from an older copy): committed, since sending a delta twice would
    do more harm than losing it.
    """
    pending = state.pending
    if pending is None:
        return state
    if pending.round <= accepted_round:
        return FeedbackState(pending.residual_if_accepted)
    return FeedbackState(pending.residual_if_accepted + pending.sent)


def compensate(state: FeedbackState, delta: AdapterState) -> AdapterState:
    """What to encode: ``delta`` plus the residual.

    Raises:
        StorageError: an update is still pending.
        SpecMismatch: the residual belongs to another adapter.
    """
    _settled(state)
    return delta if state.residual is None else delta + state.residual


def sent(
    state: FeedbackState, round: int, compensated: AdapterState, decoded: AdapterState, envelope: bytes
) -> FeedbackState:
    """The state after ``envelope`` was made of ``compensated`` and decodes to ``decoded``.

    Raises:
        StorageError: an update is still pending.
    """
    _settled(state)
    return FeedbackState(pending=Pending(round, envelope, compensated - decoded, decoded))


def _settled(state: FeedbackState) -> None:
    if state.pending is not None:
        raise StorageError(
            "error feedback",
            expected="the update of an earlier round settled",
            got=f"round {state.pending.round} still pending",
            hint="Call settle with the request's accepted_round first.",
        )


def to_bytes(state: FeedbackState) -> bytes:
    """``state`` as a self-checking file content; the same state gives the same bytes.

    Layout: ``HWFB1`` and a line feed, the SHA-256 of all that follows (32 bytes), a safetensors
    container with the residual or the pending update. Its one metadata entry, JSON, holds the spec's
    fingerprint, whether there is a residual, and the pending round.
    """
    pending = state.pending
    states: dict[str, AdapterState] = {}
    if state.residual is not None:
        states["residual"] = state.residual
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    if pending is not None:
        states |= {"residual_if_accepted": pending.residual_if_accepted, "sent": pending.sent}
        arrays["envelope"] = np.frombuffer(pending.envelope, np.uint8)
    for part, values in states.items():
        arrays |= {f"{part}/{name}": value.contiguous().numpy() for name, value in values.items()}
    entry = {
        "spec": next((s.spec.fingerprint() for s in states.values()), ""),
        "round": None if pending is None else pending.round,
        "residual": state.residual is not None,
    }
    # one entry only: safetensors writes its metadata map in no fixed order
    content = save(arrays, metadata={_ENTRY: json.dumps(entry, sort_keys=True)})
    return _MAGIC + hashlib.sha256(content).digest() + content


def from_bytes(data: bytes, spec: StateSpec) -> FeedbackState:
    """The state in ``data``.

    Raises:
        StorageError: torn, altered or foreign bytes.
        SpecMismatch: intact, but of another adapter than ``spec``.
    """
    head = len(_MAGIC) + 32
    content = data[head:]
    if data[:head] != _MAGIC + hashlib.sha256(content).digest():
        raise _torn("a file that carries its own SHA-256", f"{len(data)} bytes that do not")
    try:
        size = int.from_bytes(content[:8], "little")
        entry = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][_ENTRY])
        arrays = load(content)
        if entry["spec"] not in ("", spec.fingerprint()):
            raise SpecMismatch(
                "error feedback",
                expected=f"residuals of spec {spec.fingerprint()[:12]}",
                got=str(entry["spec"])[:12],
                hint="The adapter changed: start this client with an empty feedback state.",
            )
        wanted = ["residual"] if entry["residual"] else []
        if entry["round"] is not None:
            wanted += ["residual_if_accepted", "sent"]
        states = {part: _state(arrays, part, spec) for part in wanted}
        pending = None
        if entry["round"] is not None:
            envelope = arrays["envelope"].tobytes()
            pending = Pending(entry["round"], envelope, states["residual_if_accepted"], states["sent"])
        return FeedbackState(states.get("residual"), pending)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        # the checksum held, so another program or version wrote this
        raise _torn("a feedback state of this version", repr(error)[:80]) from None


def _state(arrays: dict[str, np.ndarray[Any, Any]], part: str, spec: StateSpec) -> AdapterState:
    return AdapterState(spec, {t.name: torch.from_numpy(arrays[f"{part}/{t.name}"]) for t in spec})


def _torn(expected: str, got: str) -> StorageError:
    return StorageError(
        "error feedback file",
        expected=expected,
        got=got,
        hint="Restore it from a backup, or delete it: what this client held back is lost, no more.",
    )
