"""ROUGE: what a written answer has in common with the true one. Entry: :func:`rouge`.

Lin, *ROUGE: A Package for Automatic Evaluation of Summaries*, 2004: F1 of shared words, of shared pairs of
words, and of the longest common subsequence of words. Words are what the package ``rouge-score`` takes for
such, without its stemmer: runs of a–z and 0–9 in lower case. A text in another script has none, and scores 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence


def rouge(truth: str, said: str) -> dict[str, float]:
    """``rouge1``, ``rouge2`` and ``rougeL``, each from 0 to 1.

    Args:
        truth: the true answer.
        said: the answer that was written.
    """
    ours, theirs = (re.findall(r"[a-z0-9]+", text.lower()) for text in (said, truth))
    return {
        "rouge1": _f1(*_shared(ours, theirs, 1)),
        "rouge2": _f1(*_shared(ours, theirs, 2)),
        "rougeL": _f1(_common_subsequence(ours, theirs), len(ours), len(theirs)),
    }


def _shared(ours: Sequence[str], theirs: Sequence[str], n: int) -> tuple[int, int, int]:
    """How many sequences of ``n`` words both have, and how many each has."""
    first, second = (
        Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for words in (ours, theirs)
    )
    return (first & second).total(), first.total(), second.total()


def _common_subsequence(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """Length of the longest, in O(n · m) time and O(m) memory."""
    row = [0] * (len(theirs) + 1)
    for word in ours:
        before = row
        row = [0]
        for j, other in enumerate(theirs):
            row.append(before[j] + 1 if word == other else max(before[j + 1], row[j]))
    return row[-1]


def _f1(shared: int, ours: int, theirs: int) -> float:
    return 2 * shared / (ours + theirs) if shared else 0.0
