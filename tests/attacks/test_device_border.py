"""Nothing leaves a device but codes and numbers: whatever is raised wherever in the agent's work.

The secrets are in the exceptions: paths, rows, labels. What leaves is looked at as bytes.
"""

from __future__ import annotations

import errno

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.client.agent.task_handler import AgentStopping, TaskHandler
from headwater.data.files.problems import BadRows
from headwater.errors import HeadwaterError, StorageError
from headwater.proto.wire import decode_reply, decode_signed, encode_reply
from headwater.protocol.failures import Failure, FailureCode, coded, failure_of
from headwater.protocol.messages import ClientFailure
from tests.client.agent.devices import (
    RUN,
    agent_file,
    evaluation_of,
    parts,
    profile_request,
    sign,
    vector_federation,
    vector_train,
)
from tests.client.agent.fakes import FakeWorker

FEDERATION = vector_federation()
TRAIN = vector_train(FEDERATION)
REQUESTS = {"profile": profile_request(FEDERATION), "train": TRAIN, "evaluate": evaluation_of(TRAIN)}
SECRET = "XsecretX"
PLACES = (
    "policy.check",
    "policy.seconds_left",
    "runs.join",
    "runs.get",
    "runs.use",
    "runs.learn",
    "outbox.get",
    "outbox.put",
    "usage.today",
    "_worker.answer",
)


def kinds(base: type[HeadwaterError]) -> list[type[HeadwaterError]]:
    """Those of the tree that take who, expected, got and hint."""
    below = [found for child in base.__subclasses__() for found in kinds(child)]
    return [kind for kind in (base, *below) if kind.__init__ is HeadwaterError.__init__]


texts = st.text(st.characters(codec="utf-8", exclude_characters="X"), max_size=30).map(
    lambda text: f"/home/{SECRET}/{text}{SECRET}"
)
ours = st.builds(
    lambda kind, who, expected, got, hint: kind(who, expected=expected, got=got, hint=hint),
    st.sampled_from(kinds(HeadwaterError)), texts, texts, texts, texts,
)  # fmt: skip
ours |= st.lists(ours, min_size=1, max_size=3).map(lambda rows: BadRows(rows, 2 * len(rows)))
foreign = st.builds(
    lambda kind, text: kind(text),
    st.sampled_from(
        [ValueError, KeyError, RuntimeError, MemoryError, RecursionError, UnicodeError, Exception]
    ),
    texts,
)
storage = st.builds(
    lambda number, path: OSError(number, SECRET, path),
    st.sampled_from([errno.ENOSPC, errno.EACCES, errno.EIO, errno.EDQUOT]),
    texts,
)
marked = st.builds(
    lambda error, code, numbers: coded(error, code, *numbers),
    ours,
    st.sampled_from(FailureCode),
    st.lists(st.integers(-(2**80), 2**80), max_size=5),
)


def raiser(error):
    def fail(*args, **options):
        raise error

    return fail


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("device")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    error=ours | foreign | storage | marked,
    cause=st.none() | foreign | storage,
    place=st.sampled_from(PLACES),
    kind=st.sampled_from(sorted(REQUESTS)),
)
def test_no_text_of_an_exception_leaves(home, error, cause, place, kind):
    error.__cause__ = cause
    log: list[str] = []
    handler = TaskHandler(agent_file(home), FakeWorker(), sign, log.append)
    handler.answer(parts(REQUESTS["profile"]))
    log.clear()
    where, name = place.split(".")
    setattr(getattr(handler, where), name, raiser(error))
    signed = handler.answer(parts(REQUESTS[kind]))
    assert SECRET.encode() not in signed
    data, _ = decode_signed(signed, max_bytes=10**6)
    reply = decode_reply(data, max_bytes=10**6)
    if isinstance(reply, ClientFailure):
        assert reply == ClientFailure.coded("ann", reply.round, reply.failure, RUN)
        if isinstance(error, HeadwaterError):
            assert any(SECRET in line for line in log), "the owner sees all of it"


@given(texts, st.sampled_from(FailureCode))
def test_no_text_of_the_workers_failure_leaves(tmp_path_factory, text, code):
    """What trained beside the data names files and rows: in a simulation that is shown, here it stays."""
    failed = ClientFailure("ann", 1, text, RUN, Failure(code, (1, 2, 3)))
    log = []
    worker = FakeWorker()
    handler = TaskHandler(agent_file(tmp_path_factory.mktemp("d")), worker, sign, log.append)
    handler.answer(parts(REQUESTS["profile"]))
    worker.answer = lambda *args, **options: encode_reply(failed)
    signed = handler.answer(parts(TRAIN))
    assert SECRET.encode() not in signed
    reply = decode_reply(decode_signed(signed, max_bytes=10**6)[0], max_bytes=10**6)
    assert reply == ClientFailure.coded("ann", 1, failed.failure, RUN)
    assert any(SECRET in line for line in log)


def test_a_server_that_refuses_a_reply_hears_its_own_words_no_more(tmp_path):
    handler = TaskHandler(agent_file(tmp_path), FakeWorker(), sign, lambda line: None)
    handler.answer(parts(REQUESTS["profile"]))
    failure = handler.instead_of(handler.answer(parts(TRAIN)), 413, f"413 {SECRET}")
    assert SECRET.encode() not in failure


def test_the_owners_end_is_no_failure(tmp_path):
    handler = TaskHandler(agent_file(tmp_path), FakeWorker(), sign, lambda line: None)
    handler.policy.check = raiser(AgentStopping())
    with pytest.raises(AgentStopping):
        handler.answer(parts(REQUESTS["profile"]))


def test_a_full_disk_is_told_by_code(tmp_path):
    error = StorageError("writing /home/ann/x", got="No space left on device")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert failure_of(error).code is FailureCode.DISK_FULL
