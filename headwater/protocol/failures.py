"""Why a client could not do what it was asked, as a code of a closed list and numbers: :class:`Failure`.

A device sends nothing else: no text of an exception, no path, no row. :func:`failure_of` finds the code of
an exception, :meth:`Failure.sentence` says a code to people, and whoever decides something decides by code.
``docs/reference/wire-format.md`` has the list.
"""

from __future__ import annotations

import errno
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

from headwater.errors import (
    ConfigError,
    DataError,
    DecodeError,
    HeadwaterError,
    MissingDependency,
    ModelError,
    SpecMismatch,
    StorageError,
    TrainingError,
)

MAX_NUMBERS = 4
MAX_NUMBER = 2**53
"""Every number of a failure is from 0 to this: JSON and floating point carry it exactly."""


class FailureCode(IntEnum):
    """All codes. A number never changes its meaning; a reader takes an unknown one for UNSPECIFIED."""

    UNSPECIFIED = 0
    INTERNAL = 1
    UNKNOWN_RUN = 2
    NEEDS_FULL_STATE = 3
    NOT_FOR_THIS_CLIENT = 4
    BAD_REQUEST = 5
    ANOTHER_VERSION = 6
    SPEC_MISMATCH = 7
    DATA_REFUSED = 8
    MODEL_MISSING = 9
    WEIGHTS_CHANGED = 10
    MODEL_REFUSED = 11
    LIBRARY_MISSING = 12
    TRAINING_FAILED = 13
    DIVERGED = 14
    OUT_OF_MEMORY = 15
    WORKER_DIED = 16
    DISK_FULL = 17
    STORAGE_FAILED = 18
    REPLY_REFUSED = 19
    TRIES_LATER = 20
    PLUGIN_MISSING = 21
    SCRIPT_MISSING = 22
    PRIVACY_SPENT = 23
    MASKS_REFUSED = 24
    MASKS_TOO_FEW = 25
    POLICY_HOURS = 32
    POLICY_BYTES_PER_DAY = 33
    POLICY_WORK_PER_DAY = 34
    POLICY_DAY_UNKNOWN = 35
    POLICY_RANK = 36
    POLICY_TRAINING = 37
    POLICY_EXAMPLES = 38
    POLICY_STEPS = 39
    POLICY_STEPS_UNKNOWN = 40
    POLICY_EVALUATE = 41
    POLICY_MODELS = 42
    POLICY_MEMORY = 43
    POLICY_PLUGINS = 44
    POLICY_MASKS = 45


