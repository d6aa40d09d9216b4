"""whole_output(): a folder of an adapter, whole or absent; :func:`place_of`: whether it may be written."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from headwater.errors import ConfigError, StorageError
from headwater.files import whole_folder
from headwater.merging.offline.peft_config import CONFIG


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file of an adapter's folder."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, sort_keys=True, default=str)
        file.write("\n")


@contextlib.contextmanager
def whole_output(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``out`` once it is full; nothing of it stays where that fails."""
    try:
        with whole_folder(out) as temporary:
            yield temporary
    except OSError as error:
        raise StorageError(
            f"writing {out}",
            expected="room in a folder that can be written",
            got=error.strerror or str(error),
            hint="Nothing was written.",
        ) from error


class OnDisk(Protocol):
    """An adapter that lies somewhere."""

    @property
    def path(self) -> Path:
        """Its folder or file."""


def place_of(
    out: Path, named: Sequence[OnDisk], *, overwrite: bool, marks: Sequence[str] = (CONFIG,)
) -> Path:
    """Where ``out`` is; refused if content would be lost, or if an adapter of the merge is there.

    Args:
        out: the folder to write.
        named: adapters that are read.
        overwrite: whether a folder with one of ``marks`` in it may be replaced.
        marks: names of files.
    """
    who = f"--output {out}"
    try:
        place = out.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise StorageError(who, expected="a place for a folder", got=str(error)) from error
    for folder in named:
        mine = folder.path.resolve()
        if place == mine or place in mine.parents or mine in place.parents:
            raise ConfigError(
                who,
                expected="a folder outside of the adapters'",
                got=f"one that shares files with {folder.path}",
            )
    if not os.path.lexists(out):
        return place
    if not overwrite:
        raise ConfigError(
            who,
            expected="a folder that is not there yet",
            got="one that is",
            hint="Name another, or add --overwrite.",
        )
    if (
        out.is_symlink()
        or not out.is_dir()
        or (any(out.iterdir()) and not any((out / mark).is_file() for mark in marks))
    ):
        raise ConfigError(
            who,
            expected="an adapter's folder, which --overwrite may replace",
            got="something else",
            hint="Name another, or remove it yourself.",
        )
    return place
