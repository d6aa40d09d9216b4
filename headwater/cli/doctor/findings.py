"""Finding: what one look at the machine found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "bad"]
"""``note``: works, but somebody may want to know; ``bad``: something will not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line.

    Args:
        check: what was looked at.
        state: how it is.
        text: what was found.
        advice: the next step; empty where there is none to take.
        exit_code: of the error that a run would end with; of the command, where it is the first bad finding.
    """

    check: str
    state: State
    text: str
    advice: str = ""
    exit_code: int = 0
