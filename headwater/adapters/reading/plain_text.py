"""PlainText: user text as token ids, in which nothing becomes a control token.

A tokenizer turns the characters ``</s>`` or ``<|im_end|>`` into the token that ends a text or a turn, whoever
wrote them: a row could end early, or forge the turn of another. Such rows are read by a twin of the tokenizer
that knows its control tokens under other names, so that the characters are a text like any other. Asking
transformers for ``split_special_tokens`` is not enough: where the model itself has a piece ``</s>``
(SentencePiece Unigram), that piece is found in the text all the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer as FastTokenizer
from transformers import PreTrainedTokenizerBase

from headwater.errors import DataError, ModelError

_ALIAS = "\U0010fff0{}\U0010fff1"
"""The other name of a control token, with its number; characters that no text has a use for."""

_ANOTHER_SPELLING = "one in another spelling"


@dataclass(frozen=True, slots=True)
class Window:
    """A sequence of tokens, and for each its first character in the last text and the one after its last."""

    tokens: list[int]
    spans: list[tuple[int, int] | None]


class PlainText:
    """Texts to ids, control tokens only where the caller asks for them.

    Args:
        tokenizer: a transformers tokenizer.
        name: the base model, for messages.
        control: ids of the control tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, control: Iterable[int]) -> None:
        self._tokenizer, self._name = tokenizer, name
        self._names = {str(tokenizer.convert_ids_to_tokens(i)): i for i in sorted(set(control))}
        self._pattern = one_of(self._names)
        self._ids = frozenset(self._names.values())

    def within(self, text: str) -> bool:
        """Whether ``text`` has the characters of a control token."""
        return self._pattern.search(text) is not None

    def last(self, text: str) -> int:
        """Where the last control token in ``text`` ends; 0 if there is none."""
        return max((found.end() for found in self._pattern.finditer(text)), default=0)

    def hide(self, text: str, placeholders: dict[str, str]) -> str:
        """``text`` with ``placeholders`` for the control tokens in it: a character for each name."""
        return self._pattern.sub(lambda found: placeholders[found[0]], text)

    def placeholders(self, taken: str) -> dict[str, str]:
        """A private character for each control token that is in ``taken``, none of them in ``taken``."""
        found = sorted(set(self._pattern.findall(taken)))
        free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in taken)
        return dict(zip(found, free, strict=False))

    def encode(
        self, text: str, pair: str | None = None, *, special: bool, max_tokens: int | None = None
    ) -> list[int]:
        """The ids of ``text``, or of it and its pair.

        Args:
            text: all of it user text.
            pair: likewise.
            special: with what the model puts around a text.
            max_tokens: cut to so many, which keep what is put around.

        Raises:
            DataError: a control token cannot be kept apart from the text.
        """
        options: dict[str, Any] = {"add_special_tokens": special, "verbose": False}
        if max_tokens is not None:
            options |= {"truncation": True, "max_length": max_tokens}
        ids = list(self._tokenizer(text, pair, **options)["input_ids"])
        usual = self._usual[pair is not None] if special else 0
        if self._count(ids) <= usual:
            return ids
        if not self._tokenizer.is_fast:
            ids = list(self._tokenizer(text, pair, split_special_tokens=True, **options)["input_ids"])
        else:
            if max_tokens is None:
                self._twin.no_truncation()
            else:
                self._twin.enable_truncation(max_tokens, direction=self._tokenizer.truncation_side)
            ids = list(self._twin.encode(text, pair, add_special_tokens=special).ids)
        return self._checked(ids, usual, text)

    def windows(self, text: str, pair: str | None, *, max_tokens: int, stride: int) -> list[Window]:
        """The ids of ``text``, or of it and its pair, with their places: see :class:`Window`.

        Args:
            text: all of it user text.
            pair: likewise; then it alone is divided, and ``text`` is whole in every window.
            max_tokens: of a window, with what the model puts around.
            stride: tokens that two windows share; the caller sees to it that there is room for more.

        Raises:
            DataError: a control token cannot be kept apart from the text.
            ModelError: the tokenizer does not say where its tokens stand.
        """
        if not self._tokenizer.is_fast:
            raise ModelError(
                f"tokenizer of {self._name}",
                expected="one that says where its tokens stand (tokenizer.json)",
                got="one that does not",
                hint="Use another base model.",
            )
        found = self._tokenizer(
            text,
            pair,
            truncation=True if pair is None else "only_second",
            max_length=max_tokens,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        usual = self._usual[pair is not None]
        encodings = list(found.encodings)
        if any(self._count(part.ids) > usual for part in encodings):
            strategy = "longest_first" if pair is None else "only_second"
            self._twin.enable_truncation(max_tokens, stride=stride, strategy=strategy)
            first = self._twin.encode(text, pair)
            encodings = [first, *first.overflowing]
        last = 0 if pair is None else 1
        return [
            Window(
                self._checked(list(part.ids), usual, text),
                [
                    s if owner == last else None
                    for s, owner in zip(part.offsets, part.sequence_ids, strict=True)
                ],
            )
            for part in encodings
        ]

    def encode_template(self, text: str, placeholders: dict[str, str]) -> list[int]:
        """The ids of a text by a template: its control tokens count, those behind ``placeholders`` do not.

        Raises:
            DataError: a control token cannot be kept apart from the text.
        """
        wanted = len(self._pattern.findall(text))
        if not placeholders or not any(p in text for p in placeholders.values()):
            ids = list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            if self._count(ids) <= wanted:
                return ids
        if not self._tokenizer.is_fast:
            raise DataError(
                f"a message for {self._name}",
                expected="no control token in a message, which this tokenizer cannot read as text",
                got=", ".join(sorted(placeholders)) or _ANOTHER_SPELLING,
                hint="Take it out of the row.",
            )
        renamed = self._pattern.sub(lambda found: self._aliases[found[0]], text)
        for name, placeholder in placeholders.items():
            renamed = renamed.replace(placeholder, name)
        self._twin.no_truncation()
        return self._checked(list(self._twin.encode(renamed, add_special_tokens=False).ids), wanted, text)

    def _checked(self, ids: list[int], usual: int, text: str) -> list[int]:
        if self._count(ids) > usual:
            shown = ", ".join(sorted(set(self._pattern.findall(text)))) or _ANOTHER_SPELLING
            raise DataError(
                f"a text for {self._name}",
                expected="no control token of the model in it, or a tokenizer that can read it as text",
                got=shown,
                hint="Take it out of the row.",
            )
        return ids

    def _count(self, ids: Sequence[int]) -> int:
        return sum(i in self._ids for i in ids)

    @cached_property
    def _usual(self) -> tuple[int, int]:
        """How many control tokens the model puts around a text, and around a pair."""
        pair = self._tokenizer("a", "a")["input_ids"]
        return self._count(self._tokenizer("a")["input_ids"]), self._count(pair)

    @cached_property
    def _aliases(self) -> dict[str, str]:
        return {name: _ALIAS.format(i) for name, i in self._names.items()}

    @cached_property
    def _twin(self) -> FastTokenizer:
        """The tokenizer with other names for its control tokens."""
        content = json.loads(self._tokenizer.backend_tokenizer.to_str())
        for token in content["added_tokens"]:
            if token["content"] in self._aliases:  # found before letters are folded, which could eat a part
                token |= {"content": self._aliases[token["content"]], "normalized": False}
        model = content["model"]
        vocabulary = model["vocab"]
        if model.get("unk_token") in self._aliases:
            model["unk_token"] = self._aliases[model["unk_token"]]
        if isinstance(vocabulary, dict):
            model["vocab"] = {self._aliases.get(piece, piece): i for piece, i in vocabulary.items()}
        else:
            model["vocab"] = [[self._aliases.get(piece, piece), score] for piece, score in vocabulary]
        twin = FastTokenizer.from_str(json.dumps(content))
        twin.no_padding()
        moved = [n for n, i in self._names.items() if twin.token_to_id(self._aliases[n]) not in (i, None)]
        if moved:
            raise ModelError(
                f"tokenizer of {self._name}",
                expected="control tokens that keep their ids",
                got=f"others for {', '.join(moved)}",
                hint="Take control tokens out of the rows.",
            )
        return twin


def one_of(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of ``names``, the longest first.

    Some models have thousands of control tokens: they are tried only where their first letters stand.
    """
    longest = sorted(set(names), key=len, reverse=True)
    if not longest:
        return re.compile("(?!)")
    first = "|".join(map(re.escape, sorted({name[:3] for name in longest})))
    return re.compile(f"(?={first})(?:{'|'.join(map(re.escape, longest))})")
