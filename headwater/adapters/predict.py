"""Use an exported adapter: :class:`Predictor`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from headwater.adapters.base import Base, load_base
from headwater.adapters.export import HEAD
from headwater.adapters.generation import generate, padded, room_of
from headwater.adapters.model import Batch, Output, output_of
from headwater.adapters.network import Network, new_head
from headwater.adapters.notes import Notes
from headwater.adapters.reading.chat_template import Messages
from headwater.adapters.reading.segments import separator_of
from headwater.adapters.reading.settings import Reading, ends_of
from headwater.adapters.reports import listening
from headwater.config.data import CausalLMData, ClassificationData, InstructionData, Seq2SeqData
from headwater.config.partitions import FilesPartition
from headwater.errors import DataError, ModelError
from headwater.tasks.batches import Example
from headwater.tasks.table import AnyTask, task_of

_UNRECORDED = 512
"""Tokens read of a text with an adapter that does not say how many training read."""


@dataclass(frozen=True)
class Predictor:
    """Base, adapter and head from an exported folder, for inference. Make it with :meth:`open`.

    Texts are read as training read them: cut where it cut, with the template, date and ends that it used.

    Args:
        base: the base model.
        network: base, adapter and head.
        reading: how rows are read; None if the folder was written before that was recorded.
        notes: what the folder says of its training.
        room: tokens that a text and its answer may have together; None where the base sets no bound.
        ends: ids that end an answer.
        notices: what the user should know, one sentence each.
    """

    base: Base
    network: Network
    reading: Reading | None
    notes: Notes
    room: int | None
    ends: tuple[int, ...]
    notices: tuple[str, ...] = ()

    @staticmethod
    def open(folder: Path, *, base: str | None = None) -> Predictor:
        """Load the adapter in ``folder``.

        Args:
            folder: written by ``export``.
            base: the base model, if it is no longer where the folder says (which is relative to the
                working directory).

        Raises:
            ModelError: not such a folder, or other base weights than the adapter was trained on.
        """
        who = f"adapter {folder}"
        notes = Notes.read(folder, base)
        settings, labels = notes.base, notes.labels
        loaded = load_base(settings, Path.cwd(), labels=labels, head_in_adapter=True)
        reading = None if notes.rows is None else Reading.read(notes.rows, loaded.tokenizer, who)
        try:
            with listening(who, settings.accept_warnings) as heard:
                peft = PeftModel.from_pretrained(loaded.model, str(folder), is_trainable=False)
            head = None
            if notes.pooled:
                values = load_file(folder / HEAD)
                head = new_head(values["weight"].shape[1], values["weight"].shape[0], loaded.device)
                head.load_state_dict(values)
        except ModelError:
            raise
        except Exception as error:  # PEFT and torch raise bare exceptions of many types
            raise ModelError(
                who, expected="an adapter that PEFT loads on this base", got=str(error)
            ) from error
        drops = settings.pooled and peft.active_peft_config.is_prompt_learning
        virtual = getattr(peft.active_peft_config, "num_virtual_tokens", None) or 0
        separator = separator_of(loaded.model.config, loaded.tokenizer, drops=drops)
        needs = None if reading is None else reading.data.needs
        network = Network(peft, settings, head, separator, each_token=needs == "tokens").eval()
        network.requires_grad_(False)
        return Predictor(
            base=loaded,
            network=network,
            reading=reading,
            notes=notes,
            room=None if (most := room_of(loaded)) is None else most - virtual,
            ends=tuple(ends_of(loaded.model, loaded.tokenizer, reading)) if settings.writes else (),
            notices=(
                *loaded.notices,
                *heard.notices,
                *(() if notes.rows is not None else (_unrecorded(who, labels is not None),)),
            ),
        )

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the head's outputs; None for a causal model."""
        return self.notes.labels

    @cached_property
    def task(self) -> AnyTask:
        """What was learnt from rows."""
        return _task(self.reading, self.labels)

    @property
    def max_tokens(self) -> int:
        """Tokens that a classifier reads of a text: as many as in training."""
        most = _UNRECORDED if self.reading is None else self.reading.data.max_tokens
        return most if self.room is None else min(most, self.room)

    def forward(self, batch: Batch) -> Output:
        """Logits and losses of ``batch``, as in evaluation."""
        tokens, mask = batch.tokens.to(self.base.device), batch.mask.to(self.base.device)
        logits = self.network(tokens, mask, batch.targets)
        return output_of(self.task, logits, batch.targets.to(logits.device))

    def classify(
        self, texts: Sequence[str], *, batch_size: int = 32, max_tokens: int | None = None
    ) -> list[dict[str, Any]]:
        """What the task says of each text, of which no more than ``max_tokens`` are read.

        Args:
            texts: the texts.
            batch_size: rows at a time; it changes no result but for rounding.
            max_tokens: as many as in training if None.

        Returns:
            For each text the task's answer: of a classifier ``label``, its ``score`` (probability), and
            ``scores`` of all labels.

        Raises:
            ModelError: the adapter is of a causal model.
            DataError: a text without a token.
        """
        if self.reading is not None and self.reading.pairs:
            raise DataError(
                "texts",
                expected="pairs of texts, which the adapter was trained on",
                got="texts alone",
                hint="Give a file of rows: --file.",
            )
        most = self.max_tokens if max_tokens is None else min(max_tokens, self.room or max_tokens)
        rows = []
        for number, text in enumerate(texts, start=1):
            # as in training, what the model puts around every text is none
            read = text.strip() and self.base.tokenizer.encode_plain(text)
            rows.append(self.base.tokenizer.encode(text, most) if read else [])
            if not rows[-1]:
                raise DataError(
                    f"text {number}",
                    expected="a text with at least one token for this model",
                    got="an empty text" if not text.strip() else repr(text[:40]),
                    hint="Take it out.",
                )
        return self.classify_tokens(rows, batch_size=batch_size)

    def classify_tokens(self, rows: Sequence[Sequence[int]], *, batch_size: int = 32) -> list[dict[str, Any]]:
        """As :meth:`classify`, for texts that are tokens already.

        Raises:
            ModelError: the adapter is of a causal model.
        """
        if self.labels is None:
            raise ModelError("classify", expected="a classifier", got="a causal model", hint="Use generate.")
        results: list[dict[str, Any]] = []
        for start in range(0, len(rows), batch_size):
            with torch.no_grad():
                group = rows[start : start + batch_size]
                logits = self.network(*padded(group, self.base.tokenizer.pad, self.base.device))
            results += self.task.answers(logits.double())
        return results

    @property
    def writes(self) -> bool:
        """Whether it answers in text of its own."""
        return self.base.settings.writes

    def replies(self, asked: Sequence[Sequence[Example]], *, batch_size: int = 32) -> list[dict[str, Any]]:
        """What a task with outputs for each token says of rows.

        Args:
            asked: each row's examples, as the task's ``ask`` gives them.
            batch_size: examples at a time; it changes no result but for rounding.
        """
        examples = [example for own in asked for example in own]
        logits: list[Tensor] = []
        for start in range(0, len(examples), batch_size):
            group = examples[start : start + batch_size]
            rows = [e.tokens.tolist() for e in group]
            with torch.no_grad():
                found = self.network(*padded(rows, self.base.tokenizer.pad, self.base.device)).double()
            logits += [own[: len(row)] for own, row in zip(found, rows, strict=True)]
        each = iter(logits)
        return [self.task.reply(own, [next(each) for _ in own]) for own in asked]

    def generate(
        self, prompts: Sequence[str], max_new_tokens: int = 128, *, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """A continuation of each prompt: an answer in the chat template if trained on instructions.

        One prompt at a time, so that no padding can change a result.

        Args:
            prompts: texts.
            max_new_tokens: length of an answer at most.
            temperature: 0 takes the likeliest token each time; above, tokens are drawn.
            seed: of the draws; torch's global generator is left as it was.

        Raises:
            ModelError: the adapter is of a classifier, or prompt and answer are more than the base takes.
        """
        if not self.writes:
            raise ModelError("generate", expected="a causal model", got="a classifier", hint="Use classify.")
        return [
            self.continue_tokens(
                self.prompt(prompt), max_new_tokens, temperature=temperature, seed=seed, name=prompt[:40]
            )
            for prompt in prompts
        ]

    def prompt(self, text: str) -> list[int]:
        """The tokens that a causal model is asked with: training has them before what follows ``text``."""
        if self.reading is not None and isinstance(self.reading.data, Seq2SeqData):
            data = self.reading.data
            return self.base.tokenizer.encode(data.prefix + text, data.max_tokens)
        if not self.notes.chat:
            return self.base.tokenizer.prompt(text)
        system = [{"role": "system", "content": self.notes.system}] if self.notes.system else []
        return self.chat_prompt([*system, {"role": "user", "content": text}])

    def chat_prompt(self, messages: Messages, tools: Sequence[Any] | None = None) -> list[int]:
        """The tokens that ask for the next answer of a conversation."""
        if self.reading is None or not isinstance(self.reading.data, InstructionData):
            return self.base.tokenizer.chat_prompt(messages, tools=tools)
        data = self.reading.data
        return self.base.tokenizer.chat_prompt(messages, date=data.date, thinking=data.thinking, tools=tools)

    def continue_tokens(
        self,
        row: Sequence[int],
        max_new_tokens: int = 128,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        name: str = "",
    ) -> str:
        """What the model says after ``row``, up to an end or ``max_new_tokens``. As :meth:`generate`.

        Raises:
            ModelError: no token to begin with, or more than the base takes.
        """
        tokenizer = self.base.tokenizer
        if not row:
            raise ModelError(
                f"prompt {name!r}",
                expected="at least one token",
                got="none: this model puts nothing before a text",
                hint="Give it a text to go on from.",
            )
        if self.room is not None and len(row) + max_new_tokens > self.room:
            raise ModelError(
                f"prompt {name!r}",
                expected=f"at most {self.room} tokens with the answer",
                got=f"{len(row)} and {max_new_tokens} new ones",
                hint="Shorten the prompt, or ask for a shorter answer.",
            )
        said = generate(
            self.network, self.base, row, self.ends, max_new_tokens, temperature=temperature, seed=seed
        )
        if not self.notes.chat:
            return tokenizer.decode(said).strip()
        thinking = self.reading is not None and getattr(self.reading.data, "thinking", False)
        return tokenizer.answer(said, thinking=thinking)


def _task(reading: Reading | None, labels: tuple[str, ...] | None) -> AnyTask:
    """What the adapter learnt; of one that does not say what rows were, by whether it has labels."""
    if reading is not None:
        return task_of(reading.data)
    nowhere = FilesPartition(kind="files")
    if labels is None:
        return task_of(CausalLMData(kind="causal-lm", path="-", partition=nowhere))
    return task_of(ClassificationData(kind="classification", path="-", partition=nowhere, labels=labels))


def _unrecorded(who: str, classifier: bool) -> str:
    if classifier:
        return f"{who} does not say how many tokens training read of a text: {_UNRECORDED} are read here"
    return (
        f"{who} does not say how training ended an answer and what date its template saw: today's rules hold"
    )
