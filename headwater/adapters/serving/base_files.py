"""BaseFiles: the base model's folder: its configuration, and where in its files the adapted weights are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater.adapters.serving.traits import Subject
from headwater.adapters.weights import resolve_base, weight_files
from headwater.config.origin import base_of_run
from headwater.errors import ModelError
from headwater.merging.offline.peft_config import read_json
from headwater.merging.offline.tensor_file import TensorFile

BESIDE = ("*.json", "*.model", "*.txt", "*.jinja", "*.spm", "*.tiktoken", "*.bpe", "*.codes")
"""Files of a base that a merged model has too, beside its weights."""

INDEX = "model.safetensors.index.json"
"""The list of a model's shards."""


@dataclass(frozen=True)
class BaseFiles:
    """A base model on disk, of which single weights are read.

    Args:
        folder: where it is.
        config: ``config.json``.
    """

    folder: Path
    config: Mapping[str, Any]

    @staticmethod
    def find(subject: Subject, given: str | None) -> BaseFiles:
        """The base of an adapter.

        Args:
            subject: the adapter; what it says of its base is taken where nothing is given.
            given: a folder or a hub name.

        Raises:
            ModelError: it is not found.
        """
        noted, place = _told(subject)
        place = given or place
        if not isinstance(place, str) or not place:
            raise ModelError(f"{subject.path}", expected="--base DIR", got="an adapter that names no base")
        revision = None if given else noted.get("revision") or subject.config.get("revision")
        folder = resolve_base(place, revision, Path.cwd())
        config = read_json(folder / "config.json", folder)
        return BaseFiles(folder, config.get("text_config") or config)

    @staticmethod
    def beside(subject: Subject) -> BaseFiles | None:
        """The base where the adapter says that it is, if that is a folder here: nothing is fetched.

        Raises:
            ModelError, DecodeError: a folder that holds no model.
        """
        _, place = _told(subject)
        if not isinstance(place, str) or not place or not Path(place).expanduser().is_dir():
            return None
        return BaseFiles.find(subject, place)

    def files(self) -> list[TensorFile]:
        """The files of weights."""
        return [TensorFile(path) for path in weight_files(self.folder)]

    def names(self, modules: list[str], files: list[TensorFile]) -> dict[str, str] | None:
        """The tensors of modules' weights, by name there; None if one of them is not there as it is.

        A file that a larger model wrote has a prefix that the adapted model lacks, or the other way round.
        """
        there = {name for file in files for name in file.tensors}
        found: dict[str, str] = {}
        for module in modules:
            own = f"{module}.weight"
            if own not in there:
                own = re.sub(r"^[^.]+\.", "", own)
            if own not in there:
                longer = [name for name in there if name.endswith(f".{module}.weight")]
                if len(longer) != 1:
                    return None
                own = longer[0]
            found[own] = module
        return found if len(found) == len(modules) else None


def _told(subject: Subject) -> tuple[Mapping[str, Any], Any]:
    """What the adapter's notes say of its base, and the place that it names."""
    noted = {} if subject.adapter is None else subject.adapter.notes.get("base") or {}
    named = noted.get("path") or subject.config.get("base_model_name_or_path")
    return noted, (base_of_run(subject.path) if subject.path.is_dir() else None) or named
