"""What a method really takes here: ``python -P -m headwater.client.device.measure`` takes two steps.

The process reads its task as JSON on standard input and writes what it found as JSON; so no measurement
sees what another one left in memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from headwater.client.device.trial import train_two_steps
from headwater.config.federation import Federation
from headwater.config.load import LoadedFederation
from headwater.errors import HeadwaterError
from headwater.protocol.failures import how_ended
from headwater.training.context import TrainingContext


@dataclass(frozen=True, slots=True)
class Measured:
    """What two steps took.

    Args:
        peak_bytes: resident memory of the process at its highest (VmHWM).
        step_s: seconds of a step.
        error: why there are no numbers; empty if there are.
    """

    peak_bytes: int = 0
    step_s: float = 0.0
    error: str = ""


def measure(loaded: LoadedFederation, method: str, batch_size: int, *, timeout_s: float = 600.0) -> Measured:
    """Two steps of ``method`` on synthetic batches of full rows, in a process of its own."""
    task = {
        "federation": loaded.settings.model_dump_json(),
        "folder": str(loaded.folder),
        "method": method,
        "batch_size": batch_size,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "headwater.client.device.measure"],
            input=json.dumps(task),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Measured(error=f"not done within {timeout_s:g} s")
    try:
        return Measured(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        ended = how_ended(done.returncode)
        return Measured(error=f"the process ended with {ended}: {done.stderr.strip()[-200:]}")


def main() -> int:
    """Do the task on standard input."""
    from headwater.client.device.costs import cache_bytes
    from headwater.client.device.memory import resident_base, return_freed_memory
    from headwater.process_memory import status_bytes

    return_freed_memory()
    task = json.loads(sys.stdin.read())
    settings = Federation.model_validate_json(task["federation"])
    try:
        context = TrainingContext.open(LoadedFederation(settings, Path(task["folder"])))
        resident_base(context)
        # two steps hardly begin to fill a cache: as if it were full. Written to, for what is not is not there
        cache = bytearray(b"\1") * cache_bytes(context, task["method"])
        began = time.perf_counter()
        steps = train_two_steps(context, task["method"], task["batch_size"])
        seconds = (time.perf_counter() - began) / steps
        print(json.dumps({"peak_bytes": status_bytes("VmHWM"), "step_s": seconds}))
        del cache
    except (HeadwaterError, MemoryError) as error:
        print(json.dumps({"error": str(error)[:300] or "out of memory"}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
