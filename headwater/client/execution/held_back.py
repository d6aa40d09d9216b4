"""What a client holds back by error feedback, around one task: what was answered before, and settling."""

from __future__ import annotations

from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import ClientStore
from headwater.compression.feedback import FeedbackState, faded, is_stale, repeat, settle
from headwater.errors import DecodeError
from headwater.proto.wire import decode_reply
from headwater.protocol.messages import EncodedUpdate, TrainRequest
from headwater.seeds.coefficients import SeedCoefficients
from headwater.state import AdapterState, StateSpec


def answered(request: TrainRequest, store: ClientStore, runtime: ClientRuntime) -> bytes | None:
    """The bytes this task was answered with before, if it was.

    Raises:
        DecodeError: a late duplicate.
        StorageError, SpecMismatch: as :meth:`ClientStore.load`.
    """
    if not request.plan.codec.error_feedback:
        return None  # nothing is kept: training again gives the same update
    spec = runtime.context.spec
    if (pending := store.pending_round(request.client, spec)) is None or pending < request.round:
        return None
    feedback = store.load(request.client, spec)
    _require_current(feedback, request)
    data = repeat(feedback, request.round)
    if data is None:
        return None
    before = decode_reply(data, max_bytes=len(data))
    if isinstance(before, EncodedUpdate) and before.base_sha256 == request.state_sha256:
        return data
    return None  # the organiser went back in the middle of the round: that update is of no use any more


def settled(
    request: TrainRequest, learned: AdapterState | SeedCoefficients, store: ClientStore, spec: StateSpec
) -> FeedbackState | None:
    """The client's error feedback, its last update committed or rolled back; None where nothing is kept.

    Raises:
        DecodeError: a newer task was answered while this one trained, or EF21 is out of step.
        StorageError, SpecMismatch: as :meth:`ClientStore.load`.
    """
    if not request.plan.codec.error_feedback:
        return None
    stored = store.load(request.client, spec)
    _require_current(stored, request)
    if isinstance(learned, SeedCoefficients) and stored == FeedbackState():
        return None  # a client that only ever sends scalars has no residual
    codec, state = request.plan.codec, settle(stored, request.accepted_round)
    if codec.shifts:
        return _in_step(request, state)
    if state.shifts:  # what EF21 added up is nothing that was dropped
        return FeedbackState()
    return faded(state, request.round, *codec.fading())


def _in_step(request: TrainRequest, state: FeedbackState) -> FeedbackState:
    """EF21's state, if it is what the server has added up."""
    if state.shifts and state.made == request.accepted_round:
        return state
    if request.accepted_round == 0:  # the server has nothing of this client
        return FeedbackState(shifts=True)
    raise DecodeError(
        f"client {request.client}: error_feedback 'ef21'",
        expected=f"what it keeps to be of its updates up to round {request.accepted_round}",
        got=f"up to {state.made}" if state.shifts else "nothing of EF21",
        hint="Its store was lost or restored, or the server's was: start the run anew, or use 'ef14'.",
    )


def _require_current(feedback: FeedbackState, request: TrainRequest) -> None:
    if is_stale(feedback, request.round):
        raise DecodeError(
            f"client {request.client}", expected="a round after those answered", got=f"round {request.round}"
        )
