"""RowReport: what was done to rows on their way to tokens, counted, with the first place of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

SENTENCES = {
    "cut": "more tokens than data.max_tokens: their end was cut off",
    "cut-answer": "an answer whose end was cut off: they teach no end",
    "no-window": "an answer that no window has all of: they teach that there is none (raise data.stride)",
    "control-text": "text that looks like a control token of the model: it is read as plain text",
    "nothing": "fewer than two tokens, so that there is nothing to predict: they give no example",
    "no-end": "an answer after which the model's template puts no token that ends it: they teach no end",
    "opening": "an answer before any question: the model is never asked for one",
    "frame-text": "a mark of the template that is no token of the model's tokenizer and is learnt as text",
    "unread-key": "a key of a message that the model's template does not read",
}
"""What may be done to a row, in words after "rows have". A kind may name a detail: ``unread-key:name``."""


@dataclass
class RowReport:
    """Counts of what was done to rows. One kind counts once for each row.

    Attributes:
        counts: by kind (a key of :data:`SENTENCES`) how many rows.
        first: by kind the place of the first row.
    """

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    _last: dict[str, str] = field(default_factory=dict)

    def note(self, kinds: Iterable[str], where: str) -> None:
        """Count ``kinds`` for the row at ``where`` (file and line)."""
        for kind in kinds:
            if self._last.get(kind) == where:  # a row may give several examples
                continue
            self._last[kind] = where
            self.counts[kind] = self.counts.get(kind, 0) + 1
            self.first.setdefault(kind, where)

    def sentences(self) -> tuple[str, ...]:
        """One sentence for each kind that was found."""
        return tuple(
            f"{count} row{'s have' if count > 1 else ' has'} {_sentence(kind)} (first {self.first[kind]})"
            for kind, count in self.counts.items()
        )


def _sentence(kind: str) -> str:
    slug, _, detail = kind.partition(":")
    return SENTENCES[slug] + (f": {detail!r}" if detail else "")
