"""Error feedback as explicit client state with a two-step commit. Pure functions, no files.

A lossy codec drops part of every delta; the part it drops is the *residual*, and is added to the next
delta (Seide et al. 2014; STC, arXiv 1903.02891 eq. 8–11). Whether round t's update was accepted is
known only when the server speaks again, so both outcomes are kept until then. In one round a client:

1. :func:`repeat`: was this round answered already? Then the same bytes again, and nothing else.
2. :func:`settle`: with the request's ``accepted_round``, commit or roll back the last update.
3. trains, then :func:`compensate`: delta + residual.
4. encodes (:meth:`.Codec.round_trip`), and :func:`sent`: remember both outcomes. Store, then reply.

Between rounds it is on disk: :mod:`headwater.compression.feedback_file`.

Law: Σ decoded updates that were accepted + what is held back = Σ deltas, up to fp32 rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

from headwater.errors import StorageError
from headwater.state import AdapterState


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
