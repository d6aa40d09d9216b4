"""Memory of this process: :func:`status_bytes`, as Linux tells it, and :func:`importing`."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def importing(*, for_good: bool = False) -> Iterator[None]:
    """Import without looking for garbage: hundreds of thousands of objects are made, and all of them stay.

    The looks are a sixth of the CPU time of importing torch and what is around it.

    Args:
        for_good: leave what there is now out of later looks too. Only for a process of our own: what is
            garbage by then, or becomes so in a cycle, is never freed.
    """
    looks = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if looks:
            gc.enable()
        if for_good:
            gc.freeze()


def status_bytes(key: str) -> int:
    """A line of this process's status, such as ``VmRSS`` or ``VmHWM``, in bytes; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:")), 0)
