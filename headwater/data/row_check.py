"""RowCheck: rows through tokenizer and template, one by one, so that all bad ones are known at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from headwater.data.files.layouts import RowData
from headwater.data.files.problems import Problems
from headwater.data.files.table import Table
from headwater.data.row_report import RowReport
from headwater.data.table_row import TableRow
from headwater.errors import DataError, ModelError
from headwater.tasks.batches import Example
from headwater.tasks.inputs import Tokenizer
from headwater.tasks.table import task_of


def tokenise_rows(
    table: Table,
    rows: Sequence[int],
    settings: RowData,
    tokenizer: Tokenizer,
    report: RowReport | None = None,
    by: str | None = None,
) -> list[Example]:
    """Examples of rows of any kind.

    Args:
        table: the rows.
        rows: their numbers.
        settings: ``[data]``.
        tokenizer: the base model's.
        report: is told what was done to them.
        by: the column that says their group.

    Raises:
        DataError: a row cannot be used.
        ModelError: the chat template cannot, or not for this row.
    """
    task = task_of(settings)
    found: list[Example] = []
    for row in rows:
        own = task.examples(TableRow(table, row, settings), tokenizer, report)
        if len(own) > 1:
            origin = object()
            own = [replace(e, row=origin) for e in own]
        found += own if by is None else [replace(e, group=table.name(by, row)) for e in own]
    return found


class RowCheck:
    """Tokenises rows and remembers what is wrong with which.

    Args:
        settings: ``[data]``.
        tokenizer: the base model's.

    Attributes:
        problems: the rows that cannot be used.
        report: what was done to the others.
    """

    def __init__(self, settings: RowData, tokenizer: Tokenizer) -> None:
        self._settings, self._tokenizer = settings, tokenizer
        self.problems, self.report = Problems(), RowReport()
        self._refused: list[tuple[str, ModelError]] = []
        self._rows = 0

    def examples(self, table: Table, rows: Iterable[int], by: str | None = None) -> list[Example]:
        """The examples of the rows that can be used, of the groups that column ``by`` says."""
        found: list[Example] = []
        for row in rows:
            self._rows += 1
            try:
                found += tokenise_rows(table, [row], self._settings, self._tokenizer, self.report, by)
            except DataError as error:
                self.problems.add(_placed(error, table.where(row)))
            except ModelError as error:  # a chat template that does not take this row, or none at all
                self._refused.append((table.where(row), error))
        return found

    @property
    def clean(self) -> bool:
        """Whether every row could be used so far."""
        return not self.problems.count and not self._refused

    def settle(self) -> None:
        """Make the rows that the model's template refused problems.

        Raises:
            ModelError: it refused them all: it is the model, not the rows.
        """
        if self._refused and len(self._refused) == self._rows:
            raise self._refused[0][1]
        for where, error in self._refused:
            self.problems.add(
                DataError(f"{where}: {error.who}", expected=error.expected, got=error.got, hint=error.hint)
            )
        self._refused = []


def _placed(error: DataError, where: str) -> DataError:
    """``error`` with file and line, which a tokenizer does not know."""
    if error.who.startswith(where):
        return error
    return DataError(f"{where}: {error.who}", expected=error.expected, got=error.got, hint=error.hint)
