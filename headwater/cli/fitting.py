"""A table that fits its screen by leaving columns out, never by cutting a cell: :class:`FittingTable`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_GAP = 2


@dataclass
class _Column:
    title: str
    weight: int
    right: bool
    cells: list[Text] = field(default_factory=list)

    @property
    def width(self) -> int:
        return max(len(self.title), *(cell.cell_len for cell in self.cells)) if self.cells else 0


class FittingTable:
    """Columns of least weight go first where the screen is narrow; those of weight 0 stay.

    If even these are too wide, the first one's cells, which are names, take several lines.
    """

    def __init__(self) -> None:
        self._columns: list[_Column] = []
        self._styles: list[str] = []

    def column(self, title: str, weight: int, *, right: bool = False) -> None:
        """A further column.

        Args:
            title: its head.
            weight: how much it matters; 0 is never left out.
            right: whether its cells are numbers.
        """
        self._columns.append(_Column(title, weight, right))

    def row(self, cells: Sequence[str | Text], style: str = "") -> None:
        """A further row, with one cell for every column."""
        for column, cell in zip(self._columns, cells, strict=True):
            column.cells.append(cell if isinstance(cell, Text) else Text(cell))
        self._styles.append(style)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = list(self._columns)
        while _width(shown) > options.max_width:
            least = min((c for c in shown if c.weight), key=lambda c: c.weight, default=None)
            if least is None:
                break
            shown.remove(least)
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        for number, column in enumerate(shown):
            table.add_column(
                column.title, justify="right" if column.right else "left", no_wrap=number > 0, overflow="fold"
            )
        for number, style in enumerate(self._styles):
            table.add_row(*(column.cells[number] for column in shown), style=style)
        yield table

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        width = _width(self._columns)
        return Measurement(min(width, options.max_width), width)


def _width(columns: Sequence[_Column]) -> int:
    # rich keeps the gap behind the last column too
    return sum(column.width + _GAP for column in columns)
