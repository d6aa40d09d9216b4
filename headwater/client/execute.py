"""execute: the one client path, for a device's cohort of one and a simulation's cohort of many.

For each task: train, settle the error feedback of earlier rounds and add it, clip, encode, keep the new
residual, answer. A failure of one client is that client's answer; the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from headwater.client.runtime import ClientRuntime
from headwater.client.store import ClientStore
from headwater.compression.feedback import FeedbackState, compensate, is_stale, repeat, sent, settle
from headwater.compression.logquant import LogQuantCodec
from headwater.compression.table import codec_for
from headwater.errors import DecodeError, HeadwaterError
from headwater.privacy.clip import clip_l2
from headwater.proto.wire import decode_reply, encode_reply
from headwater.protocol.messages import (
    ClientFailure,
    EncodedUpdate,
    EvaluateRequest,
    Evaluation,
    TrainRequest,
)
from headwater.state import AdapterState
from headwater.training.cohort import TrainResult, TrainTask


@dataclass(frozen=True, slots=True)
class Answer:
    """A client's encoded reply: an update, an evaluation, or the failure that came instead."""

    client: str
    data: bytes


def execute(tasks: Sequence[TrainRequest], store: ClientStore, runtime: ClientRuntime) -> Iterator[Answer]:
    """Train every task's client; yield one answer per task, as each is ready.

    A task that was answered before is answered with the same bytes, without training. All tasks
    must be of one round.
    """
    ready: list[tuple[TrainRequest, TrainTask]] = []
    for request in tasks:
        try:
            runtime.check(request)
            if request.round != tasks[0].round:
                raise DecodeError("cohort", expected=f"round {tasks[0].round}", got=f"{request.round}")
            if (data := _answered(request, store, runtime)) is not None:
                yield Answer(request.client, data)
                continue
            examples = runtime.data.client(request.client).train
            ready.append((request, TrainTask(request.client, runtime.state(request), examples, request.plan)))
        except HeadwaterError as error:
            yield _failure(request, error)
    if not ready:
        return
    trainer = runtime.bench.trainer(ready[0][0].plan.training)
    started = time.perf_counter()
    key = runtime.root.child("round", tasks[0].round)
    for (request, _), result in zip(ready, trainer.train([t for _, t in ready], key=key), strict=True):
        try:
            seconds = time.perf_counter() - started
            yield Answer(request.client, _update(request, result, seconds, store, runtime))
        except HeadwaterError as error:
            yield _failure(request, error)
        started = time.perf_counter()


def _failure(request: TrainRequest | EvaluateRequest, error: HeadwaterError) -> Answer:
    failure = ClientFailure(request.client, request.round, str(error), request.run)
    return Answer(request.client, encode_reply(failure))


def _keeps_residual(request: TrainRequest) -> bool:
    return request.plan.codec.kind == "compeft" and request.plan.codec.error_feedback


def _answered(request: TrainRequest, store: ClientStore, runtime: ClientRuntime) -> bytes | None:
    """The bytes this task was answered with before, if it was."""
    if not _keeps_residual(request):
        return None  # nothing is kept: training again gives the same update
    feedback = store.load(request.client, runtime.bench.spec)
    _require_current(feedback, request)
    data = repeat(feedback, request.round)
    if data is None:
        return None
    before = decode_reply(data, max_bytes=len(data))
    if isinstance(before, EncodedUpdate) and before.base_sha256 == request.state_sha256:
        return data
    return None  # the organiser went back in the middle of the round: that update is of no use any more


def _require_current(feedback: FeedbackState, request: TrainRequest) -> None:
    if is_stale(feedback, request.round):
        raise DecodeError(
            f"client {request.client}", expected="a round after those answered", got=f"round {request.round}"
        )


def _update(
    request: TrainRequest, result: TrainResult, seconds: float, store: ClientStore, runtime: ClientRuntime
) -> bytes:
    """Feed back, clip, encode; the store has the new residual before the update leaves."""
    if result.error is not None or not isinstance(result.delta, AdapterState):
        raise result.error or DecodeError(f"client {request.client}", expected="a delta", got="none")
    codec = codec_for(request.plan.codec)
    key = runtime.root.child("round", request.round, "client", request.client, "codec")
    delta = result.delta
    feedback = None
    if _keeps_residual(request):
        stored = store.load(request.client, runtime.bench.spec)
        _require_current(stored, request)  # a newer task may have been answered while this one trained
        feedback = settle(stored, request.accepted_round)
        delta = compensate(feedback, delta)
    learned = delta
    if request.plan.clip_l2 is not None:
        delta, _ = clip_l2(delta, request.plan.clip_l2)  # after feedback: what is sent is within the bound
    payload = codec.encode(delta, key=key)
    statistics = {
        name: LogQuantCodec().encode(values, key=key.child(name))
        for name, values in result.statistics.items()
    }
    data = encode_reply(
        EncodedUpdate(
            run=request.run,
            round=request.round,
            client=request.client,
            spec=request.spec,
            base_sha256=request.state_sha256,
            delta=payload,
            statistics=statistics,
            examples=result.examples,
            steps=result.steps,
            metrics={**result.metrics, **runtime.metrics, "seconds": seconds},
        )
    )
    if feedback is not None:
        decoded = codec.decode(payload, runtime.bench.spec)
        store.save(request.client, sent(feedback, request.round, learned, decoded, data))
    return data


def evaluate(tasks: Sequence[EvaluateRequest], runtime: ClientRuntime) -> Iterator[Answer]:
    """Evaluate every task's state on its client's validation split; 0 examples where it has none."""
    for request in tasks:
        try:
            runtime.check(request)
            examples = runtime.data.client(request.client).validation
            count, metrics = 0, dict[str, float]()
            if examples:
                count, metrics = runtime.bench.evaluate(runtime.state(request), examples)
            reply = Evaluation(request.client, request.round, count, metrics, request.run)
            yield Answer(request.client, encode_reply(reply))
        except HeadwaterError as error:
            yield _failure(request, error)
