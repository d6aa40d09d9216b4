"""Tasks that are at work when a buffered version is made, in a file: a resumed run goes on with them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from headwater.errors import StorageError
from headwater.files import write_atomically


@dataclass(frozen=True, slots=True)
class TaskAtWork:
    """One request that is out.

    Args:
        envelope: the request.
        state: the state's body beside it.
        asked: when it was sent, in simulated microseconds.
        attempt: how many times its client was asked in this round, with it.
    """

    envelope: bytes
    state: bytes
    asked: int
    attempt: int


class AtWorkFiles:
    """``at-work-N.json`` in a folder: the tasks that were at work when round N closed.

    Args:
        folder: of the run's state.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, round: int, tasks: Iterable[TaskAtWork]) -> None:
        """Write those of a round, before its checkpoint is; drop what no checkpoint can need any more."""
        rows, states = [], dict[str, str]()
        for task in tasks:
            digest = hashlib.sha256(task.state).hexdigest()
            states.setdefault(digest, base64.b64encode(task.state).decode())
            envelope = base64.b64encode(task.envelope).decode()
            rows.append([envelope, digest, task.asked, task.attempt])
        before = {
            int(path.stem.removeprefix("at-work-")): path for path in self._folder.glob("at-work-*.json")
        }
        if rows:
            write_atomically(self._path(round), json.dumps({"tasks": rows, "states": states}).encode())
        for number, path in before.items():
            if number != round - 1 and (number != round or not rows):
                path.unlink()

    def load(self, round: int) -> list[TaskAtWork]:
        """Those of the round that a run goes on from; none if nobody was at work.

        Raises:
            StorageError: a damaged file.
        """
        path = self._path(round)
        if not path.exists():
            return []
        try:
            content = json.loads(path.read_bytes())
            states = {digest: base64.b64decode(text) for digest, text in content["states"].items()}
            return [
                TaskAtWork(base64.b64decode(envelope), states[digest], asked, attempt)
                for envelope, digest, asked, attempt in content["tasks"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(
                str(path),
                expected="the tasks that were at work",
                got=str(error),
                hint="Take the file away: its clients are asked anew, and the run goes another way.",
            ) from None

    def _path(self, round: int) -> Path:
        return self._folder / f"at-work-{round}.json"
