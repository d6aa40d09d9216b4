"""Memory of this process: :func:`status_bytes`, as Linux tells it, and :func:`importing`."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MANY = 500
"""Modules, at least; transformers brings 2,000."""


@contextmanager
def importing(*, for_good: bool = False) -> Iterator[None]:
    """Import without looking for garbage: hundreds of thousands of objects are made, and all of them stay.

    The looks are a sixth of the CPU time of importing torch and what is around it.

    Args:
        for_good: leave what there is now out of later looks too. Only for a process of our own: what is
            garbage by then, or becomes so in a cycle, is never freed. Where it was given once, a block that
            imports hundreds of modules does the same: no second one will.
    """
    looks, modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if for_good or (gc.get_freeze_count() and len(sys.modules) > modules + _MANY):
            gc.freeze()  # before the first look, which would go through all of it
        if looks:
            gc.enable()


def status_bytes(key: str) -> int:
    """A line of this process's status, such as ``VmRSS`` or ``VmHWM``, in bytes; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:")), 0)
