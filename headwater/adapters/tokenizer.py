"""TextTokenizer: texts and conversations as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from headwater.errors import ModelError

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class ChatTokens:
    """One sequence of a conversation.

    Args:
        tokens: ids.
        loss: for each whether it has loss.
        cut: whether tokens beyond the limit were cut off.
        cut_answer: whether the cut took the end of an answer.
        remarks: what else was done to the messages: kinds of ``headwater.data.row_report``.
    """

    tokens: list[int]
    loss: list[bool]
    cut: bool = False
    cut_answer: bool = False
    remarks: tuple[str, ...] = ()

    @staticmethod
    def within(
        tokens: list[int], loss: list[bool], max_tokens: int, remarks: tuple[str, ...] = ()
    ) -> ChatTokens:
        """``tokens`` cut to ``max_tokens``."""
        cut = len(tokens) > max_tokens
        cut_answer = cut and loss[max_tokens]
        return ChatTokens(tokens[:max_tokens], loss[:max_tokens], cut, cut_answer, remarks)


class TextTokenizer:
    """The base model's tokenizer, as the data room wants it.

    Args:
        tokenizer: a transformers tokenizer.
        name: the base model, for messages.

    Attributes:
        pad: id that fills short rows; the end-of-sequence id where the model has no own (it is masked).
        bos: id that the model's own encoding puts before a sequence, if it does.
        eos: id that ends a sequence, if the model has one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self._tokenizer, self._name = tokenizer, name
        begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        self.bos: int | None = tokenizer.bos_token_id if begins else None
        self.eos: int | None = tokenizer.eos_token_id
        pad = tokenizer.pad_token_id
        self.pad: int = int(pad if pad is not None else self.eos if self.eos is not None else 0)

    @staticmethod
    def load(folder: Path, name: str) -> TextTokenizer:
        """The tokenizer in ``folder``.

        Raises:
            ModelError: there is none, or it needs code of its own.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
                # transformers 5 makes one that knows no word where the files are missing
                raise ValueError(f"a vocabulary of {len(tokenizer)} special tokens alone")
            return TextTokenizer(tokenizer, name)
        except Exception as error:  # the tokenizer libraries raise bare exceptions of many types
            raise ModelError(
                f"tokenizer of {name}", expected="tokenizer files beside the weights", got=str(error)
            ) from error

    def encode(self, text: str, max_tokens: int, pair: str | None = None) -> list[int]:
        """``text``, or it and its pair, with the model's special tokens, cut to ``max_tokens``.

        The special tokens stay; of a pair the longer text is cut first.
        """
        return list(self._tokenizer(text, pair, truncation=True, max_length=max_tokens)["input_ids"])

    def encode_plain(self, text: str) -> list[int]:
        """``text`` alone, of any length."""
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens`` without special tokens."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def chat(
        self, messages: Messages, max_tokens: int, *, tools: Sequence[Any] | None = None
    ) -> list[ChatTokens]:
        """A conversation in the model's chat template.

        Args:
            messages: ``role`` and ``content`` each.
            max_tokens: what is beyond is cut off.
            tools: JSON schemas of functions, for the template.

        Returns:
            The tokens, and for each whether the assistant said it: its answers up to and including
            the token that ends the turn, without the template's header before them.

        Raises:
            ModelError: no chat template, or one that rewrites what came before an answer.
        """
        text = self._render(messages, prompt=False)
        spans = self._answer_spans(messages, text)
        encoded = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=self._tokenizer.is_fast, verbose=False
        )
        tokens = list(encoded["input_ids"])
        if not self._tokenizer.is_fast:
            return [ChatTokens.within(*self._chat_by_segments(text, spans), max_tokens)]
        said = [False] * len(tokens)
        for start, end in spans:
            inside = [
                i for i, (a, b) in enumerate(encoded["offset_mapping"]) if b > start and a < end and b > a
            ]
            for i in self._through_end_of_turn(tokens, inside):
                said[i] = True
        return [ChatTokens.within(tokens, said, max_tokens)]

    def chat_prompt(self, messages: Messages) -> list[int]:
        """A conversation up to where the assistant speaks next.

        Raises:
            ModelError: no chat template.
        """
        return self.encode_plain(self._render(messages, prompt=True))

    def _render(self, messages: Messages, *, prompt: bool) -> str:
        if not getattr(self._tokenizer, "chat_template", None):
            raise ModelError(
                f"tokenizer of {self._name}",
                expected="a chat template, which data.kind 'instruction' needs",
                got="none",
                hint='Use an instruction-tuned model, or data.kind = "causal-lm".',
            )
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [dict(m) for m in messages], tokenize=False, add_generation_prompt=prompt
                )
            )
        except Exception as error:  # jinja errors: what the template's author chose to raise
            roles = [m.get("role") for m in messages]
            raise ModelError(
                f"chat template of {self._name}", expected="messages it accepts", got=f"{roles}: {error}"
            ) from error

    def _answer_spans(self, messages: Messages, text: str) -> list[tuple[int, int]]:
        """Character ranges of the answers in ``text``, found by rendering ever longer prefixes.

        Templates that mark generations are rare, so none is asked for. A generation prompt may say
        more than the finished turn (an opened <think>): the answer starts where the two part.
        """
        spans = []
        for i, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            upto = self._render(messages[: i + 1], prompt=False)
            before = _common_prefix(self._render(messages[:i], prompt=True), upto) if i else ""
            header = self._render(messages[:i], prompt=False) if i else ""
            if not (text.startswith(upto) and before.startswith(header)):
                raise ModelError(
                    f"chat template of {self._name}",
                    expected="turns that stay as they are when the conversation goes on",
                    got=f"a template that rewrites them (message {i + 1} of {len(messages)})",
                    hint="Give one question and one answer per example.",
                )
            spans.append((len(before), len(upto)))
        return spans

    def _through_end_of_turn(self, tokens: list[int], inside: list[int]) -> list[int]:
        """``inside`` without what the template puts after the last special token, such as a newline."""
        special = set(self._tokenizer.all_special_ids)
        last = max((n for n, i in enumerate(inside) if tokens[i] in special), default=len(inside) - 1)
        return inside[: last + 1]

    def _chat_by_segments(self, text: str, spans: list[tuple[int, int]]) -> tuple[list[int], list[bool]]:
        """:meth:`chat` for tokenizers that know no offsets: each stretch is tokenised alone."""
        tokens: list[int] = []
        said: list[bool] = []
        position = 0
        for start, end in [*spans, (len(text), len(text))]:
            header, answer = self.encode_plain(text[position:start]), self.encode_plain(text[start:end])
            kept = len(self._through_end_of_turn(answer, list(range(len(answer)))))
            tokens += header + answer
            said += [False] * len(header) + [True] * kept + [False] * (len(answer) - kept)
            position = end
        return tokens, said


def _common_prefix(left: str, right: str) -> str:
    end = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
    return left[: min(len(left), len(right)) if end is None else end]
