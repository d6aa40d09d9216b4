"""Labels as files write them: :func:`label_of` finds a row's among the federation's.

One label has many spellings: ``1`` in JSON is ``1.0`` after pandas saw an empty cell, ``true`` is ``True``
in its CSV. They are matched where only one label can be meant; anything else is refused by line.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache

from headwater.config.data import ClassificationData
from headwater.data.files.table import Table
from headwater.errors import DataError

_WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]{0,14}))(?:\.0+)?")
_Form = tuple[str, int]


def label_of(table: Table, row: int, settings: ClassificationData) -> int:
    """The index of the row's label in ``settings.labels``.

    Raises:
        DataError: another label; names file, line, the label and those that are known.
    """
    value = table.value(settings.label, row)
    if isinstance(value, float) and math.isnan(value):
        raise DataError(
            table.where(row),
            expected=f"a value in column {settings.label!r}",
            got="NaN (not a number)",
            hint="Fill it in or take the row out.",
        )
    names = _names(settings.labels)
    found = None
    if isinstance(value, str | int | float):
        found = names.exact.get(str(value))
        found = names.by_form(_form(value)) if found is None else found
    if found is None:
        known = ", ".join(repr(label) for label in settings.labels[:20])
        more = f" and {len(settings.labels) - 20} more" if len(settings.labels) > 20 else ""
        name = table.name(settings.label, row)
        raise DataError(
            table.where(row),
            expected=f"one of the labels {known}{more} in column {settings.label!r}",
            got=f"{name!r:.80}",
            hint="Correct the row, or add the label to data.labels.",
        )
    return found


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
