"""What transformers and PEFT say: :func:`listening`.

Each warning of theirs about a base or an adapter is either known here, with the reason why nothing is wrong
(:data:`HANDLED`), or it is an error that quotes it. None goes unheard.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Sequence

from transformers.utils import logging as transformers_logging

from headwater.errors import ModelError

HANDLED: tuple[tuple[str, str], ...] = (
    ("LOAD REPORT", ""),  # its content is examined name by name, in headwater.adapters.base
    # adapters.base takes ids from the tokenizer and adapters.tokenizer holds them against the embedding
    (r"_token_id must be `None` or an integer within the vocabulary", ""),
    # adapters.attach passes the direction that each kind of layer needs
    (r"fan_in_fan_out is set to", ""),
    # adapters.base looks at which tensors are one in memory, whatever the configuration says
    (r"so we will NOT tie them", "The files hold two different tensors where the configuration ties them"),
    (r"falling back to its reference PyTorch implementation", "Slower than with its own kernels"),
    # adapters.network reads a decoder's scores at the last token that the mask names
    (r"will not detect padding tokens in `inputs_embeds`", ""),
    # the trial proves that no row depends on its padding
    (r"automatically padded to be a multiple of `config.attention_window`", ""),
    (r"Initializing global attention on CLS token", ""),
    (r"`attention_mask` was passed, but it is unused in this model", ""),
    # the ratio is the factor, and the trial finds up to where rows stay alone with it
    (r"to be used together with `max_position_embeddings` to determine a scaling factor", ""),
    (r"does not match the ratio implicitly set by other parameters", "The configuration's own factor counts"),
    # with a prompt, positions follow from the cache: tests hold what is generated against a forward pass
    (r"Position ids are not supported for parameter efficient tuning", ""),
    # adapters.attach refuses targets whose tensor is another module's too
    (r"`tie_word_embeddings=True` and a tied layer is part of the adapter", ""),
    # adapters.attach requires every linear layer to be adapted where all are asked for
    (r"The following (rank|alpha)_pattern keys did not match any targeted module", ""),
)
"""Patterns of messages that are taken care of, and what the user is told of each; nothing if empty."""

ADVICE: tuple[tuple[str, str], ...] = (
    (r"add `is_decoder=True", 'It reads in both directions: use model.kind = "encoder", or a decoder.'),
    (
        r"[Aa]ttention type 'block_sparse'",
        'Set "attention_type": "original_full" in its config.json: this base changes its attention by the '
        "length of a row, for good.",
    ),
)
"""Patterns of messages whose cause is known, and what to do about it."""


class Heard:
    """What the libraries said inside :func:`listening`.

    Attributes:
        notices: what the user should know, one sentence each.
        said: what was logged so far, unjudged.
    """

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.said: list[str] = []

    def mismatches(self) -> str:
        """The lines of a loading report about tensors of another shape, to which errors only point."""
        lines = (line for message in self.said for line in message.splitlines() if "MISMATCH" in line)
        return "; ".join(" ".join(re.sub(r"\x1b\[[0-9;]*m|\|", " ", line).split()) for line in lines)[:300]


@contextlib.contextmanager
def listening(who: str, accept: Sequence[str] = ()) -> Iterator[Heard]:
    """Inside, what transformers and PEFT warn of is collected; at the end it is judged.

    Deprecations are passed over: they tell the libraries' callers of later versions, not of this model.
    Warnings of files and processes that nobody closed are told on.

    Args:
        who: which base or adapter, for messages.
        accept: parts of messages that the user accepts (``model.accept_warnings``); they become notices.

    Raises:
        ModelError: a warning that is neither in :data:`HANDLED` nor accepted.
    """
    heard = Heard()

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.said.append(record.getMessage())

    log = logging.getLogger("transformers")
    handlers, propagate, level = log.handlers[:], log.propagate, log.level
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    # each process is told once; the second model of a process must hear it too
    transformers_logging.warning_once.cache_clear()
    log.handlers, log.propagate = [Ear(logging.WARNING)], False
    _set_level(log, logging.WARNING)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield heard
    finally:
        log.handlers, log.propagate = handlers, propagate
        _set_level(log, level)
        if bars:
            transformers_logging.enable_progress_bar()
    for warning in caught:
        if issubclass(warning.category, ResourceWarning):  # of whatever garbage was collected meanwhile
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno, source=warning.source
            )
    passed_over = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ResourceWarning)
    said = heard.said + [str(w.message) for w in caught if not issubclass(w.category, passed_over)]
    for message in dict.fromkeys(said):
        heard.notices += _judge(message, who, accept)


def _set_level(log: logging.Logger, level: int) -> None:
    """Nothing where it is so: a change empties the caches of all loggers there are."""
    if log.level != level:
        log.setLevel(level)


def _judge(message: str, who: str, accept: Sequence[str]) -> list[str]:
    """The notice that a message leads to, if any."""
    short = " ".join(message.split())[:300]
    for pattern, notice in HANDLED:
        if re.search(pattern, message):
            return [f"{who}: {notice}: {short}"] if notice else []
    if any(part and part in message for part in accept):
        return [f"{who}: accepted: {short}"]
    advice = next((told for pattern, told in ADVICE if re.search(pattern, message)), "Mend its cause.")
    raise ModelError(
        who,
        expected="a model and an adapter of which transformers and PEFT warn of nothing",
        got=f"a warning: {short}",
        hint=f"{advice} If you know that the warning does no harm, add a part of its text to "
        "model.accept_warnings (to use an exported adapter, to base.accept_warnings in its headwater.json).",
    )
