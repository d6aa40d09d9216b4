"""Problems: what keeps this device from its work until its owner does something, on disk.

``headwater client status`` shows them, whether the agent runs or not. One goes when a task of its kind is
done, or when the agent finds by itself that it is mended; a restart of either side changes nothing.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from headwater.errors import StorageError
from headwater.files import write_atomically
from headwater.protocol.failures import FailureCode

MOST_PROBLEMS, MOST_TEXT = 16, 6000
OF_FILES = frozenset(
    {
        FailureCode.DATA_REFUSED,
        FailureCode.MODEL_MISSING,
        FailureCode.WEIGHTS_CHANGED,
        FailureCode.MODEL_REFUSED,
        FailureCode.SPEC_MISMATCH,
        FailureCode.LIBRARY_MISSING,
        FailureCode.ANOTHER_VERSION,
        FailureCode.PLUGIN_MISSING,
    }
)
"""What a profile would meet again: one that is answered shows that it is mended."""
OF_POLICY = frozenset(code for code in FailureCode if code.name.startswith("POLICY_"))
PASSING = frozenset(
    {
        FailureCode.POLICY_HOURS,
        FailureCode.POLICY_BYTES_PER_DAY,
        FailureCode.POLICY_WORK_PER_DAY,
        FailureCode.POLICY_DAY_UNKNOWN,
        FailureCode.UNKNOWN_RUN,
        FailureCode.NEEDS_FULL_STATE,
        FailureCode.NOT_FOR_THIS_CLIENT,
        FailureCode.BAD_REQUEST,
        FailureCode.TRIES_LATER,
        FailureCode.MASKS_REFUSED,
        FailureCode.MASKS_TOO_FEW,
    }
)
"""What ends without the owner, or is the server's business."""
ADVICE = {
    FailureCode.DATA_REFUSED: "Mend the data; the agent looks again by itself when the files change.",
    FailureCode.MODEL_MISSING: "Copy the organiser's base model into one of models.folders.",
    FailureCode.WEIGHTS_CHANGED: "Put the organiser's files of the base model back.",
    FailureCode.MODEL_REFUSED: "Ask the organiser for a whole copy of the base model, or for another one.",
    FailureCode.SPEC_MISMATCH: "Ask the organiser which version of headwater and its libraries to install.",
    FailureCode.LIBRARY_MISSING: "Install it, then end the agent and start it again.",
    FailureCode.ANOTHER_VERSION: "Install the organiser's version of headwater.",
    FailureCode.PLUGIN_MISSING: "Install it if you trust it, then end the agent and start it again.",
    FailureCode.DISK_FULL: "Free space on the disk of the state folder, or remove files where no more can be "
    "made (df -i); the agent notices by itself.",
    FailureCode.STORAGE_FAILED: "Mend the rights or the disk of the state folder.",
    FailureCode.OUT_OF_MEMORY: "Give the agent more memory, or ask the organiser for a smaller batch.",
    FailureCode.WORKER_DIED: "If it goes on: give the agent more memory, or tell the organiser.",
    FailureCode.TRAINING_FAILED: "If it goes on: tell the organiser what stands here.",
    FailureCode.DIVERGED: "If it goes on: tell the organiser to lower the learning rate.",
    FailureCode.INTERNAL: "If it goes on: report what stands here as a fault of headwater.",
    FailureCode.REPLY_REFUSED: "Tell the organiser what stands here.",
    FailureCode.POLICY_PLUGINS: "If you trust it: add its name to plugins.allow and start the agent again.",
    FailureCode.POLICY_MODELS: "Add the model to models.allow and start the agent again, or leave it so.",
}
NEVER_JOINED = frozenset(
    {FailureCode.ANOTHER_VERSION, FailureCode.PLUGIN_MISSING, FailureCode.POLICY_PLUGINS}
)
"""Of a run whose settings this device does not take: it is not among those it knows."""
OF_RULE = (
    "Change the rule in [policy] and start the agent again, or leave it so: the run goes on without you."
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem.

    Args:
        run: id of the run; empty for a message that names none.
        kind: of the task: ``profile``, ``train`` or ``evaluate``.
        code: of the failure.
        text: all of it, for the owner; several lines where several rows are wrong.
        since, last: Unix seconds of the first and the latest time in a row.
        count: how often in a row.
        numbers: of the failure.
        inputs: what the owner's files were like the last time.
        policy: what the owner's rules were.
        again: Unix seconds at which such a task is tried again; 0 for at the next question.
    """

    run: str
    kind: str
    code: FailureCode
    text: str
    since: float
    last: float
    count: int = 1
    numbers: tuple[int, ...] = ()
    inputs: str = ""
    policy: str = ""
    again: float = 0.0

    @property
    def advice(self) -> str:
        """What to do."""
        return ADVICE.get(self.code, OF_RULE if self.code in OF_POLICY else "")

    @property
    def found(self) -> str:
        """The text without the advice in which it may end: an error in the log has its next step."""
        return self.text.removesuffix(self.advice).rstrip() if self.advice else self.text


class Problems:
    """At most one for each run and kind of task, the latest :data:`MOST_PROBLEMS`. Thread-safe.

    Args:
        path: the file. A damaged one counts as empty: what is still wrong is met again.
        say: takes a line for the owner's log.
    """

    def __init__(self, path: Path, say: Callable[[str], None] = lambda line: None) -> None:
        self._path, self._say, self._lock = path, say, threading.Lock()
        self._found = {(p.run, p.kind): p for p in read_problems(path)}

    def __iter__(self) -> Iterator[Problem]:
        """A copy of what there is, the oldest first."""
        with self._lock:
            return iter(sorted(self._found.values(), key=lambda p: p.since))

    def met(self, problem: Problem) -> Problem:
        """Keep a problem; one that is the same as before keeps the time of the first."""
        problem = replace(problem, text=problem.text[:MOST_TEXT])
        key = problem.run, problem.kind
        with self._lock:
            before = self._found.get(key)
            if before is not None and before.code is problem.code:
                problem = replace(problem, since=before.since, count=before.count + 1)
            self._found[key] = problem
            for old in sorted(self._found.values(), key=lambda p: p.last)[:-MOST_PROBLEMS]:
                del self._found[old.run, old.kind]
            self._write()
        return problem

    def done(self, run: str, kind: str) -> None:
        """Note that such a task succeeded: its problem is over."""
        self.remove(p for p in self if p.run == run and _shown_mended(p, kind))

    def keep_runs(self, runs: Iterable[str]) -> None:
        """Forget those of runs that this device has forgotten, but for runs that it could never join."""
        known = set(runs)
        gone = [p for p in self if p.run not in known and p.code not in NEVER_JOINED]
        with self._lock:
            for problem in gone:
                self._found.pop((problem.run, problem.kind), None)
            if gone:
                self._write()

    def remove(self, mended: Iterable[Problem]) -> None:
        """Drop these problems."""
        mended = list(mended)
        with self._lock:
            for problem in mended:
                self._found.pop((problem.run, problem.kind), None)
                self._say(f"run {problem.run}: {problem.kind}: mended: {first_line(problem.text)}")
            if mended:
                self._write()

    def _write(self) -> None:
        content = json.dumps([asdict(p) for p in self._found.values()]).encode()
        try:
            write_atomically(self._path, content, durable=False)
        except StorageError as error:  # the log has it all the same
            self._say(f"what keeps this device from its work could not be written down: {error}")


def read_problems(path: Path) -> list[Problem]:
    """What :class:`Problems` wrote, the oldest first; nothing where there is no such file."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        found = [
            Problem(**{**row, "code": FailureCode(row["code"]), "numbers": tuple(row["numbers"])})
            for row in rows
        ]
        return sorted(found, key=lambda p: p.since)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def first_line(text: str) -> str:
    """The first line; one that is shortened ends in a mark."""
    line = next(iter(text.splitlines()), "")
    return line if len(line) <= 200 else f"{line[:199]}…"


def _shown_mended(problem: Problem, kind: str) -> bool:
    if problem.kind == kind or (kind == "train" and problem.kind == "profile"):
        return True
    return kind == "profile" and problem.code in OF_FILES
