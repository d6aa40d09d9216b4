"""execute: the one client path, for a device's cohort of one and a simulation's cohort of many.

For each task: spend of its client's privacy budget (:mod:`.example_budget`), train, settle the error feedback
of earlier rounds, send the update through its pipeline (:mod:`.update_pipeline`), keep the new residual,
answer. A failure of one client is that client's answer; the others go on. :mod:`.faults` says what is one.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from headwater.client.agent.advice import for_owner
from headwater.client.device.memory import give_back_memory
from headwater.client.execution.control_variate import ControlVariate, after_training, correction
from headwater.client.execution.example_budget import require_unmeasured, spend
from headwater.client.execution.faults import contained
from headwater.client.execution.held_back import answered, settled
from headwater.client.execution.own_part import keep_own, trained_with_own, with_own
from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import ClientStore
from headwater.client.execution.update_pipeline import OutgoingUpdate, pipeline_for
from headwater.compression.feedback import sent
from headwater.compression.logquant import LogQuantCodec
from headwater.compression.table import codec_for
from headwater.errors import DataError, DecodeError, HeadwaterError, TrainingError
from headwater.proto.wire import encode_reply
from headwater.protocol.failures import FailureCode, coded, failure_of
from headwater.protocol.messages import (
    ClientFailure,
    ClientProfile,
    EncodedUpdate,
    EvaluateRequest,
    Evaluation,
    TrainRequest,
)
from headwater.seeds.coefficients import SeedCoefficients, directions_of
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.tasks.batches import Example, by_row
from headwater.training.cohort import CohortTrainer, TrainResult, TrainTask
from headwater.training.evaluate import Measured


@dataclass(frozen=True, slots=True)
class Answer:
    """A client's encoded reply: an update, an evaluation, or the failure that came instead."""

    client: str
    data: bytes


class WantOfMemory(Exception):
    """A batch of several clients was too large for this machine. None of them has failed: fewer may fit."""


class ProcessSpent(Exception):
    """Nothing can be trained in this process any more. No client has failed: a new process goes on.

    After want of memory oneDNN may create no primitive, of whatever size, though there is memory again.
    """


@dataclass(frozen=True, slots=True)
class _Member:
    """A client of a cohort.

    Args:
        request: what it is asked.
        task: the same for a trainer.
        answered: what it has answered before; it is trained again only for those beside it.
    """

    request: TrainRequest
    task: TrainTask
    answered: bytes | None = None


def execute(tasks: Sequence[TrainRequest], store: ClientStore, runtime: ClientRuntime) -> Iterator[Answer]:
    """Train every task's client; yield one answer per task, as each is ready.

    A task that was answered before is answered with the same bytes, without training. All tasks
    must be of one round; those of one kind of training are trained together. With ``[simulation] cohort``
    above 1 the tasks must be the same ones each time: those of one batch.

    Raises:
        WantOfMemory: of several clients of a simulation, who may be trained as one batch.
        ProcessSpent: after that.
    """
    together = runtime.cohort > 1
    ready: dict[str, list[_Member]] = {}
    for request in tasks:
        try:
            runtime.check(request)
            if request.round != tasks[0].round:
                raise DecodeError("cohort", expected=f"round {tasks[0].round}", got=f"{request.round}")
            data = answered(request, store, runtime)
            if data is not None and not together:
                yield Answer(request.client, data)
                continue
            member = _Member(request, _task(request, store, runtime), data)
            if data is None:
                spend(request, member.task, store, runtime)
            ready.setdefault(request.plan.training.kind, []).append(member)
        except Exception as error:
            yield _failure(request, error, runtime)
    for cohort in ready.values():
        if all(member.answered is not None for member in cohort):
            yield from (Answer(m.request.client, m.answered) for m in cohort if m.answered is not None)
        else:
            yield from _train(cohort, store, runtime)


def _train(cohort: Sequence[_Member], store: ClientStore, runtime: ClientRuntime) -> Iterator[Answer]:
    """One cohort of one kind of training."""
    first = cohort[0].request
    trainer = runtime.context.trainer(first.plan.training)
    together = runtime.cohort > 1 and len(cohort) > 1
    started = time.perf_counter()
    key = runtime.root.child("round", first.round)
    doing = f"train in round {first.round}"
    results = _results(trainer, [member.task for member in cohort], key, doing, runtime)
    for member, result in zip(cohort, results, strict=True):
        request = member.request
        if result.error is not None and runtime.short_of_memory and _NO_PRIMITIVE in str(result.error):
            raise ProcessSpent
        if together and result.error is not None and _wants_memory(result.error):
            runtime.short_of_memory = True
            raise WantOfMemory
        try:
            seconds = time.perf_counter() - started
            answer = Answer(
                request.client, member.answered or _update(member, result, seconds, store, runtime)
            )
        except Exception as error:
            answer = _failure(request, error, runtime)
        yield answer  # outside: what its receiver raises is not the client's
        started = time.perf_counter()


