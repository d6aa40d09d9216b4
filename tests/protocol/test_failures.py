"""Failures: which code an exception has, and that a code's sentence is made of its numbers alone."""

from __future__ import annotations

import errno
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import (
    ConfigError,
    DataError,
    DecodeError,
    HeadwaterError,
    ModelError,
    StorageError,
    TrainingError,
)
from headwater.protocol.failures import (
    MAX_NUMBER,
    UNSPECIFIED,
    Failure,
    FailureCode,
    coded,
    count_of,
    failure_of,
    read_failure,
    reported_code,
)

SECRET = "/home/ann/letters.csv row 7: 'dear ben'"


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError(SECRET), FailureCode.DATA_REFUSED),
        (ModelError(SECRET), FailureCode.MODEL_REFUSED),
        (DecodeError(SECRET), FailureCode.BAD_REQUEST),
        (ConfigError(SECRET), FailureCode.BAD_REQUEST),
        (StorageError(SECRET), FailureCode.STORAGE_FAILED),
        (TrainingError(SECRET), FailureCode.TRAINING_FAILED),
        (HeadwaterError(SECRET), FailureCode.INTERNAL),
        (KeyError(SECRET), FailureCode.INTERNAL),
        (PermissionError(errno.EACCES, "no", SECRET), FailureCode.STORAGE_FAILED),
        (OSError(errno.ENOSPC, "full", SECRET), FailureCode.DISK_FULL),
        (caused(StorageError(SECRET), OSError(errno.EDQUOT, "quota")), FailureCode.DISK_FULL),
        (MemoryError(), FailureCode.OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), FailureCode.OUT_OF_MEMORY),
        (RuntimeError("could not create a primitive"), FailureCode.OUT_OF_MEMORY),
        (RuntimeError("could not create a primitive descriptor for matmul"), FailureCode.INTERNAL),
        (caused(TrainingError("x"), RuntimeError("[enforce fail] out of memory")), FailureCode.OUT_OF_MEMORY),
        (caused(ModelError("x"), caused(ValueError(), MemoryError())), FailureCode.OUT_OF_MEMORY),
    ],
)
def test_every_exception_has_a_code(error, code):
    assert failure_of(error).code is code


def test_words_of_ours_decide_nothing():
    """A column that is named so makes no want of memory."""
    assert failure_of(DataError("column 'out of memory'")).code is FailureCode.DATA_REFUSED
    assert failure_of(TrainingError("cannot allocate a batch")).code is FailureCode.TRAINING_FAILED


def test_a_code_of_its_own_goes_before_the_kinds_and_crosses_processes():
    error = coded(DecodeError("a", got="b"), FailureCode.NEEDS_FULL_STATE, 7)
    assert failure_of(error) == Failure(FailureCode.NEEDS_FULL_STATE, (7,))
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), failure_of(again)) == (str(error), failure_of(error))
    assert failure_of(pickle.loads(pickle.dumps(DataError("x")))).code is FailureCode.DATA_REFUSED


def test_a_server_decides_by_what_was_reported_only():
    """Its own errors of the same kinds are no client's word."""
    assert reported_code(StorageError("x")) is FailureCode.UNSPECIFIED
    assert reported_code(coded(StorageError("x"), FailureCode.DISK_FULL)) is FailureCode.DISK_FULL


@given(st.sampled_from(FailureCode), st.lists(st.integers(-(2**70), 2**70), max_size=8).map(tuple))
def test_numbers_are_bounded_and_sentences_hold_nothing_else(code, numbers):
    failure = Failure(code, numbers)
    assert len(failure.numbers) == count_of(code)
    assert all(0 <= n <= MAX_NUMBER for n in failure.numbers)
    plain = Failure(code, (0,) * count_of(code)).sentence()
    strip = str.maketrans("", "", "0123456789,")
    said = failure.sentence()
    if code is FailureCode.WORKER_DIED:  # the system's own name of the signal
        said = re.sub(r"killed by signal \d+( \(SIG[A-Z0-9]+([+-]\d+)?\))?$", "exit code ", said)
    assert said.translate(strip) == plain.translate(strip)
    assert read_failure(int(code), failure.numbers) == failure
    assert failure.sentence().isprintable()


@given(st.integers(0, 2**64), st.lists(st.integers(0, 2**64), max_size=3).map(tuple))
def test_any_code_is_read(code, numbers):
    assert read_failure(code, numbers).code in FailureCode
    if code not in set(FailureCode):
        assert read_failure(code, numbers) == UNSPECIFIED


@pytest.mark.parametrize(
    ("numbers", "said"),
    [((9, 0), "killed by signal 9 (SIGKILL)"), ((0, 3), "exit code 3"), ((4000, 0), "killed by signal 4000")],
)
def test_a_worker_s_death_is_its_signal_or_its_exit_code_and_not_both(numbers, said):
    assert Failure(FailureCode.WORKER_DIED, numbers).sentence() == f"the worker process died: {said}"
