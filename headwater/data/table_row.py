"""TableRow: a row of a :class:`Table` as tasks read it (:class:`headwater.tasks.inputs.Row`)."""

from __future__ import annotations

from dataclasses import dataclass

from headwater.config.data import BaseData, InstructionData
from headwater.data.conversations import Conversation, conversation_of
from headwater.data.files.layouts import texts_of
from headwater.data.files.table import FILE_COLUMN, Table
from headwater.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row.

    Args:
        table: where it lies.
        index: its number there.
        settings: ``[data]``: which columns are the input.
    """

    table: Table
    index: int
    settings: BaseData

    @property
    def where(self) -> str:
        """File and line."""
        return self.table.where(self.index)

    def texts(self) -> tuple[str, str | None]:
        """The text, and its pair."""
        return texts_of(self.table, self.index, self.settings)

    def conversation(self) -> Conversation:
        """The conversation."""
        if not isinstance(self.settings, InstructionData):
            raise ConfigError(
                f"data.kind '{self.settings.kind}'", expected="settings of conversations", got="of texts"
            )
        return conversation_of(self.table, self.index, self.settings)

    def value(self, column: str) -> object:
        """What ``column`` holds."""
        return self.table.value(column, self.index)

    def optional(self, column: str) -> object | None:
        """What ``column`` holds; None where this row has nothing there."""
        if column == FILE_COLUMN:
            return self.table.stem(self.index)
        return self.table.columns[self.table.require(column)][self.index]

    def written(self, column: str) -> str:
        """The text in ``column``."""
        return self.table.text(column, self.index)

    def words(self, column: str) -> list[str]:
        """The words in ``column``."""
        return self.table.words(column, self.index)

    def name(self, column: str) -> str:
        """A text or number in ``column``."""
        return self.table.name(column, self.index)
