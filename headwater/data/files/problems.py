"""Problems: all bad rows of some data in one error, so that an owner mends them in one go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from headwater.errors import DataError

SHOWN = 20
"""Bad rows that are named; of more, the number is told."""

T = TypeVar("T")


class BadRows(DataError):
    """Several rows that cannot be used, a line each.

    Attributes:
        problems: the first of them, at most :data:`SHOWN`.
        count: how many there are.
    """

    def __init__(self, problems: Sequence[DataError], count: int) -> None:
        self.problems, self.count = tuple(problems), count
        lines = [f"{count:,} rows or files cannot be used:"]
        lines += ["  " + _line(p) for p in self.problems]
        if count > len(self.problems):
            lines.append(f"  … and {count - len(self.problems):,} more")
        hints = list(dict.fromkeys(p.hint for p in self.problems if p.hint))
        super().__init__("\n".join([*lines, *hints[:5]]))

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the rows when the error crosses a process border."""
        return (BadRows, (self.problems, self.count))


class Problems:
    """Collects what is wrong with rows; :meth:`raise_any` ends with all of it."""

    def __init__(self) -> None:
        self.first: list[DataError] = []
        self.count = 0

    def add(self, problem: DataError) -> None:
        """One more bad row."""
        self.count += 1
        if isinstance(problem, BadRows):
            self.count += problem.count - 1
            self.first += problem.problems[: SHOWN - len(self.first)]
        elif len(self.first) < SHOWN:
            self.first.append(problem)

    def extend(self, other: Problems) -> None:
        """All that another has."""
        self.first += other.first[: SHOWN - len(self.first)]
        self.count += other.count

    def attempt(self, function: Callable[[], T]) -> T | None:
        """What ``function`` returns; None where it raises a ``DataError``, which is kept."""
        try:
            return function()
        except DataError as error:
            self.add(error)
            return None

    def raise_any(self) -> None:
        """Raise the one problem, or all.

        Raises:
            DataError: there is one.
            BadRows: there are several.
        """
        if self.count == 1:
            raise self.first[0]
        if self.count:
            raise BadRows(self.first, self.count)


def _line(problem: DataError) -> str:
    parts = [f"expected {problem.expected}"] if problem.expected else []
    parts += [f"got {problem.got}"] if problem.got else []
    return f"{problem.who}: {', '.join(parts)}" if parts else problem.who