NOT_READY = frozenset(
    {
        FailureCode.UNKNOWN_RUN,
        FailureCode.ANOTHER_VERSION,
        FailureCode.DATA_REFUSED,
        FailureCode.MODEL_MISSING,
        FailureCode.WEIGHTS_CHANGED,
        FailureCode.MODEL_REFUSED,
        FailureCode.LIBRARY_MISSING,
        FailureCode.DISK_FULL,
        FailureCode.TRIES_LATER,
        FailureCode.PLUGIN_MISSING,
        FailureCode.SCRIPT_MISSING,
        FailureCode.POLICY_HOURS,
        FailureCode.POLICY_BYTES_PER_DAY,
        FailureCode.POLICY_WORK_PER_DAY,
        FailureCode.POLICY_DAY_UNKNOWN,
        FailureCode.POLICY_MODELS,
        FailureCode.POLICY_PLUGINS,
        FailureCode.POLICY_MASKS,
    }
)
"""A client that reports one of these is not asked for an update before it has answered a profile request:
its next update would fail likewise."""
OF_PACKAGES = frozenset({FailureCode.PLUGIN_MISSING, FailureCode.POLICY_PLUGINS})
"""Their number is that of a package among the ``[plugins]`` of the run's federation, from 1."""
_SENTENCES: dict[FailureCode, tuple[int, str]] = {
    FailureCode.UNSPECIFIED: (0, "it could not be done, for a reason that is not told"),
    FailureCode.INTERNAL: (0, "a fault in the client's software; the owner's log has the details"),
    FailureCode.UNKNOWN_RUN: (0, "the client does not know this run and must be told of it again"),
    FailureCode.NEEDS_FULL_STATE: (
        1,
        "the client lacks what version {0} of the adapter is made from and needs all of it",
    ),
    FailureCode.NOT_FOR_THIS_CLIENT: (0, "the task is for another client"),
    FailureCode.BAD_REQUEST: (0, "the client cannot read the request, or refuses what is in it"),
    FailureCode.ANOTHER_VERSION: (0, "the client's version of headwater does not know the run's settings"),
    FailureCode.SPEC_MISMATCH: (0, "the client makes another adapter of the model and the run's settings"),
    FailureCode.DATA_REFUSED: (0, "the owner's data does not fit this federation; the owner's log says why"),
    FailureCode.MODEL_MISSING: (1, "the base model is not on the device, which has {0} others"),
    FailureCode.WEIGHTS_CHANGED: (0, "the files of the base model have changed on the device"),
    FailureCode.MODEL_REFUSED: (0, "the device cannot use the base model; the owner's log says why"),
    FailureCode.LIBRARY_MISSING: (0, "a library that the run needs is not installed on the device"),
    FailureCode.TRAINING_FAILED: (0, "the training failed; the owner's log says why"),
    FailureCode.DIVERGED: (0, "the training diverged: lower the learning rate"),
    FailureCode.OUT_OF_MEMORY: (0, "the device ran out of memory"),
    FailureCode.WORKER_DIED: (2, "the worker process died: {ended}"),
    FailureCode.DISK_FULL: (2, "the device's disk is full: {0:,} bytes are needed and {1:,} are free"),
    FailureCode.STORAGE_FAILED: (0, "the device could not read or write its files; the owner's log says why"),
    FailureCode.REPLY_REFUSED: (2, "the server refused the client's reply of {1:,} bytes: HTTP status {0}"),
    FailureCode.TRIES_LATER: (2, "the client failed before ({name}) and tries again in {1:,} s"),
    FailureCode.PLUGIN_MISSING: (
        1,
        "package {0} of the run's [plugins] is not installed on the device, or in another version",
    ),
    FailureCode.SCRIPT_MISSING: (0, "a script of the owner's must train, and none runs on the device"),
    FailureCode.PRIVACY_SPENT: (0, "the client's privacy budget does not hold one more round"),
    FailureCode.MASKS_REFUSED: (0, "the client takes no part in this masked sum; the owner's log says why"),
    FailureCode.MASKS_TOO_FEW: (
        2,
        "the run promised masked sums of at least {0} clients (cohort.min_clients), and this one is of {1}",
    ),
    FailureCode.POLICY_HOURS: (3, "policy hours {clock[0]}-{clock[1]}: it is {clock[2]} on the device"),
    FailureCode.POLICY_BYTES_PER_DAY: (
        3,
        "policy max_mb_per_day: {0:,} bytes are allowed, {1:,} are used today and this is {2:,} more",
    ),
    FailureCode.POLICY_WORK_PER_DAY: (2, "policy max_work_s_per_day {0}: {1} s are used today"),
    FailureCode.POLICY_DAY_UNKNOWN: (0, "policy: what today has cost is not known, so it counts as used up"),
    FailureCode.POLICY_RANK: (2, "policy max_rank {0}: the task wants {1}"),
    FailureCode.POLICY_TRAINING: (0, "policy training: the owner does not allow this kind of training"),
    FailureCode.POLICY_EXAMPLES: (2, "policy max_examples {0}: the task takes all {1} of this device"),
    FailureCode.POLICY_STEPS: (2, "policy max_steps {0}: the task wants {1}"),
    FailureCode.POLICY_STEPS_UNKNOWN: (1, "policy max_steps {0}: the task does not say how many it takes"),
    FailureCode.POLICY_EVALUATE: (0, "policy allow_evaluate false: the owner allows no evaluation"),
    FailureCode.POLICY_MODELS: (0, "policy models.allow: the owner does not allow this base model"),
    FailureCode.POLICY_MEMORY: (1, "policy memory_mb {0}: the task wants more"),
    FailureCode.POLICY_MASKS: (2, "policy min_masked_clients {0}: the run masks sums of at least {1}"),
    FailureCode.POLICY_PLUGINS: (
        1,
        "policy plugins.allow: the owner does not allow package {0} of the run's [plugins]",
    ),
}
"""For each code how many numbers it has, and what it says to people with them."""
_KINDS: tuple[tuple[type[BaseException], FailureCode], ...] = (
    (DataError, FailureCode.DATA_REFUSED),
    (ModelError, FailureCode.MODEL_REFUSED),
    (SpecMismatch, FailureCode.SPEC_MISMATCH),
    (DecodeError, FailureCode.BAD_REQUEST),
    (ConfigError, FailureCode.BAD_REQUEST),
    (MissingDependency, FailureCode.LIBRARY_MISSING),
    (StorageError, FailureCode.STORAGE_FAILED),
    (TrainingError, FailureCode.TRAINING_FAILED),
    (OSError, FailureCode.STORAGE_FAILED),
)
_WANT_OF_MEMORY = re.compile(
    "allocate|bad_alloc|out of memory|not enough memory|could not create a primitive(?! desc)"
)
"""In the words of torch, of oneDNN and of the C library, which raise a bare RuntimeError."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A code and its numbers.

    Args:
        code: of the closed list.
        numbers: as many as the code has, from 0 to :data:`MAX_NUMBER`; others are brought within it.
    """

    code: FailureCode
    numbers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        bounded = tuple(min(max(int(n), 0), MAX_NUMBER) for n in self.numbers)
        wanted = count_of(self.code)
        object.__setattr__(self, "numbers", (bounded + (0,) * wanted)[:wanted])

    def sentence(self) -> str:
        """What it says to people: made of the code and its numbers alone."""
        clock = [f"{minute // 60:02}:{minute % 60:02}" for minute in self.numbers]
        name = _known(self.numbers[0]).name.lower() if self.numbers else ""
        ended = ""
        if self.code is FailureCode.WORKER_DIED:
            ended = how_ended(-self.numbers[0] if self.numbers[0] else self.numbers[1])
        return _SENTENCES[self.code][1].format(*self.numbers, clock=clock, name=name, ended=ended)


