"""MemoryFile: what a device has told in masked rounds, on disk before it is told; runs' folders may go."""

from __future__ import annotations

import json
from pathlib import Path

from headwater.errors import StorageError
from headwater.files import append_line, read_lines
from headwater.security.secagg.memory import Told


class MemoryFile:
    """One file a run; the last line of a round holds. A :class:`headwater.security.secagg.memory.Memory`.

    Args:
        folder: made when first written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: tuple[str, dict[int, Told]] = "", {}

    def of(self, run: str, round: int) -> Told | None:
        """What was told in this round.

        Raises:
            StorageError: the file is damaged: then it is not known, and nothing more is told.
        """
        return self._of(run).get(round)

    def note(self, run: str, round: int, told: Told) -> None:
        """Keep it; it is on disk when this returns.

        Raises:
            StorageError: the disk is full or not writable.
        """
        facts = [round, told.attempt.hex(), told.values.hex(), told.survivors.hex()]
        known = self._of(run)
        append_line(self._path(run), json.dumps(facts).encode())
        known[round] = told

    def _path(self, run: str) -> Path:
        return self._folder / f"{run}.jsonl"

    def _of(self, run: str) -> dict[int, Told]:
        if self._known[0] != run:
            found = dict[int, Told]()
            path = self._path(run)
            for number, line in enumerate(read_lines(path), 1):  # a torn last one: nothing was told yet
                try:
                    round, *told = json.loads(line)
                    attempt, values, survivors = (bytes.fromhex(text) for text in told)
                    found[int(round)] = Told(attempt, values, survivors)
                except (ValueError, TypeError) as error:
                    raise StorageError(
                        f"{path}, line {number}", expected="what was told in a masked round",
                        got=str(error)[:80], hint="Restore the file, or leave this run.",
                    ) from error  # fmt: skip
            self._known = run, found
        return self._known[1]
