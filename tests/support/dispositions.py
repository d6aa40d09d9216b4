"""How a shell starts what it runs: :func:`started_with_sigint`."""

from __future__ import annotations

import sys

_START = (
    "import os, signal, sys; "
    "signal.signal(signal.SIGINT, getattr(signal, sys.argv[1])); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)


def started_with_sigint(command: list[str], *, ignored: bool) -> list[str]:
    """``command``, started with SIGINT ignored, as by a shell without job control, or not, as by any other.

    A process does it, not ``Popen(preexec_fn=)``: that forks, and in the fork of a process in which gRPC 1.85
    runs its threads start again, find their files closed and now and then end the child before
    it is the command.
    """
    return [sys.executable, "-S", "-c", _START, "SIG_IGN" if ignored else "SIG_DFL", *command]