_NO_PRIMITIVE = "could not create a primitive"


def _wants_memory(error: HeadwaterError) -> bool:
    """Whether a training ended for want of memory; then what its frames still hold is let go."""
    if failure_of(error).code is not FailureCode.OUT_OF_MEMORY:
        return False
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__
    give_back_memory()
    return True


def _results(
    trainer: CohortTrainer, tasks: Sequence[TrainTask], key: Key, doing: str, runtime: ClientRuntime
) -> Iterator[TrainResult]:
    """One for each task. What ends one task ends that task only: the others are trained without it."""
    while tasks:
        done = 0
        try:
            for result in trainer.train(tasks, key=key):
                done += 1
                yield result
            return
        except Exception as error:
            failed = tasks[done]
            why = _contained(error, failed.client, doing, runtime)
        yield TrainResult(failed.client, None, len(failed.examples), error=why)
        tasks = tasks[done + 1 :]


def _task(request: TrainRequest, store: ClientStore, runtime: ClientRuntime) -> TrainTask:
    examples, plan = _examples(request, runtime), request.plan
    directions = None
    if plan.seeds is not None:
        directions = directions_of(plan.seeds, runtime.root, runtime.context.spec.numel)
    state, control = runtime.state(request, store), runtime.control(request)
    if runtime.own_part != "nothing":
        state = with_own(request, state, store, runtime.own_part)
        plan = trained_with_own(plan, state.spec, runtime.own_part)
    if control is None:
        return TrainTask(request.client, state, examples, plan, directions)
    return TrainTask(
        request.client,
        state,
        examples,
        plan,
        directions,
        correction(_own_control(request, store, state), control),
    )


def _examples(request: TrainRequest, runtime: ClientRuntime) -> Sequence[Example]:
    """The client's train split, or the first of it, as the plan has it."""
    train, rows = runtime.data.client(request.client).train, request.plan.rows
    if rows is None or request.plan.training.example_privacy() is None:
        return train[:rows]
    return [example for unit in by_row(train)[:rows] for example in unit]


def _own_control(request: TrainRequest, store: ClientStore, state: AdapterState) -> AdapterState | None:
    """The client's c_i, as the server counts it; None is all zero."""
    return store.load_control(request.client, state.spec).settled(request.accepted_round)


def _keep_control(
    request: TrainRequest, delta: AdapterState, steps: int, store: ClientStore, control: AdapterState
) -> None:
    """Remember c_i as it is, and as it is if the update counts, which the server decodes to ``delta``."""
    training, factor = request.plan.training, request.plan.learning_rate_factor
    rates = {t.name: (training.descent_rate(t.role) or 0.0) * factor for t in delta.spec}
    if not all(rates.values()):
        raise TrainingError(
            f"client {request.client}",
            expected="a training that follows the gradient at one rate, for control variates",
            got=f"'{training.kind}'",
        )
    mine = _own_control(request, store, control)
    after = after_training(mine, control, delta, rates, steps)
    store.save_control(request.client, ControlVariate(mine, request.round, after))


def _failure(request: TrainRequest | EvaluateRequest, error: Exception, runtime: ClientRuntime) -> Answer:
    doing = "train" if isinstance(request, TrainRequest) else "evaluate"
    why = _contained(error, request.client, f"{doing} in round {request.round}", runtime)
    failure = ClientFailure(request.client, request.round, str(why), request.run, failure_of(why))
    return Answer(request.client, encode_reply(failure))


def _contained(error: Exception, client: str, doing: str, runtime: ClientRuntime) -> HeadwaterError:
    """The failure that the client reports for ``error``; raises an error that it does not report."""
    if runtime.simulated:
        return contained(error, client, doing)
    if isinstance(error, DataError):
        return for_owner(error)
    if isinstance(error, HeadwaterError):
        return error
    raise error


