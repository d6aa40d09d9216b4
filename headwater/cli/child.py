"""A command that ends with the process that started it: ``python -P -m headwater.cli.child PARENT VERB …``.

What :class:`headwater.simulation.network.LocalProcess` starts. A daemon or an agent must not stay when its
parent is killed: nobody would end it, and it holds the folder that ``--resume`` needs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

POLL_S = 0.5
GRACE_S = 20.0
"""So long the command may take to end as after SIGTERM; then the process is gone."""


def main(arguments: list[str]) -> int:
    """Run the command line of ``arguments[1:]``; end when the process ``arguments[0]`` is gone."""
    threading.Thread(target=_end_with, args=(int(arguments[0]), os.getppid()), daemon=True).start()
    from headwater.cli.main import main as command

    return command(arguments[1:])


def _end_with(parent: int, above: int) -> None:
    """Wait until the parent is another one than at the start."""
    while os.getppid() == above and above > 1:  # a command in front (ip netns exec) may stand between
        time.sleep(POLL_S)
    print(f"process {parent}, which started this one, is gone: ending", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
