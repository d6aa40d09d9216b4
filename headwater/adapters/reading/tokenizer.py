"""TextTokenizer: texts and conversations as token ids."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from headwater.adapters.reading.chat import Chat, ChatTokens
from headwater.adapters.reading.chat_template import ChatTemplate, Messages
from headwater.adapters.reading.plain_text import PlainText, Window
from headwater.config.data import TEMPLATE_DATE
from headwater.errors import DataError, ModelError

_RARE = "\ufffd\u2603\U00012000\ufdd0"
"""Characters that no vocabulary of pieces has."""


class TextTokenizer:
    """The base model's tokenizer, as the data room wants it.

    What users wrote never becomes a control token: ``</s>`` in a text is read as four characters.

    Args:
        tokenizer: a transformers tokenizer.
        name: the base model, for messages.

    Attributes:
        pad: id that fills short rows; the end-of-sequence id where the model has no own (it is masked).
        bos: id of the token that begins a sequence, if the model's own encoding puts it there.
        before: ids that the model's own encoding puts before a text: often ``bos`` or none.
        eos: id that ends a sequence, if the model has one.
        mask: id that stands for a hidden token, if the model has one.
        template: its chat template.
        vocabulary: rows of the model's embedding; None before :meth:`fit`. A token beyond it cannot be read.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self._tokenizer, self._name = tokenizer, name
        self.before = _before(tokenizer)
        begins = self.before[:1] == [tokenizer.bos_token_id]
        self.bos: int | None = tokenizer.bos_token_id if begins else None
        self.eos: int | None = tokenizer.eos_token_id
        self.mask: int | None = tokenizer.mask_token_id
        pad = tokenizer.pad_token_id
        self.pad: int = int(pad if pad is not None else self.eos if self.eos is not None else 0)
        self.template = ChatTemplate(tokenizer, name)
        self._no_pairs = ""
        self.vocabulary: int | None = None

    def fit(self, rows: int) -> None:
        """Hold the ids against an embedding of ``rows`` rows; a pad without a row becomes another, masked id.

        Raises:
            ModelError: the id that begins or ends every text has no row.
        """
        self.vocabulary = rows
        ends = [(self._tokenizer.eos_token, self.eos)]
        put = [*((self._tokenizer.convert_ids_to_tokens(i), i) for i in self.before), *ends]
        beyond = [f"{name} {i}" for name, i in put if i is not None and i >= rows]
        if beyond:
            raise ModelError(
                f"tokenizer of {self._name}",
                expected=f"ids below {rows}, the rows of the model's embedding",
                got=", ".join(beyond),
                hint="Enlarge the model with resize_token_embeddings and save it, or take the token out.",
            )
        if self.pad >= rows:
            self.pad = self.eos if self.eos is not None and self.eos < rows else 0

    @staticmethod
    def load(folder: Path, name: str) -> TextTokenizer:
        """The tokenizer in ``folder``.

        Raises:
            ModelError: there is none, it needs code of its own, or it draws how a text is cut into tokens.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
                # transformers 5 makes one that knows no word where the files are missing
                raise ValueError(f"a vocabulary of {len(tokenizer)} special tokens alone")
            found = TextTokenizer(tokenizer, name)
        except Exception as error:  # the tokenizer libraries raise bare exceptions of many types
            raise ModelError(
                f"tokenizer of {name}", expected="tokenizer files beside the weights", got=str(error)
            ) from error
        if reason := _draws(tokenizer):
            raise ModelError(
                f"tokenizer of {name}",
                expected="one that reads a text the same way each time",
                got=reason,
                hint="Set dropout to null in tokenizer.json, or enable_sampling to false in sp_model_kwargs.",
            )
        return found

    def encode(self, text: str, max_tokens: int, pair: str | None = None) -> list[int]:
        """``text``, or it and its pair, with the model's special tokens, cut to ``max_tokens``.

        The special tokens stay; of a pair the longer text is cut first.

        Raises:
            ModelError: a pair, which the base cannot be shown as in training elsewhere.
        """
        if pair is not None:
            self._require_pairs()
        return self._known(self._plain.encode(text, pair, special=True, max_tokens=max_tokens))

    def spans(self, text: str, max_tokens: int, pair: str | None = None, stride: int = 0) -> list[Window]:
        """:meth:`encode` with where each token stands, in as many windows as the last text needs.

        Of a pair ``pair`` alone is divided. Two windows share ``stride`` tokens.

        Raises:
            DataError: what is not divided leaves no room for more than ``stride`` tokens.
            ModelError: a pair, as :meth:`encode`; or a tokenizer that does not say where its tokens stand.
        """
        if pair is not None:
            self._require_pairs()
        whole = [] if pair is None else self.encode_plain(text)
        room = max_tokens - len(whole) - self._around[pair is not None]
        if room <= stride:
            raise DataError(
                f"tokenizer of {self._name}",
                expected=f"room for more than {stride} tokens of text in data.max_tokens = {max_tokens}",
                got=f"{room} beside what is in every window",
                hint="Raise data.max_tokens, or lower data.stride.",
            )
        found = self._plain.windows(text, pair, max_tokens=max_tokens, stride=stride)
        for window in found:
            self._known(window.tokens)
        return found

    @cached_property
    def _around(self) -> tuple[int, int]:
        """Tokens that the model puts around a text, and around a pair."""
        alone = len(self.encode_plain("a"))
        pair = self._plain.encode("a", "a", special=True)
        return len(self._plain.encode("a", special=True)) - alone, len(pair) - 2 * alone

    def _require_pairs(self) -> None:
        if reason := self._no_pairs or self._glued:
            raise ModelError(
                f"tokenizer of {self._name}",
                expected="a base model that can be shown pairs of texts",
                got=reason,
                hint="Put both texts into one column, or use another base model.",
            )

    @cached_property
    def _glued(self) -> str:
        """Why pairs cannot be told apart, if they cannot."""
        first, second = self.encode_plain("a b"), self.encode_plain("c d")
        pair = self.with_types("a b", "c d")[0]
        both = [*first, *second]
        together = any(pair[i : i + len(both)] == both for i in range(len(pair)))
        return "texts that run together, with nothing between them" if together else ""

    def refuse_pairs(self, reason: str) -> None:
        """Let :meth:`encode` take single texts only."""
        self._no_pairs = reason

    def with_types(self, text: str, pair: str | None) -> tuple[list[int], list[int] | None]:
        """Ids of a text or a pair, and the types that the tokenizer gives with them, if it does."""
        found = self._tokenizer(text, pair)
        types = found.get("token_type_ids")
        return list(found["input_ids"]), None if types is None else list(types)

    @property
    def size(self) -> int:
        """Ids below it are those of a token that the model's embedding has a row for."""
        return min(len(self._tokenizer), self.vocabulary or len(self._tokenizer))

    @property
    def separator(self) -> int | None:
        """Id of the token that ends a text."""
        found = self._tokenizer.sep_token_id
        return None if found is None else int(found)

    def encode_plain(self, text: str) -> list[int]:
        """``text`` alone, of any length."""
        return self._known(self._plain.encode(text, special=False))

    def prompt(self, text: str) -> list[int]:
        """``text`` as the beginning of a running text: what training puts before one, and no end after it."""
        return [*self.before, *self.encode_plain(text)]

    def has_control_text(self, text: str) -> bool:
        """Whether ``text`` has the characters of a control token of the model."""
        return self._plain.within(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens`` without special tokens."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def spell(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``, special tokens and all."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))

    def answer(self, tokens: Sequence[int], *, thinking: bool = False) -> str:
        """The answer in what a model said after :meth:`chat_prompt`, without what opens it.

        With ``thinking``, the thought is kept.
        """
        said = self._chat.without_opening(list(tokens), thinking=thinking)
        return self.decode(said).strip()

    def chat(
        self,
        messages: Messages,
        max_tokens: int,
        *,
        date: datetime.date = TEMPLATE_DATE,
        thinking: bool = False,
        tools: Sequence[Any] | None = None,
    ) -> list[ChatTokens]:
        """A conversation in the model's chat template: see :mod:`headwater.adapters.reading.chat`.

        Args:
            messages: with every key that they have; an answer with ``weight`` 0 has no loss.
            max_tokens: what is beyond is cut off.
            date: what the template takes for today.
            thinking: whether the model is asked to think before it answers.
            tools: JSON schemas of functions, for the template.

        Returns:
            Sequences with loss on the answers, each up to the token that ends it. One, unless the
            template shows an earlier answer otherwise than it was said.

        Raises:
            ModelError: no chat template, or one that cannot be used.
            DataError: the template refuses these messages.
        """
        found = self._chat.sequences(messages, max_tokens, date=date, thinking=thinking, tools=tools)
        for sequence in found:
            self._known(sequence.tokens)
        return found

    def chat_prompt(
        self,
        messages: Messages,
        *,
        date: datetime.date = TEMPLATE_DATE,
        thinking: bool = False,
        tools: Sequence[Any] | None = None,
    ) -> list[int]:
        """A conversation up to where the assistant speaks next, as :meth:`chat` has it before an answer.

        Raises:
            ModelError: no chat template, or one that cannot be used.
            DataError: the template refuses these messages.
        """
        return self._known(self._chat.prompt(messages, date=date, thinking=thinking, tools=tools))

    def chat_ends(self, *, thinking: bool = False) -> list[int]:
        """Ids of the tokens by which training ends an answer."""
        return self._chat.ends(thinking=thinking)

    def chat_arguments(self, *, thinking: bool = False) -> dict[str, Any]:
        """The arguments that the chat template gets in training and prediction."""
        return dict(self._chat.turn(thinking=thinking).arguments)

    def _known(self, tokens: list[int]) -> list[int]:
        """``tokens``, each of which the model's embedding has a row for.

        Raises:
            DataError: one of them was added to the tokenizer alone.
        """
        if self.vocabulary is not None and (beyond := max(tokens, default=0)) >= self.vocabulary:
            raise DataError(
                f"tokenizer of {self._name}",
                expected=f"tokens with ids below {self.vocabulary}, the rows of the model's embedding",
                got=f"{self._tokenizer.convert_ids_to_tokens(beyond)!r}, id {beyond}",
                hint="Take the text out, or enlarge the model with resize_token_embeddings and save it.",
            )
        return tokens

    @cached_property
    def _control(self) -> frozenset[int]:
        """Ids of the tokens that are no text: all special ones but the one for what is unknown."""
        known = self._tokenizer.added_tokens_decoder
        special = {*self._tokenizer.all_special_ids, *(i for i, token in known.items() if token.special)}
        unknown = {self._tokenizer.unk_token_id} if self._reads_as_unknown else set()
        return frozenset(int(i) for i in special) - unknown

    @cached_property
    def _reads_as_unknown(self) -> bool:
        """Whether text that the model does not know becomes the token that is named for it.

        Models that spell all text in bytes name one all the same, often the end of a text (GPT-2, SmolLM2).
        """
        unknown, name = self._tokenizer.unk_token_id, self._tokenizer.unk_token
        if unknown in self._tokenizer(_RARE, add_special_tokens=False)["input_ids"]:
            return True
        model = self._tokenizer.backend_tokenizer.model if self._tokenizer.is_fast else None
        if model is not None and getattr(model, "unk_token", name) != name:
            return False
        roles = [role for role, token in self._tokenizer.special_tokens_map.items() if token == name]
        return roles == ["unk_token"]

    @cached_property
    def _plain(self) -> PlainText:
        return PlainText(self._tokenizer, self._name, self._control)

    @cached_property
    def _chat(self) -> Chat:
        return Chat(self._tokenizer, self.template, self._name, sorted(self._control))


def _draws(tokenizer: PreTrainedTokenizerBase) -> str:
    """That a tokenizer draws at random how it cuts, if it does: subword regularisation left switched on."""
    dropout = getattr(tokenizer.backend_tokenizer.model, "dropout", None) if tokenizer.is_fast else None
    if dropout:
        return f"BPE dropout {dropout:g}"
    text = " ".join(["international understanding of characteristics"] * 20)
    first, *others = (tokenizer(text, verbose=False)["input_ids"] for _ in range(4))
    return "other tokens for the same text" if any(ids != first for ids in others) else ""


def _before(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that a tokenizer puts before a text by itself: ``[gMASK] <sop>`` with GLM, ``</s>`` with XGLM."""
    whole = [int(i) for i in tokenizer("a")["input_ids"]]
    text = [int(i) for i in tokenizer("a", add_special_tokens=False)["input_ids"]]
    starts = (n for n in range(len(whole)) if text and whole[n : n + len(text)] == text)
    known = whole[:1] == [tokenizer.bos_token_id]  # where "a" cannot be found in it
    return whole[: next(starts, int(known))]
