"""Labels as files write them: :func:`label_of` finds a row's among the federation's.

One label has many spellings: ``1`` in JSON is ``1.0`` after pandas saw an empty cell, ``true`` is ``True``
in its CSV. They are matched where only one label can be meant; anything else is refused by line.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING

from headwater.config.data import Weighted
from headwater.errors import DataError
from headwater.tasks.inputs import Row

if TYPE_CHECKING:  # rows are read and checked without torch
    from torch import Tensor

_WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]{0,14}))(?:\.0+)?")
_Form = tuple[str, int]


def label_of(row: Row, column: str, labels: tuple[str, ...]) -> int:
    """The index among ``labels`` of the label in the row's ``column``.

    Raises:
        DataError: another label; names file, line, the label and those that are known.
    """
    value = row.value(column)
    if isinstance(value, float) and math.isnan(value):
        raise DataError(
            row.where,
            expected=f"a value in column {column!r}",
            got="NaN (not a number)",
            hint="Fill it in or take the row out.",
        )
    found = index_of(value, labels)
    if found is None:
        raise unknown_label(row.where, column, row.name(column), labels)
    return found


def index_of(value: object, labels: tuple[str, ...]) -> int | None:
    """The index of the one label that ``value`` can mean; None if there is none."""
    names = _names(labels)
    if not isinstance(value, str | int | float):
        return None
    found = names.exact.get(str(value))
    return names.by_form(_form(value)) if found is None else found


def unknown_label(where: str, column: str, name: str, labels: tuple[str, ...]) -> DataError:
    """The error of a label that is not among ``labels``."""
    known = ", ".join(repr(label) for label in labels[:20])
    more = f" and {len(labels) - 20} more" if len(labels) > 20 else ""
    return DataError(
        where,
        expected=f"one of the labels {known}{more} in column {column!r}",
        got=f"{name!r:.80}",
        hint="Correct the row, or add the label to data.labels.",
    )


def weights_of(settings: Weighted, like: Tensor) -> Tensor | None:
    """``data.class_weights`` beside logits ``like``; None if all labels count alike."""
    return None if settings.class_weights is None else like.new_tensor(settings.class_weights)


class _Names:
    def __init__(self, labels: tuple[str, ...]) -> None:
        self.exact = {label: i for i, label in enumerate(labels)}
        self._forms: dict[_Form, int | None] = {}
        for i, label in enumerate(labels):
            if (form := _form(label)) is not None:  # None: two labels that only their spelling tells apart
                self._forms[form] = None if form in self._forms else i
        kinds = {form[0] for form in self._forms}
        binary = len(labels) == 2 == len(self._forms) and {form[1] for form in self._forms} == {0, 1}
        self._truth = kinds.pop() if binary and len(kinds) == 1 else None

    def by_form(self, form: _Form | None) -> int | None:
        if form is None:
            return None
        if form not in self._forms and self._truth is not None:  # 0 and 1 for false and true
            form = (self._truth, form[1])
        return self._forms.get(form)


@lru_cache(maxsize=8)
def _names(labels: tuple[str, ...]) -> _Names:
    return _Names(labels)


def _form(value: str | float) -> _Form | None:
    """A whole number or a truth value, however it is written; None for anything else."""
    if isinstance(value, bool):
        return ("truth", int(value))
    if isinstance(value, int):
        return ("whole", value)
    if isinstance(value, float):
        return ("whole", int(value)) if value.is_integer() else None
    if value.lower() in ("true", "false"):
        return ("truth", int(value.lower() == "true"))
    found = _WHOLE.fullmatch(value)
    return ("whole", int(found[1])) if found else None
