"""What a client holds back by error feedback, around one task: what was answered before, and settling."""

from __future__ import annotations

from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import ClientStore
from headwater.compression.feedback import FeedbackState, is_stale, repeat, settle
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
        DecodeError: a newer task was answered while this one trained.
        StorageError, SpecMismatch: as :meth:`ClientStore.load`.
    """
    if not request.plan.codec.error_feedback:
        return None
    stored = store.load(request.client, spec)
    _require_current(stored, request)
    if isinstance(learned, SeedCoefficients) and stored == FeedbackState():
        return None  # a client that only ever sends scalars has no residual
    return settle(stored, request.accepted_round)


def _require_current(feedback: FeedbackState, request: TrainRequest) -> None:
    if is_stale(feedback, request.round):
        raise DecodeError(
            f"client {request.client}", expected="a round after those answered", got=f"round {request.round}"
        )
