"""Reading: how rows become tokens, as an exported adapter remembers it.

Training, evaluation and prediction read rows by the same settings. They travel in ``headwater.json``, so that
what predicts long after the federation has ended cuts, asks and ends as training did.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedModel

from headwater.adapters.reading.chat_template import clock
from headwater.adapters.reading.tokenizer import TextTokenizer
from headwater.config.data import BaseData, CausalLMData, Data, InstructionData, NoData, TextData
from headwater.config.federation import Federation
from headwater.errors import ModelError
from headwater.seeds.keys import Key

_ELSEWHERE = {"path": "-", "partition": {"kind": "files"}}
"""What [data] needs and a reader does not: whose rows they are, and where they lie."""
_DROPPED = {*_ELSEWHERE, "test", "split", "test_split", "validation_fraction", "fraction"}
_DROPPED |= {"max_examples_per_client"}
_SETTINGS: TypeAdapter[Data] = TypeAdapter(Data)


@dataclass(frozen=True)
class Reading:
    """How rows are read.

    Args:
        data: ``[data]``; of its paths and partition nothing is known.
        batch_size: rows that evaluations take at a time.
        test_key: by which ``data.max_test_examples`` are drawn.
        pairs: whether rows are pairs of texts, said or recognised.
    """

    data: BaseData
    batch_size: int
    test_key: Key
    pairs: bool = False

    @staticmethod
    def of(settings: Federation) -> Reading | None:
        """The federation's; None without data."""
        if isinstance(settings.data, NoData):
            return None
        key = Key.root(settings.federation.seed).child("test")
        pairs = _pairs(settings.data)
        return Reading(settings.data, settings.evaluation.batch_size, key, pairs)

    def notes(self, tokenizer: TextTokenizer) -> dict[str, Any]:
        """JSON for ``headwater.json``: all that a reader needs, with or without Headwater."""
        found: dict[str, Any] = {
            "data": self.data.model_dump(mode="json", exclude=_DROPPED),
            "batch_size": self.batch_size,
            "test_key": self.test_key.digest.hex(),
            "begins": tokenizer.prompt(""),
        }
        if isinstance(self.data, TextData) or self.pairs:
            found["pairs"] = self.pairs
        if isinstance(self.data, InstructionData):
            source = tokenizer.template.source()
            found["chat"] = {
                "template_sha256": tokenizer.template.sha256(),
                "template_prefix": clock(self.data.date) if "strftime_now" in source else "",
                "template_arguments": tokenizer.chat_arguments(thinking=self.data.thinking),
                "ends": tokenizer.chat_ends(thinking=self.data.thinking),
            }
        return found

    @staticmethod
    def read(notes: Mapping[str, Any], tokenizer: TextTokenizer, who: str) -> Reading:
        """What :meth:`notes` wrote.

        Raises:
            ModelError: it is none, or this version reads conversations otherwise than was trained.
        """
        try:
            data = read_data(notes["data"])
            key = Key(bytes.fromhex(notes["test_key"]))
            pairs = notes.get("pairs") is True or _pairs(data)
            found = Reading(data, int(notes["batch_size"]), key, pairs)
            was, now = (_turns(n.get("chat")) for n in (notes, found.notes(tokenizer)))
            if was != now:
                raise ModelError(
                    who,
                    expected=f"the chat template's turns as in training: {was}",
                    got=f"{now}",
                    hint="Use the version of Headwater that trained the adapter, or train again.",
                )
            begun, begins = notes.get("begins", tokenizer.before), tokenizer.before
            if isinstance(data, CausalLMData) and begun != begins:
                raise ModelError(
                    who,
                    expected=f"a tokenizer that puts the ids {begun} before a text, as in training",
                    got=f"one that puts {begins}",
                    hint="Use the version of Headwater that trained the adapter, or train again.",
                )
        except (ValidationError, ValueError, KeyError, TypeError, AttributeError) as error:
            got = f"{type(error).__name__}: {error}"
            raise ModelError(who, expected="settings of rows in headwater.json", got=got[:300]) from error
        return found


def read_data(noted: Mapping[str, Any]) -> BaseData:
    """``[data]`` as :meth:`Reading.notes` wrote it.

    Raises:
        ValueError: it is none, or one without rows.
    """
    data = _SETTINGS.validate_json(json.dumps({**_ELSEWHERE, **noted}))
    if isinstance(data, NoData):
        raise ValueError("data.kind 'none' has no rows")
    return data


def _pairs(data: BaseData) -> bool:
    """Whether the settings say that rows are pairs of texts."""
    return getattr(data, "text_pair", None) is not None or (data.inputs or ("", ()))[0] == "pair"


def _turns(chat: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What of a chat's notes must be as in training; how its date is fixed may be said in other words."""
    if chat is None:
        return None
    first = {"ends": chat["ends"][:1]}  # of an answer; adapters of earlier versions say no others
    return {key: chat[key] for key in ("template_sha256", "template_arguments")} | first


def ends_of(model: PreTrainedModel, tokenizer: TextTokenizer, reading: Reading | None) -> list[int]:
    """Ids that end what a causal model says: its own ends, and those that training put after an answer."""
    configured = model.generation_config.eos_token_id
    ends = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos}
    if reading is not None and isinstance(reading.data, InstructionData):
        ends |= set(tokenizer.chat_ends(thinking=reading.data.thinking))
    return sorted(int(end) for end in ends if end is not None)
