"""PointProblems: what is wrong with points of a grid, all at once and each thing once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from headwater import errors
from headwater.errors import HeadwaterError

SHOWN = 12
"""Problems that are named; of more, the number is told."""
_FEW = 4


def home_class(error: HeadwaterError) -> type[HeadwaterError]:
    """The class of the tree in :mod:`headwater.errors` that an error is of; all of them are made alike."""
    return next(
        kind
        for kind in type(error).__mro__
        if issubclass(kind, HeadwaterError) and kind.__module__ == errors.__name__
    )


class PointProblems:
    """Collects; :meth:`raise_any` ends with all of it.

    Args:
        who: the sweep file, for messages.
        points: how many there are.
    """

    def __init__(self, who: str, points: int) -> None:
        self._who, self._points = who, points
        self._levels: dict[str, set[str]] = {}
        self._found: dict[tuple[type, str, str, str], tuple[HeadwaterError, list[Mapping[str, str]]]] = {}

    def know(self, points: Iterable[Mapping[str, str]]) -> None:
        """These points are of the grid, too."""
        for labels in points:
            for axis, label in labels.items():
                self._levels.setdefault(axis, set()).add(label)

    @contextmanager
    def of(self, *points: Mapping[str, str]) -> Iterator[None]:
        """Keep what is raised inside as a problem of these points, which are named by their labels."""
        self.know(points)
        try:
            yield
        except HeadwaterError as error:
            # the hint may count what else is wrong with one point
            key = (type(error), error.who, error.expected, error.got)
            _, those = self._found.setdefault(key, (error, []))
            those += points

    def raise_any(self) -> None:
        """Raise the one problem, or all, as the first one's class.

        Raises:
            HeadwaterError: there is one.
        """
        if not self._found:
            return
        rows = list(self._found.values())
        kind = home_class(rows[0][0])
        if len(rows) == 1:
            error, points = rows[0]
            raise kind(
                f"{self._who}: {self._share(points)}: {error.who}",
                expected=error.expected, got=error.got, hint=error.hint,
            ) from error  # fmt: skip
        lines = [f"{self._who}: {len(rows)} problems, and nothing was run:"]
        for error, points in rows[:SHOWN]:
            lines.append(f"  {self._share(points)}: {error}")
        if len(rows) > SHOWN:
            lines.append(f"  … and {len(rows) - SHOWN} more")
        raise kind("\n".join(lines)) from rows[0][0]

    def _share(self, points: list[Mapping[str, str]]) -> str:
        """How many points, and what sets them apart: few levels of an axis that has more."""
        own = {axis: dict.fromkeys(p[axis] for p in points) for axis in points[0]}
        shared = [
            f"{axis} = {' or '.join(labels)}"
            for axis, labels in own.items()
            if len(labels) < len(self._levels[axis]) and len(labels) <= _FEW
        ]
        where = f" with {', '.join(shared)}" if shared else ""
        if len(points) == self._points:
            return f"every point{where}"
        return f"{len(points)} of {self._points} points{where}"
