"""What an exception in a client's work means: :func:`contained` decides whose fault it is.

===============================================================  ===========================================
what was raised                                                  what it means
===============================================================  ===========================================
one of ours, but for the three below                             this client's failure, as it says
``StorageError``; ``OSError`` of a full or broken disk           the run ends before the merge: the disk is
                                                                 the run's, not one client's
``AssertionError``, ``AttributeError``, ``NameError``,           a programming error of ours: the run ends
``NotImplementedError`` or ``TypeError`` out of a line of        with ``InternalError`` and the traceback
Headwater's own
anything else (``ValueError`` of a library, ``KeyError``,        this client's failure, with its type and
``IndexError``, ``MemoryError``, …)                              the line that raised it
===============================================================  ===========================================

That holds in a simulation, where the run's clients share one process and one disk. A device answers for
itself: there every exception is its own failure (:mod:`headwater.client.agent.worker_main`).
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import headwater
from headwater.errors import HeadwaterError, InternalError, StorageError, TrainingError

OF_THE_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})
"""What the kernel answers where a disk is full, over quota, broken or read-only, or a file may not grow."""
_OURS = (AssertionError, AttributeError, NameError, NotImplementedError, TypeError)
_HOME = Path(headwater.__file__).parent
_MOST_TEXT = 400


def contained(error: Exception, client: str, doing: str) -> HeadwaterError:
    """The failure of ``client`` that an exception in its work in a simulation comes to.

    Args:
        error: what was raised.
        client: whose work it was.
        doing: what it was doing: ``"train in round 3"``.

    Raises:
        StorageError: the disk of the run is full or broken.
        InternalError: a programming error of Headwater's.
    """
    if isinstance(error, StorageError | InternalError):
        raise error
    if isinstance(error, HeadwaterError):
        return error
    if isinstance(error, OSError) and error.errno in OF_THE_DISK:
        raise on_disk(error, f"client {client}", doing) from error
    if isinstance(error, _OURS) and _is_ours(error):
        raise internal(error, f"client {client}", doing) from error
    found = TrainingError(f"client {client}", expected=f"to {doing}", got=f"{_said(error)} ({place(error)})")
    found.__cause__ = error
    return found


@contextmanager
def told_apart(who: str, doing: str) -> Iterator[None]:
    """What is raised inside without being one of ours becomes one: the disk's fault, or a defect of ours.

    Args:
        who: whose work it is.
        doing: what it is: ``"run the federation"``.

    Raises:
        StorageError: the disk is full or broken.
        InternalError: an exception that nobody foresaw.
    """
    try:
        yield
    except (HeadwaterError, BrokenPipeError):
        raise
    except OSError as error:
        if error.errno in OF_THE_DISK:
            raise on_disk(error, who, doing) from error
        raise internal(error, who, doing) from error
    except Exception as error:
        raise internal(error, who, doing) from error


def internal(error: BaseException, who: str, doing: str) -> InternalError:
    """The end of a run by a programming error of ours, with its traceback."""
    found = InternalError(
        who,
        expected=f"Headwater to {doing}",
        got=f"{_said(error)} ({place(error)})",
        hint="This is a defect of Headwater: please report it, with the traceback.",
    )
    found.traceback = "".join(traceback.format_exception(error))
    return found


def place(error: BaseException) -> str:
    """The line that raised it, with no path of this machine: ``transformers/masks.py, line 3, in f``."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "no line known"
    last = frames[-1]
    path = Path(last.filename)
    parts = path.parts
    known = [i for i, part in enumerate(parts) if part in ("site-packages", "dist-packages")]
    if known:
        shown = "/".join(parts[known[-1] + 1 :])
    elif path.is_relative_to(_HOME):
        shown = path.relative_to(_HOME.parent).as_posix()
    else:
        shown = path.name
    return f"{shown}, line {last.lineno}, in {last.name}"


def on_disk(error: OSError, who: str, doing: str) -> StorageError:
    """The end of a run by a full or broken disk."""
    return StorageError(
        who,
        expected=f"a disk with room, to {doing}",
        got=_said(error),
        hint="Free space or mend the disk, then --resume.",
    )


def _is_ours(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(_HOME)


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    kind = type(error).__name__
    return f"{kind}: {text[:_MOST_TEXT]}" if text else kind
