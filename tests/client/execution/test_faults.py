"""Whose fault an exception in a client's work is."""

from __future__ import annotations

import errno
import json
import pickle

import pytest

from headwater import state
from headwater.client.execution.faults import OF_THE_DISK, contained
from headwater.errors import HeadwaterError, InternalError, StorageError, TrainingError
from headwater.flower.faults import as_error, end_of_run


def caught(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        return error
    raise AssertionError


def raising(error):
    raise error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("All examples must have the same number of <eos> tokens."),
        IndexError("index out of range in self"),
        KeyError("label"),
        MemoryError(),
        RecursionError("deep"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        OSError(errno.ENOENT, "No such file or directory"),
        TypeError("from a library"),
        AttributeError("from a library"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_what_a_library_raises_is_the_clients_failure_with_type_and_place(error):
    found = contained(caught(raising, error), "ben", "train in round 3")
    assert isinstance(found, TrainingError)
    text = str(found)
    assert text.startswith("client ben: expected to train in round 3, got " + type(error).__name__)
    assert "test_faults.py, line " in text
    assert ", in raising)" in text
    assert "/" not in text.split("(")[-1]


def test_an_error_of_ours_stays_as_it_is():
    error = TrainingError("client ben", expected="a finite loss", got="nan")
    assert contained(error, "ben", "train") is error


@pytest.mark.parametrize("number", sorted(OF_THE_DISK))
def test_a_full_disk_is_nobodys_failure(number):
    with pytest.raises(StorageError, match="client ben: expected a disk with room"):
        contained(OSError(number, "no room"), "ben", "train")
    with pytest.raises(StorageError, match="writing x"):
        contained(StorageError("writing x"), "ben", "train")


def test_a_wrong_line_of_ours_ends_the_run_with_its_traceback():
    error = caught(state.TensorSpec)  # a call with too few arguments: raised here
    assert isinstance(contained(error, "ben", "train"), TrainingError)
    error = caught(state.AdapterState.zeros, None)  # raised in headwater/state.py
    with pytest.raises(InternalError, match=r"client ben: .*TypeError.*headwater/state.py, line") as found:
        contained(error, "ben", "train")
    assert "Traceback" in found.value.traceback


@pytest.mark.parametrize("kind", [InternalError, StorageError])
def test_what_ends_a_run_crosses_processes_and_flower(kind):
    error = kind("who", expected="a", got="b", hint="c")
    if kind is InternalError:
        error.traceback = "Traceback"
    for other in (pickle.loads(pickle.dumps(error)), end_of_run(as_error(error))):
        assert type(other) is kind
        assert str(other) == str(error)
        assert getattr(other, "traceback", "") == getattr(error, "traceback", "")


def test_flowers_own_errors_are_none_of_these():
    from flwr.app import Error

    assert end_of_run(Error(code=0, reason="x")) is None
    assert end_of_run(Error(code=1011, reason="x")) is None
    assert end_of_run(Error(code=1011, reason=json.dumps([1]))) is None


def test_every_error_of_the_tree_crosses_a_process_border():
    for kind in HeadwaterError.__subclasses__():
        error = kind("who", expected="a", got="b", hint="c")
        other = pickle.loads(pickle.dumps(error))
        assert (type(other), str(other)) == (kind, str(error))