def how_ended(code: int) -> str:
    """How a process ended, from its exit code: ``killed by signal 9 (SIGKILL)`` for -9, ``exit code 3``."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = f" ({signal.Signals(-code).name})"
    except ValueError:  # one that this system does not have
        name = ""
    return f"killed by signal {-code}{name}"


def count_of(code: FailureCode) -> int:
    """How many numbers a code has."""
    return _SENTENCES[code][0]


UNSPECIFIED = Failure(FailureCode.UNSPECIFIED)
"""What a client that knows no codes, or newer ones, has said."""


def read_failure(code: int, numbers: tuple[int, ...]) -> Failure:
    """The failure that a message names. An unknown code, or too few numbers for it, is UNSPECIFIED."""
    known = _known(code)
    return Failure(known, numbers) if len(numbers) >= count_of(known) else UNSPECIFIED


def _known(code: int) -> FailureCode:
    return FailureCode(code) if code in FailureCode.__members__.values() else FailureCode.UNSPECIFIED


Raised = TypeVar("Raised", bound=HeadwaterError)


def coded(error: Raised, code: FailureCode, *numbers: float) -> Raised:
    """``error``, which a client that fails of it reports under ``code``."""
    error.failure = Failure(code, tuple(int(n) for n in numbers))
    return error


def reported_code(error: BaseException) -> FailureCode:
    """The code that a client's failure had for which a server raised ``error``; UNSPECIFIED without one."""
    failure = getattr(error, "failure", None)
    return failure.code if isinstance(failure, Failure) else FailureCode.UNSPECIFIED


def failure_of(error: BaseException) -> Failure:
    """The code under which a client reports ``error``: its own, else that of its kind or of its cause."""
    if isinstance(failure := getattr(error, "failure", None), Failure):
        return failure
    causes = list(_causes(error))
    if any(_is_full_disk(cause) for cause in causes):
        return Failure(FailureCode.DISK_FULL)
    if any(_wants_memory(cause) for cause in causes):
        return Failure(FailureCode.OUT_OF_MEMORY)
    for kind, code in _KINDS:
        if isinstance(error, kind):
            return Failure(code)
    return Failure(FailureCode.INTERNAL)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what it came of, at most eight deep."""
    found: BaseException | None = error
    for _ in range(8):
        if found is None:
            return
        yield found
        found = found.__cause__ or found.__context__


def _is_full_disk(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _wants_memory(error: BaseException) -> bool:
    """Whether a library ran out of memory. Its text decides for a bare RuntimeError, which has no more."""
    if isinstance(error, HeadwaterError):
        return False
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and _WANT_OF_MEMORY.search(str(error).lower()) is not None
