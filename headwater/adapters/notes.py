"""Notes: what ``headwater.json`` of an exported adapter says, read as anybody's file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from headwater.adapters.base import PretrainedSettings
from headwater.adapters.export import FORMAT, NOTES
from headwater.config.model import MODELS
from headwater.errors import ModelError

_SETTINGS: TypeAdapter[PretrainedSettings] = TypeAdapter(PretrainedSettings)


@dataclass(frozen=True)
class Notes:
    """What an adapter says of itself.

    Args:
        base: ``[model]`` that it was trained on, with its hash.
        labels: names of the classes; None for a causal model.
        chat: whether it was trained on instructions.
        system: the system message of that training, if any.
        pooled: whether a head lies beside it, which reads the mean of the tokens or each of them.
        rows: how rows are read; None if it was written before that was recorded.
    """

    base: PretrainedSettings
    labels: tuple[str, ...] | None
    chat: bool
    system: str | None
    pooled: bool
    rows: Mapping[str, Any] | None

    @staticmethod
    def read(folder: Path, base: str | None) -> Notes:
        """The notes in ``folder``; with ``base``, of the same base model in another place.

        Raises:
            ModelError: not a folder that ``export`` wrote, or one without a base model.
        """
        who = f"adapter {folder}"
        try:
            notes = json.loads((folder / NOTES).read_text(encoding="utf-8"))
            model = MODELS.get(notes["kind"])
            if notes["format"] != FORMAT or (model is not None and not model.pretrained):
                raise ModelError(who, expected=f"a {FORMAT} folder with a base model", got=notes["kind"])
            settings = {**notes["base"], "path": base or notes["base"]["path"]}
            rows = notes.get("rows")
            if not (rows is None or isinstance(rows, dict)):
                raise TypeError(f"rows: {rows!r:.40}")
            return Notes(
                base=_SETTINGS.validate_json(json.dumps(settings)),
                labels=None if notes["labels"] is None else tuple(map(str, notes["labels"])),
                chat=bool(notes["chat"]),
                system=None if notes["system"] is None else str(notes["system"]),
                pooled=notes["pooling"] is not None,
                rows=rows,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            raise ModelError(
                who,
                expected=f"a folder with {NOTES}",
                got=f"{type(error).__name__}: {error}",
                hint="Give the adapter/ folder of a run.",
            ) from error
