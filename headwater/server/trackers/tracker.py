"""RunTracker: what a tracker is, built in or of an installed package (docs/how-to/add-a-tracker.md)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater.config.federation import Federation
from headwater.config.traits import TrackerTraits
from headwater.server.round_record import RoundRecord


@dataclass(frozen=True, slots=True)
class RunStart:
    """What is known of a run before its first round is told.

    Args:
        run: its id.
        settings: of the federation, as resolved.
        metric: the name of the metric that decides; :meth:`RoundRecord.deciding` gives a round's.
        first: the round that is told first: 0, or where an earlier start had come to.
    """

    run: str
    settings: Federation
    metric: str
    first: int


class RunTracker(ABC):
    """Observes one run. All its methods are called from one thread, which no round waits for.

    What they raise is told to people by the tracker's name and ends nothing. A round that was refused is told
    again, with ``OSError`` until it is taken, else three times; a method that returned has taken it. After a
    crash the last round may come twice, with the same number.

    Args:
        settings: the ``[[trackers]]`` table.
        folder: where it may write; not made yet.
    """

    def __init__(self, settings: TrackerTraits, folder: Path) -> None:
        self.settings, self.folder = settings, folder

    @property
    def adapter(self) -> Path:
        """The folder of the run's exported adapter, when :meth:`end` is called; a run may have none."""
        depth = len(Path(self.settings.folder or "trackers/KIND").parts)
        return self.folder.parents[depth - 1] / "adapter"

    def start(self, run: RunStart) -> None:  # noqa: B027 - many trackers need none
        """Rounds follow. Where it raises, another object is made and asked later."""

    @abstractmethod
    def round(self, record: RoundRecord) -> None:
        """A round has ended, with its evaluations; in order, from ``RunStart.first`` on."""

    def end(self, summary: Mapping[str, Any]) -> None:  # noqa: B027 - many trackers need none
        """The run ended, or was asked to stop, with this ``summary.json``. Not after a failure or a pause."""

    def close(self) -> None:  # noqa: B027 - many trackers need none
        """The last call, whatever came before."""
