"""What memory this device has, and what a process on it holds."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
from pathlib import Path

import torch

from headwater.process_memory import status_bytes
from headwater.training.context import TrainingContext

PROCESS_BYTES = 400 << 20
"""Resident memory of a process with all libraries and no model: of a simulated device, on every machine."""


_MMAP_THRESHOLD, _THRESHOLD_BYTES = -3, 1 << 20  # of malloc.h


def resident_base(context: TrainingContext) -> int:
    """What this process holds now that a first, tiny pass has loaded what is loaded late."""
    from headwater.training.memory_estimate import synthetic

    if context.model is not None:
        with torch.inference_mode():
            context.model.forward(synthetic(context.model, 1, 8))
    return status_bytes("VmRSS")


def nominal_base(context: TrainingContext) -> int:
    """The same for a device that is not there: libraries, and every parameter of the model."""
    weights = {id(p): p for p in context.model.network.parameters()} if context.model is not None else {}
    return PROCESS_BYTES + sum(p.numel() * p.element_size() for p in weights.values())


def available_memory() -> int:
    """What this process may use: the owner's cap on it, its control groups', or the machine's."""
    cap, _ = resource.getrlimit(resource.RLIMIT_DATA)
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    if cap != resource.RLIM_INFINITY:
        found.append(cap)
    return min(found + group_limits())


def group_limits(root: Path = Path("/")) -> list[int]:
    """Bytes that this process's control groups, and those around them, allow; version 2 and version 1.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    found = []
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # not seen from here, or "max"
                found.append(int((folder / name).read_text(encoding="ascii")))
            if folder == top:
                break
    return found


def return_freed_memory() -> None:
    """From now on malloc gives blocks of 1 MiB and more back when they are freed.

    glibc raises that limit to 32 MiB as a program goes, and activations then leave holes: a backprop step
    of MiniLM (8×512) peaked 492 MiB above the loaded model, and 250 MiB with the limit fixed, which is
    what it holds. Values do not change; a step may take somewhat longer. Nothing happens without glibc.
    """
    try:
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _THRESHOLD_BYTES)
    except (OSError, AttributeError):
        return


def give_back_memory() -> None:
    """Give back what malloc keeps of freed blocks, and what they free from now on: after want of memory."""
    gc.collect()
    return_freed_memory()
    with contextlib.suppress(OSError, AttributeError):  # without glibc nothing happens
        ctypes.CDLL(None).malloc_trim(0)
