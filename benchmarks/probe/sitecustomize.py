"""What lives in a process: on SIGUSR1, as JSON to the file $HEADWATER_PROBE. Imported by Python itself from
PYTHONPATH; so ``bench-load --attribute`` looks into a daemon that knows nothing of it.
"""

import gc
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any


def _look(number: int, frame: Any) -> None:  # noqa: ANN401 - a signal handler's
    objects = gc.get_objects()
    kinds = Counter(type(one).__name__ for one in objects)
    nonces = [one.nonces for one in objects if type(one).__name__ == "_Caller"]
    found = {
        "gc_objects": len(objects),
        "gc_garbage": len(gc.garbage),
        "nonces": sum(map(len, nonces)),
        "nonces_bytes": sum(sys.getsizeof(n) + sum(map(sys.getsizeof, n)) + 24 * len(n) for n in nonces),
        "kinds": dict(kinds.most_common(12)),
    }
    target = Path(os.environ["HEADWATER_PROBE"])
    target.with_suffix(".new").write_text(json.dumps(found))
    target.with_suffix(".new").replace(target)


if "HEADWATER_PROBE" in os.environ:
    signal.signal(signal.SIGUSR1, _look)
