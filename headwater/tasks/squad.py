"""How SQuAD compares answers (Rajpurkar et al., arXiv 1606.05250 and 1806.03822): :func:`exact`, :func:`f1`.

Capital letters, punctuation, English articles and white space do not count.
"""

from __future__ import annotations

import re
import string
from collections import Counter

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def plain(answer: str) -> list[str]:
    """The words of an answer that count."""
    return _ARTICLES.sub(" ", answer.lower().translate(_NO_PUNCTUATION)).split()


def exact(found: str, truths: tuple[str, ...]) -> float:
    """1 if ``found`` is one of the true answers, else 0."""
    return float(any(plain(found) == plain(truth) for truth in truths))


def f1(found: str, truths: tuple[str, ...]) -> float:
    """The best F1 of the words of ``found`` and of a true answer; of none 1 against none alone."""
    return max(_f1(plain(found), plain(truth)) for truth in truths)


def _f1(found: list[str], truth: list[str]) -> float:
    if not (found and truth):
        return float(found == truth)
    shared = sum((Counter(found) & Counter(truth)).values())
    return 2 * shared / (len(found) + len(truth))
