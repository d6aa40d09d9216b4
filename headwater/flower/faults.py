"""The errors that end a simulation, through Flower's messages: :func:`as_error` and :func:`end_of_run`.

Flower keeps only the text of an exception in a client's app. These two must not be taken for a client's
failure.
"""

from __future__ import annotations

import json

from flwr.app import Error

from headwater.errors import HeadwaterError, InternalError, StorageError

_KINDS: dict[int, type[HeadwaterError]] = {
    1000 + kind.exit_code: kind for kind in (InternalError, StorageError)
}
"""By code; Flower's own codes are below 1000."""


def as_error(error: StorageError | InternalError) -> Error:
    """What a node of a simulation answers in place of a reply."""
    parts = [error.who, error.expected, error.got, error.hint, getattr(error, "traceback", "")]
    return Error(code=1000 + error.exit_code, reason=json.dumps(parts))


def end_of_run(error: Error) -> HeadwaterError | None:
    """The error that a node of a simulation meant to end the run with; None if it is another one."""
    kind = _KINDS.get(error.code)
    if kind is None:
        return None
    try:
        who, expected, got, hint, traceback = json.loads(error.reason or "")
    except ValueError:
        return None
    found = kind(who, expected=expected, got=got, hint=hint)
    if isinstance(found, InternalError):
        found.traceback = traceback
    return found
