"""Entities in a sequence of labels, as seqeval counts them: :class:`Chunks`.

A label is a mark and a type: ``B-PER`` begins a person, ``I-PER`` goes on, ``E-PER`` ends and ``S-PER`` is
alone; ``O`` is none. A label without a mark is a type of its own, and a run of it an entity. The rules are
those of conlleval.pl, which seqeval's default mode keeps: an ``I`` after ``O`` begins an entity too.
"""

from __future__ import annotations

from collections.abc import Sequence

Entity = tuple[str, int, int]
"""Type, first position and last position."""


_OUTSIDE = ("O", "")


class Chunks:
    """Finds the entities of sequences of labels.

    Args:
        labels: all labels, by whose numbers sequences are given.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._parts = [_parts(label) for label in labels]

    def of(self, sequence: Sequence[int]) -> list[Entity]:
        """The entities of one sequence, in order."""
        found: list[Entity] = []
        start, before = 0, _OUTSIDE
        for position, (mark, kind) in enumerate([*(self._parts[k] for k in sequence), _OUTSIDE]):
            if _ends(*before, mark, kind):
                found.append((before[1], start, position - 1))
            if _begins(*before, mark, kind):
                start = position
            before = mark, kind
        return found


def _parts(label: str) -> tuple[str, str]:
    """Mark and type of a label."""
    if label == "O" or label[1:2] == "-":
        return label[0], label[2:]
    return "I", label


def _ends(mark: str, kind: str, next_mark: str, next_kind: str) -> bool:
    """Whether an entity ends with a label of this mark and type, before the next one."""
    if mark in "ES":
        return True
    if mark in "BI" and next_mark in "BSO":
        return True
    return mark not in "O." and kind != next_kind


def _begins(mark: str, kind: str, next_mark: str, next_kind: str) -> bool:
    """Whether an entity begins with the next label."""
    if next_mark in "BS":
        return True
    if mark in "ESO" and next_mark in "EI":
        return True
    return next_mark not in "O." and kind != next_kind
