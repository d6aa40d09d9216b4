"""The command line as a user meets it, in this process: :func:`headwater`."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from unittest import mock

from headwater.cli.main import main


@dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one message of a command that failed; there must be exactly one, after any progress."""
        lines = self.err.splitlines()
        found = [line for line in lines if line.startswith("headwater: error HW")]
        assert found == lines[-1:], self.err
        assert "Traceback" not in self.err
        assert self.out == ""
        return found[0]


def headwater(*arguments: object, stdin: bytes = b"") -> Done:
    """Run ``headwater ARGUMENTS``."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin))),
    ):
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
    return Done(code, out.getvalue(), err.getvalue())
