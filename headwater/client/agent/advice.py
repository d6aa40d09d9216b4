"""What an owner is advised to do about their data: :func:`for_owner`. The federation file is not theirs."""

from __future__ import annotations

import re

from headwater.data.files.problems import BadRows
from headwater.errors import DataError

_KEYS = re.compile(r"\b(?:data|training|model|federation)\.[a-z_.]*[a-z]|\[data\]")


def for_owner(error: DataError) -> DataError:
    """The same error, which says of advice about the federation file whom the owner must ask.

    Data are read by the same code where the organiser reads them, who can follow all of it. What was told so
    already is left as it is.
    """
    if isinstance(error, BadRows):
        return BadRows([for_owner(problem) for problem in error.problems], error.count)
    keys = dict.fromkeys(_KEYS.findall(error.hint))
    ask = f"Only the organiser can change {', '.join(keys)}: ask for it."
    if not keys or ask in error.hint:
        return error
    told = DataError(error.who, expected=error.expected, got=error.got, hint=f"{error.hint} {ask}")
    told.failure = error.failure
    return told
