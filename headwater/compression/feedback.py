"""Error feedback as explicit client state with a two-step commit. Pure functions, no files.

A lossy codec drops part of every delta; the part it drops is the *residual*, and is added to the next
delta (Seide et al. 2014; STC, arXiv 1903.02891 eq. 8–11). Whether round t's update was accepted is
known only when the server speaks again, so both outcomes are kept until then. In one round a client:

1. :func:`repeat`: was this round answered already? Then the same bytes again, and nothing else.
2. :func:`settle`: with the request's ``accepted_round``, commit or roll back the last update.
3. trains, then :func:`compensate`: delta + residual.
4. encodes (:meth:`.Codec.round_trip`), and :func:`sent`: remember both outcomes. Store, then reply.

Between rounds it is on disk: :mod:`headwater.compression.feedback_file`.

Law: Σ decoded updates that were accepted + what is held back = Σ deltas, up to fp32 rounding. With a decay
β < 1 the residual e of round m counts β^(r − m)·e in round r (SparseLoCo, arXiv 2508.15706): a client that
missed rounds, for whatever reason, comes back with a residual that has faded as if it had been there.

EF21 (Richtárik, Sokolov, Fatkhullin 2021, arXiv 2106.05203) keeps a *shift* g instead, the sum of what was
accepted: it sends C(delta − g), and the server adds up the same sums. Partial participation is EF21-PP
(arXiv 2110.03294): who does not take part keeps its g, and the server keeps counting it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from headwater.compression.table import CODEC_IDS, codec_by_id
from headwater.errors import StorageError
from headwater.protocol.messages import Payload
from headwater.state import AdapterState, SparseState


@dataclass(frozen=True, slots=True)
class Pending:
    """An update whose fate is unknown.

    Args:
        round: the round that it answers.
        envelope: the exact bytes that were sent.
        residual_if_accepted: the residual if the server folded it: compensated − decoded. Of EF21 the shift
            if the server did not.
        carried: what the server decodes, or the payload in ``envelope`` that it decodes.
    """

    round: int
    envelope: bytes
    residual_if_accepted: AdapterState
    carried: AdapterState | Payload

    @property
    def sent(self) -> AdapterState:
        """What the server decodes."""
        if isinstance(self.carried, AdapterState):
            return self.carried
        return codec_by_id(self.carried.codec).decode(self.carried, self.residual_if_accepted.spec)


@dataclass(frozen=True, slots=True)
class FeedbackState:
    """A client's error feedback.

    Args:
        residual: what no accepted update has carried yet, or EF21's shift; ``None`` is all zero, and while an
            update is pending, which holds it.
        pending: the last update, until the server says whether it was accepted.
        made: the round of the update that the residual is of; of EF21 the last one that is in the shift.
        shifts: whether it is EF21's.
    """

    residual: AdapterState | None = None
    pending: Pending | None = None
    made: int = 0
    shifts: bool = False


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
    accepted, held = pending.round <= accepted_round, pending.residual_if_accepted
    if state.shifts:
        return replace(
            state,
            residual=held + pending.sent if accepted else held,
            pending=None,
            made=pending.round if accepted else state.made,
        )
    return FeedbackState(held if accepted else held + pending.sent, made=pending.round)


def faded(state: FeedbackState, round: int, decay: float, keep_rounds: int | None = None) -> FeedbackState:
    """A settled residual as it is in ``round``: decay^(rounds since it was made) of it, or nothing.

    Args:
        state: settled, not EF21's.
        round: that is trained now.
        decay: β of one round.
        keep_rounds: after so many rounds nothing is left; None for no such limit.
    """
    _settled(state)
    age = round - state.made
    if state.residual is None or (keep_rounds is not None and age > keep_rounds):
        return FeedbackState()
    return state if decay == 1 else replace(state, residual=state.residual * decay**age)


def compensate(state: FeedbackState, delta: AdapterState) -> AdapterState:
    """What to encode: ``delta`` plus the residual, or less EF21's shift.

    Raises:
        StorageError: an update is still pending.
        SpecMismatch: the residual belongs to another adapter.
    """
    _settled(state)
    if state.residual is None:
        return delta
    state.residual.require_spec(delta.spec, "error feedback")
    if state.shifts:
        return delta - state.residual
    return AdapterState.from_vector(delta.spec, delta.flat() + state.residual.flat())


def sent(
    state: FeedbackState,
    round: int,
    compensated: AdapterState,
    decoded: AdapterState,
    envelope: bytes,
    payload: Payload | None = None,
) -> FeedbackState:
    """The state after ``envelope`` was made of ``compensated`` and decodes to ``decoded``.

    Args:
        state: settled.
        round: that the update answers.
        compensated: what was encoded.
        decoded: what arrives of it.
        envelope: the update's bytes.
        payload: in ``envelope``: what decodes to ``decoded``, which then need not be kept.

    Raises:
        StorageError: an update is still pending.
    """
    _settled(state)
    carried = payload if payload is not None and payload.codec in CODEC_IDS else decoded
    if state.shifts:
        shift = AdapterState.zeros(compensated.spec) if state.residual is None else state.residual
        return replace(state, residual=None, pending=Pending(round, envelope, shift, carried))
    return FeedbackState(pending=Pending(round, envelope, _minus(compensated, decoded), carried))


def _minus(left: AdapterState, right: AdapterState) -> AdapterState:
    """``left`` − ``right``, value by value: where ``right`` is +0, ``left`` as it is."""
    right.require_spec(left.spec, "difference of states")
    values = left.vector().numpy()
    if isinstance(right, SparseState):
        values[right.places] -= right.entries
    else:
        values -= right.flat().numpy()
    return AdapterState.from_vector(left.spec, torch.from_numpy(values))


def _settled(state: FeedbackState) -> None:
    if state.pending is not None:
        raise StorageError(
            "error feedback",
            expected="the update of an earlier round settled",
            got=f"round {state.pending.round} still pending",
            hint="Call settle with the request's accepted_round first.",
        )
