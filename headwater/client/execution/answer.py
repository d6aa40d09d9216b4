"""answer: one encoded request in, one encoded reply out, for every transport. No Flower."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from headwater.client.execution.execute import evaluate, execute, introduce
from headwater.client.execution.masked_update import to_be_masked
from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import ClientStore
from headwater.errors import DecodeError
from headwater.proto.wire import decode_request
from headwater.protocol.messages import EvaluateRequest, ProfileRequest, TrainRequest


def answer(envelope: bytes, state: bytes, client: str, store: ClientStore, runtime: ClientRuntime) -> bytes:
    """The encoded reply to one encoded request: a cohort of one.

    Args:
        envelope: the request.
        state: the state's body beside it.
        client: whose node it came to; a request that names its client may come to any.
        store: what the client keeps.
        runtime: model and data.

    Raises:
        DecodeError: the bytes are not a request.
        DataError: the client's data cannot be used, on a device.
        StorageError, InternalError: the end of a simulation: see :mod:`headwater.client.execution.faults`.
        ConfigError: an update that cannot be summed under masks.
    """
    request = decode_request(envelope, state)
    if isinstance(request, ProfileRequest):
        return introduce(client, runtime)
    if isinstance(request, TrainRequest):
        (result,) = execute([request], store, runtime)
        return to_be_masked(request, result.data, store, runtime)
    if not isinstance(request, EvaluateRequest):
        raise DecodeError(f"client {client}", expected="a task for a model", got="a step of a masked sum")
    (result,) = evaluate([request], store, runtime)
    return result.data


def answer_batch(
    requests: Sequence[tuple[bytes, bytes]], store: ClientStore, runtime: ClientRuntime
) -> list[bytes]:
    """The encoded replies to trainings, or evaluations, that are one batch, in their order.

    Args:
        requests: envelope and state's body of each, all of one kind, of one round and of different clients.
        store: what the clients keep.
        runtime: model and data.

    Raises:
        DecodeError, StorageError, InternalError: as :func:`answer`.
    """
    tasks = [decode_request(*request) for request in requests]
    train = [task for task in tasks if isinstance(task, TrainRequest)]
    measure = [task for task in tasks if isinstance(task, EvaluateRequest)]
    answers = chain(execute(train, store, runtime), evaluate(measure, store, runtime))
    found = {one.client: one.data for one in answers}
    return [found[client] for client in [t.client for t in train] + [t.client for t in measure]]
