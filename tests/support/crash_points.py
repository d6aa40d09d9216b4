"""A crash, a power cut or a full disk at every file operation of some work: :func:`crash_points`.

::

    for point in crash_points(lambda home: write_atomically(home / "f", b"new"), tmp_path):
        assert (point.home / "f").read_bytes() in (...)
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from tests.support.faults import CRASHES, Disk, How


@dataclass(frozen=True)
class Point:
    """One run of a function and how it ended.

    Args:
        home: its folder, as it was left.
        how: what went wrong.
        at: at which operation.
        operation: what that was; of the last point, which went well, empty.
        error: what a full disk made the function raise.
    """

    home: Path
    how: How
    at: int
    operation: str
    error: Exception | None

    @property
    def crashed(self) -> bool:
        """Whether anything went wrong."""
        return self.operation != ""


def crash_points(
    fn: Callable[[Path], object],
    folder: Path,
    *,
    prepare: Callable[[Path], object] = lambda home: None,
    hows: tuple[How, ...] = CRASHES,
    power: random.Random | None = None,
) -> Iterator[Point]:
    """Run ``fn`` again and again; let its 1st, 2nd, … operation go wrong, until it ends well.

    Args:
        fn: what may crash; is given a new folder each time.
        folder: where those are made.
        prepare: fills the folder first, without faults.
        hows: the ways to go wrong, each from the 1st operation to the last.
        power: chance for power cuts in place of mere deaths.

    Yields:
        A point after each run, the ones that ended well too; look at ``home`` with fresh eyes, as after a
        restart. The folder is deleted after it.
    """
    for how in hows:
        for at in count(1):
            home = folder / f"{how}-{at}"
            home.mkdir()
            prepare(home)
            error = None
            with Disk(home, at=at, how=how, power=power) as disk:
                try:
                    fn(home)
                except Exception as raised:
                    if not disk.filled:
                        raise
                    error = raised
            yield Point(home, how, at, disk.fault, error)
            shutil.rmtree(home)
            if not disk.fault:
                break
