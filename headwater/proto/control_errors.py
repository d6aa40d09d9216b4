"""Errors across the control port: :func:`refuse` on the server, :func:`rebuild` on the client.

A :class:`HeadwaterError` travels as a gRPC status whose message is the error's text and whose trailing
metadata hold its code and the four answers, so that the client raises the same class. Any other exception
is INTERNAL and says nothing: its text may hold what the caller is not to know.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Never

import grpc

from headwater.errors import ConfigError, DecodeError, HeadwaterError

CODE = "headwater-code"
ANSWERS = ("who", "expected", "got", "hint")
MAX_ANSWER = 1000
"""Bytes of one answer: gRPC's peers refuse more than 8 KiB of metadata."""

_STATUS: dict[type[HeadwaterError], grpc.StatusCode] = {
    ConfigError: grpc.StatusCode.INVALID_ARGUMENT,
    DecodeError: grpc.StatusCode.INVALID_ARGUMENT,
}


def refuse(context: grpc.ServicerContext, error: HeadwaterError) -> Never:
    """End the call with ``error``."""
    code = next((s for kind, s in _STATUS.items() if isinstance(error, kind)), None)
    answers = ((f"headwater-{a}-bin", _cut(getattr(error, a))) for a in ANSWERS)
    context.set_trailing_metadata(((CODE, error.code), *answers))
    context.abort(code or grpc.StatusCode.FAILED_PRECONDITION, _cut(str(error)).decode())


def rebuild(error: grpc.RpcError) -> HeadwaterError | None:
    """The error that the server refused the call with; None if it did not say."""
    if not isinstance(error, grpc.Call):
        return None
    found = dict(error.trailing_metadata() or ())
    if CODE not in found:
        return None
    who, *answers = (_text(found.get(f"headwater-{a}-bin", b"")) for a in ANSWERS)
    kinds = {kind.code: kind for kind in _tree(HeadwaterError)}
    kind = kinds.get(_text(found[CODE]), HeadwaterError)  # a newer daemon may know more errors
    return kind(who, **dict(zip(ANSWERS[1:], answers, strict=True)))


def _tree(kind: type[HeadwaterError]) -> Iterator[type[HeadwaterError]]:
    """Children first, so that a parent wins where a child has no code of its own."""
    for child in kind.__subclasses__():
        yield from _tree(child)
    yield kind


def _cut(text: str) -> bytes:
    data = text.encode("utf-8", "replace")
    return (
        data
        if len(data) <= MAX_ANSWER
        else data[: MAX_ANSWER - 3].decode("utf-8", "ignore").encode() + "…".encode()
    )


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
