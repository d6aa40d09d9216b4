"""Every error Headwater raises on purpose, as one tree.

::

    HeadwaterError                 exit code  1
    ├── ConfigError                           2   the federation file or the command line
    ├── DataError                             3   a data file, a row, a label, a partition
    ├── ModelError                            4   the base model, its adapter, its weights' hash
    ├── SpecMismatch                          5   two states whose specs differ
    ├── DecodeError                           6   bytes from elsewhere that are not what they claim
    ├── UpdateRejected                        7   an update that decodes but must not be folded
    ├── TrainingError                         8   a local training that diverged or cannot start
    ├── EmptyRound                            9   no update was accepted
    ├── FederationStopped                    10   too few clients are left; the state is kept
    ├── StorageError                         11   a file that could not be written or read back
    ├── MissingDependency                    12   an extra that is not installed
    ├── ConnectionLost                       13   the server was not reached, or asks to come back later
    ├── Refused                              14   the server was reached and says no
    ├── OwnersLost                           15   the run finished, but owners were lost on the way
    └── InternalError                        16   a programming error of Headwater's own

A message answers four questions, in this order: who, expected, got, next step.
"""

from __future__ import annotations


class HeadwaterError(Exception):
    """Base of the tree.

    Args:
        who: whose problem it is: a file and key, a client and tensor, a command.
        expected: what would have been right.
        got: what was found instead.
        hint: the next step for the person who reads it.

    Attributes:
        failure: the code under which a client reports it, where it has one of its own
            (:mod:`headwater.protocol.failures`).
    """

    code = "HW01"
    exit_code = 1
    failure: object = None

    def __init__(self, who: str, *, expected: str = "", got: str = "", hint: str = "") -> None:
        self.who, self.expected, self.got, self.hint = who, expected, got, hint
        parts = [who]
        if expected:
            parts.append(f"expected {expected}")
        if got:
            parts.append(f"got {got}")
        text = ": ".join([parts[0], ", ".join(parts[1:])]) if len(parts) > 1 else who
        super().__init__(f"{text}. {hint}" if hint else text)

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the four answers and the code when an error crosses a process border."""
        return (_rebuild, (type(self), self.who, self.expected, self.got, self.hint, self.failure))


def _rebuild(
    kind: type[HeadwaterError], who: str, expected: str, got: str, hint: str, failure: object
) -> HeadwaterError:
    error = kind(who, expected=expected, got=got, hint=hint)
    if failure is not None:
        error.failure = failure
    return error


class ConfigError(HeadwaterError):
    """The federation file or the command line is wrong."""

    code, exit_code = "HW02", 2


class DataError(HeadwaterError):
    """A data file, row, label or partition is wrong."""

    code, exit_code = "HW03", 3


class ModelError(HeadwaterError):
    """The base model or its adapter is wrong."""

    code, exit_code = "HW04", 4


class SpecMismatch(HeadwaterError):
    """Two adapter states do not have the same tensors."""

    code, exit_code = "HW05", 5


class DecodeError(HeadwaterError):
    """Bytes from elsewhere are not what they claim to be."""

    code, exit_code = "HW06", 6


class UpdateRejected(HeadwaterError):
    """An update is well formed but must not be folded (non-finite, out of bounds, a stranger's)."""

    code, exit_code = "HW07", 7


class TrainingError(HeadwaterError):
    """A local training diverged or could not start."""

    code, exit_code = "HW08", 8


class EmptyRound(HeadwaterError):
    """A round ended without one accepted update."""

    code, exit_code = "HW09", 9


class FederationStopped(HeadwaterError):
    """The federation cannot go on; what it has is kept."""

    code, exit_code = "HW10", 10


class StorageError(HeadwaterError):
    """A file could not be written, or was not what was written."""

    code, exit_code = "HW11", 11


class MissingDependency(HeadwaterError):
    """A package that an optional feature needs is not installed."""

    code, exit_code = "HW12", 12


class ConnectionLost(HeadwaterError):
    """The server was not reached, restarted, or asks to come back: activate again, later."""

    code, exit_code = "HW13", 13


class Refused(HeadwaterError):
    """The server was reached and says no; asking again will not change it.

    Attributes:
        status: HTTP status of its answer; 0 where it did not answer by HTTP.
    """

    code, exit_code = "HW14", 14
    status = 0


class OwnersLost(HeadwaterError):
    """The run finished and its adapter is written, but some owners were no longer in it at the end."""

    code, exit_code = "HW15", 15


class InternalError(HeadwaterError):
    """A programming error of Headwater's own: nobody's data, model or settings.

    Attributes:
        traceback: where it happened, as Python prints it; empty where it is not known.
    """

    code, exit_code = "HW16", 16
    traceback = ""

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the traceback, too, when it crosses a process border."""
        return (*super().__reduce__(), {"traceback": self.traceback})