def _update(
    member: _Member, result: TrainResult, seconds: float, store: ClientStore, runtime: ClientRuntime
) -> bytes:
    """Through the pipeline, to bytes; the store has the new residual before the update leaves."""
    request, learned, spec = member.request, result.delta, runtime.context.spec
    if result.error is not None or learned is None:
        raise result.error or DecodeError(f"client {request.client}", expected="a delta", got="none")
    if isinstance(learned, SeedCoefficients) != (request.plan.seeds is not None):
        expected = "a delta" if request.plan.seeds is None else "scalars"
        raise TrainingError(f"client {request.client}", expected=expected, got="the other")
    if runtime.own_part != "nothing" and isinstance(learned, AdapterState):
        learned = keep_own(request, member.task.state, learned, store, runtime.own_part)
    key = runtime.root.child("round", request.round, "client", request.client, "codec")
    feedback = settled(request, learned, store, spec)
    pipeline = pipeline_for(request.plan, spec, feedback, key=key, who=f"client {request.client}")
    update = pipeline.apply(OutgoingUpdate.of(learned, spec, float(result.noise)))
    assert update.payload is not None, "the pipeline's promise"
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
            delta=update.payload,
            statistics=statistics,
            examples=result.examples,
            steps=result.steps,
            metrics={
                **result.metrics,
                **runtime.metrics,
                **_noise(request, result, update.noise),
                "seconds": seconds,
            },
        )
    )
    if (control := runtime.control(request)) is not None:
        arrives = codec_for(request.plan.codec).decode(update.payload, spec)
        _keep_control(request, arrives, result.steps, store, control)
    if feedback is not None and update.held is not None:
        # the places of one round are not in the payload: what arrives is kept beside it
        payload = None if request.plan.codec.is_of_a_round() else update.payload
        store.save(request.client, sent(feedback, request.round, update.held, update.values, data, payload))
    return data


def _noise(request: TrainRequest, result: TrainResult, sent_noise: float) -> dict[str, float]:
    """The metric ``noise`` of a method that draws directions of its own: of the update as it is sent."""
    if request.plan.training.noise != "reported":
        return {}
    if not 0 <= result.noise < math.inf:
        error = TrainingError(
            f"client {request.client}",
            expected="a finite noise of at least 0",
            got=str(result.noise),
            hint="The run diverged: lower the learning rate.",
        )
        raise coded(error, FailureCode.DIVERGED)
    return {"noise": sent_noise}


def evaluate(
    tasks: Sequence[EvaluateRequest], store: ClientStore, runtime: ClientRuntime
) -> Iterator[Answer]:
    """Evaluate every task's state on its client's validation split; 0 examples where it has none.

    With ``[simulation] cohort`` above 1 the rows of all share batches; what then goes wrong with a batch is a
    failure of each.
    """
    lots = [tasks] if runtime.cohort > 1 else [[request] for request in tasks]
    for lot in lots:
        yield from _evaluate(lot, store, runtime)


def _evaluate(lot: Sequence[EvaluateRequest], store: ClientStore, runtime: ClientRuntime) -> Iterator[Answer]:
    """Those whose rows share batches."""
    ready: list[EvaluateRequest] = []
    asked: list[tuple[str, AdapterState, Sequence[Example]]] = []
    shared: dict[str, AdapterState] = {}  # one object for all who have it
    for request in lot:
        try:
            runtime.check(request)
            if examples := runtime.data.client(request.client).validation:
                require_unmeasured(request, runtime)
                state = runtime.state(request, store)  # of seeds, each client keeps what it is made of
                state = shared.setdefault(request.state_sha256, state)
                if runtime.own_part != "nothing":
                    state = with_own(request, state, store, runtime.own_part)
                asked.append((request.client, state, examples))
            ready.append(request)
        except Exception as error:
            yield _failure(request, error, runtime)
    found: dict[str, Measured | Exception] = {}
    try:
        if asked:
            each = runtime.context.evaluate_each([state for _, state, _ in asked], [e for *_, e in asked])
            found = dict(zip((client for client, *_ in asked), each, strict=True))
    except Exception as error:
        found = {client: error for client, *_ in asked}
    for request in ready:
        one = found.get(request.client, (0, {}))
        if isinstance(one, Exception):
            yield _failure(request, one, runtime)
        else:
            reply = Evaluation(request.client, request.round, *one, request.run)
            yield Answer(request.client, encode_reply(reply))


def introduce(client: str, runtime: ClientRuntime) -> bytes:
    """What :func:`introduction` says, encoded."""
    return encode_reply(introduction(client, runtime))


def introduction(client: str, runtime: ClientRuntime) -> ClientProfile | ClientFailure:
    """The client's profile; in a simulation, the failure by name that came instead."""
    try:
        return runtime.profile(client)
    except Exception as error:
        why = _contained(error, client, "read its data", runtime)
        if not runtime.simulated:
            raise  # a device's data quote rows: its worker says what leaves
        return ClientFailure(client, 0, str(why), runtime.run, failure_of(why))
