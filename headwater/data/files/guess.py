"""What a file without a federation holds: :func:`guess` looks at its columns."""

from __future__ import annotations

from headwater.data.files.layouts import CHATS, PAIRS, PROMPTS
from headwater.data.files.table import Table

_TURNS = (
    ("prompt", "answer"),
    ("instruction", "output"),
    ("instruction", "response"),
    *PROMPTS,
    ("chosen", "rejected"),
)


def guess(table: Table) -> str | None:
    """The ``data.kind`` that the columns of ``table`` fit; None where none or several do.

    A column of running text beside others says nothing: Alpaca's has the whole prompt once more.
    """
    names = set(table.columns)
    found = []
    if names & set(CHATS) or any(names.issuperset(turn) for turn in _TURNS):
        found.append("instruction")
    if "label" in names and ("text" in names or any(names.issuperset(pair) for pair in PAIRS)):
        found.append("classification")
    if not found and "text" in names:
        found.append("causal-lm")
    return found[0] if len(found) == 1 else None
