"""Room: what a training must be able to keep on the device's disk, looked at before it begins."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from headwater.client.agent.problems import ADVICE
from headwater.errors import StorageError
from headwater.files import file_name
from headwater.protocol.failures import FailureCode, coded
from headwater.protocol.messages import TrainRequest

SLACK_BYTES = 1 << 20
"""For what is small: counters, status, log, names of tensors."""
_FILES = 8
"""So many new ones a training and its agent make at most at one time."""
_VALUE_BYTES = {"dense-fp32.v1": 4, "dense-bf16.v1": 2, "dense-fp16.v1": 2}
"""Of a state that travels dense: how many bytes a value has."""


def require_room(request: TrainRequest, state: Path) -> None:
    """Refuse a training whose result could not be kept.

    Args:
        request: the task.
        state: the agent's folder: a run's residual and coefficients of seeds, and the replies.

    Raises:
        StorageError: too little is free; with DISK_FULL, the bytes needed and those free.
    """
    needed, free = needed_bytes(request, state), free_bytes(state)
    if free < needed:
        error = StorageError(
            f"state folder {state}",
            expected=f"room for {needed:,} bytes, which a training of this run must keep",
            got=f"{free:,} bytes free",
            hint=ADVICE[FailureCode.DISK_FULL],
        )
        raise coded(error, FailureCode.DISK_FULL, needed, free)


def needed_bytes(request: TrainRequest, state: Path) -> int:
    """At most so many bytes are written: every file is whole beside the old one before it takes its place."""
    folder = state / "runs" / request.run
    values = len(request.state.body) // _VALUE_BYTES.get(request.state.codec, 4)
    payload = max([4 * values, *_sizes(state / "outbox", ".reply")]) if request.plan.seeds is None else 0
    if request.plan.fisher is not None:
        payload += values
    codec, client = request.plan.codec, file_name(request.client)
    residual = 0
    if codec.error_feedback and request.plan.seeds is None:
        # what is held back, what was sent where a codec of others sent it, and the update
        residual = max([8 * values + payload, *_sizes(folder, f"{client}.feedback")])
    kept = sum(max(_sizes(folder, f"{client}.{kind}"), default=0) for kind in ("sums", "own"))
    return residual + payload + kept + SLACK_BYTES


def free_bytes(folder: Path) -> int:
    """What this process may still write on the disk of ``folder``, or of the nearest folder above it.

    A file system on which no more files can be made has none, whatever else is free.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    found = os.statvfs(folder)
    if found.f_files and found.f_favail < _FILES:  # some file systems do not count files: 0 of 0
        return 0
    return found.f_bavail * found.f_frsize


def _sizes(folder: Path, end: str) -> Iterator[int]:
    """Sizes of the files in ``folder`` whose names end so."""
    try:
        with os.scandir(folder) as entries:
            yield from [e.stat().st_size for e in entries if e.name.endswith(end)]
    except OSError:  # not there yet, or going
        return
