"""Answers that the model writes to test rows, beside the true ones: :func:`with_answers`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from headwater.adapters.generation import generate, room_of
from headwater.adapters.reading.settings import ends_of
from headwater.config.data import InstructionData
from headwater.tasks.batches import Example
from headwater.tasks.rouge import rouge

if TYPE_CHECKING:
    from headwater.adapters.model import AdaptedModel
    from headwater.training.evaluate import Measured


def with_answers(
    model: AdaptedModel,
    measured: Measured,
    groups: Mapping[str, Measured],
    examples: Sequence[Example],
    *,
    max_tokens: int,
) -> tuple[Measured, dict[str, Measured]]:
    """Metrics with ROUGE of the answers to ``examples``, which the model writes token by token, greedily.

    Args:
        model: with the state to measure loaded.
        measured: the metrics so far.
        groups: those of each group; one that none of the examples is of stays as it is.
        examples: of a task that says what is asked (:meth:`headwater.tasks.task.Task.asked`).
        max_tokens: of an answer; fewer where the base has no more positions.

    Raises:
        ModelError: transformers or PEFT warn of something that is not known to be harmless.
    """
    scores = [(example.group, rouge(*_texts(model, example, max_tokens))) for example in examples]

    def more(found: Measured, of: str | None) -> Measured:
        own = [score for group, score in scores if of in (None, group)]
        means = {name: math.fsum(s[name] for s in own) / len(own) for name in own[0]} if own else {}
        return found[0], {**found[1], **means}

    return more(measured, None), {group: more(found, group) for group, found in groups.items()}


def _texts(model: AdaptedModel, example: Example, max_tokens: int) -> tuple[str, str]:
    """The true answer, and what the model says."""
    asked, truth = model.task.asked(example)
    ends = ends_of(model.base.model, model.base.tokenizer, model.reading)
    room = room_of(model.base)
    most = max_tokens if room is None else min(max_tokens, room - model.virtual_tokens - len(asked))
    said = generate(model.network, model.base, asked, ends, most) if asked and most > 0 else []
    true, own = (_decoded(model, tokens) for tokens in (truth, said))
    return true, own


def _decoded(model: AdaptedModel, tokens: Sequence[int]) -> str:
    """As ``headwater predict`` shows it."""
    data, tokenizer = model.task.settings, model.base.tokenizer
    if isinstance(data, InstructionData):
        return tokenizer.answer(tokens, thinking=data.thinking)
    return tokenizer.decode(tokens).strip()
