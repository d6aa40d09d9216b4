"""CohortRecord: how many clients were a batch, in ``state/cohorts.json``, so that a resume repeats it.

Two things about it hang on the machine: what ``cohort = "auto"`` measured, and for want of memory of which
batch it was halved. Both are written down before any client has answered.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from headwater.errors import StorageError
from headwater.server.storage.run_folder import RunFolder

NAME = "state/cohorts.json"


@dataclass(frozen=True, slots=True)
class Timed:
    """What a size was measured to take.

    Args:
        clients: of a batch.
        ms: milliseconds of a client's step.
    """

    clients: int
    ms: float


@dataclass(frozen=True, slots=True)
class Halved:
    """A batch that was too large.

    Args:
        round: its round.
        first: its first client.
        clients: how many it had.
    """

    round: int
    first: str
    clients: int


class CohortRecord:
    """The sizes of a run's batches.

    Args:
        cohort: most clients of a batch at first.
        timed: why, where that was measured.
        halved: batches that were too large.
        keep: is given all of it when something is added.
    """

    def __init__(
        self,
        cohort: int,
        timed: Iterable[Timed] = (),
        halved: Iterable[Halved] = (),
        keep: Callable[[Mapping[str, Any]], None] = lambda content: None,
    ) -> None:
        self.cohort, self.timed = cohort, tuple(timed)
        self._halved, self._keep = list(halved), keep

    @staticmethod
    def open(
        folder: RunFolder, keep: Callable[[Mapping[str, Any]], None], *, measured: bool
    ) -> CohortRecord | None:
        """The record of a run that goes on; None of one that begins, or has none.

        Args:
            folder: of the run.
            keep: as of the class.
            measured: whether the run began with one.

        Raises:
            StorageError: it is damaged or gone: the run cannot go on to the same bits.
        """
        path = folder.path / NAME
        if not folder.checkpoint.exists():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if int(found["cohort"]) < 1:
                raise ValueError(f"{found['cohort']} clients")
            return CohortRecord(
                int(found["cohort"]),
                [Timed(int(row["clients"]), float(row["ms"])) for row in found["timed"]],
                [Halved(int(r["round"]), str(r["first"]), int(r["clients"])) for r in found["halved"]],
                keep,
            )
        except (OSError, ValueError, OverflowError, KeyError, TypeError) as error:
            if isinstance(error, FileNotFoundError) and not measured:
                return None
            raise StorageError(
                f"reading {path}",
                expected="how many clients this run trains as one batch",
                got=str(error) or type(error).__name__,
                hint="Put the file back, or start a new run.",
            ) from error

    def keep(self) -> None:
        """Write it down."""
        halved = [asdict(one) for one in self._halved]
        self._keep({"cohort": self.cohort, "timed": [asdict(t) for t in self.timed], "halved": halved})

    def most(self, round: int) -> int:
        """Clients of a batch in this round: half of what was too much in an earlier one."""
        return min([self.cohort, *(_half(one.clients) for one in self._halved if one.round < round)])

    def parts(self, round: int, clients: Sequence[str]) -> Iterator[Sequence[str]]:
        """A batch as it was trained when it came up before: whole, or divided."""
        if Halved(round, clients[0], len(clients)) in self._halved:
            for half in halves(clients):
                yield from self.parts(round, half)
        else:
            yield clients

    def halve(self, round: int, clients: Sequence[str]) -> list[Sequence[str]]:
        """Write down that this batch was too large; what to train in its place."""
        self._halved.append(Halved(round, clients[0], len(clients)))
        self.keep()
        return halves(clients)


def halves(clients: Sequence[str]) -> list[Sequence[str]]:
    """Two parts of a batch, in order, the first the larger."""
    half = _half(len(clients))
    return [clients[:half], clients[half:]]


def _half(clients: int) -> int:
    return (clients + 1) // 2
