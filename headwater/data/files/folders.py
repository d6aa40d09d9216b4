"""Which files hold the rows of a path: :func:`sources` of a file, a folder, a folder with splits.

A folder is one of: files of rows (one for each owner, say); a folder saved by `datasets`, or several; a
folder with splits, as ``save_to_disk`` of a ``DatasetDict`` and repositories of data sets have them
(``data/train-00000-of-00002.parquet``, ``train/…``, ``train.jsonl`` beside ``test.jsonl``), or as the card
of a repository lists them (:mod:`headwater.data.files.cards`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from headwater.data.files.arrow import read_json_object
from headwater.data.files.cards import listed_splits
from headwater.data.files.problems import Problems
from headwater.data.files.streams import suffixes
from headwater.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
KNOWN = "a .jsonl, .json, .csv, .tsv or .parquet file, a folder of them, or a folder saved by `datasets`"
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test",
           "validation": "validation", "valid": "validation", "val": "validation",
           "dev": "validation"}  # fmt: skip
_SPLIT_NAME = re.compile(rf"({'|'.join(_SPLITS)})(?:-\d{{5}}-of-\d{{5}})?(?:-[0-9a-f]{{8,}})?")
_NOT_DATA = re.compile(r"\..*|.*\.md|dataset_infos\.json|LICEN[CS]E.*", re.IGNORECASE)


@dataclass(frozen=True)
class Sources:
    """The files of a path.

    Args:
        files: files, and folders saved by `datasets`, in the order in which they are read.
        split: the split that was chosen; None where the path has none.
        unread: the splits that are there too, which nobody reads.
        unlisted: data files that the folder's card does not list.
    """

    files: tuple[Path, ...]
    split: str | None = None
    unread: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()


def sources(path: Path, split: str | None = None, *, default: str = "train") -> Sources:
    """The files to read, in the order of their names.

    Args:
        path: a file or folder.
        split: of a folder with splits, this one; a path without splits is then refused.
        default: the split where none is named.

    Raises:
        DataError: nothing there, no such split, or something that is no data.
    """
    try:
        found = _sources(path, split, default)
    except OSError as error:
        raise DataError(str(path), expected="a readable path", got=error.strerror or str(error)) from None
    if split is not None and found.split is None:
        raise DataError(
            str(path), expected=f"a folder with a split {split!r}", got="no splits",
            hint="Take the split out of [data], or name the folder above.",
        )  # fmt: skip
    return found


def is_datasets_folder(path: Path) -> bool:
    """Whether ``Dataset.save_to_disk`` wrote it."""
    return (path / "state.json").is_file()


def is_split_name(name: str) -> bool:
    """Whether a file or folder of this name would be a split's."""
    return _SPLIT_NAME.fullmatch(name.lower()) is not None


def _sources(path: Path, split: str | None, default: str) -> Sources:
    if not path.exists():
        raise DataError(
            str(path),
            expected=KNOWN,
            got="nothing there",
            hint="Check the path; in a federation file it starts at that file's folder.",
        )
    if path.is_file() or is_datasets_folder(path):
        return Sources((path,))
    if not path.is_dir():
        raise DataError(str(path), expected=KNOWN, got="a device or a pipe", hint="Write it to a file first.")
    if (path / "dataset_dict.json").is_file():
        names = read_json_object(path / "dataset_dict.json").get("splits", [])
        names = [n for n in names if isinstance(n, str)] if isinstance(names, list) else []
        return _chosen(path, {n: [path / Path(n).name] for n in names}, split, default)
    if (listed := listed_splits(path)) is not None:
        return _of_card(path, listed, split, default)
    entries = sorted((p for p in path.iterdir() if not _NOT_DATA.fullmatch(p.name)), key=lambda p: p.name)
    if not entries:
        raise DataError(str(path), expected=KNOWN, got="an empty folder")
    if (splits := _splits(entries)) is not None:
        return _chosen(path, splits, split, default)
    return Sources(tuple(_data(entries)))


def _of_card(path: Path, listed: dict[str, list[Path]], split: str | None, default: str) -> Sources:
    files = {n: _data([p for p in found if not _NOT_DATA.fullmatch(p.name)]) for n, found in listed.items()}
    known = {file for of in files.values() for file in of}
    there = [p for p in sorted(path.rglob("*")) if p.is_file() and suffixes(p)[0] in SUFFIXES]
    left = [
        p.relative_to(path).as_posix() for p in there if p not in known and not _NOT_DATA.fullmatch(p.name)
    ]
    return replace(_chosen(path, files, split, default), unlisted=tuple(left))


def _splits(entries: list[Path]) -> dict[str, list[Path]] | None:
    """Files by split, where every entry is one of a split; a folder ``data`` may be around them."""
    if len(entries) == 1 and entries[0].name == "data" and entries[0].is_dir():
        inner = sorted(entries[0].iterdir(), key=lambda p: p.name)
        entries = [p for p in inner if not _NOT_DATA.fullmatch(p.name)]
    found: dict[str, list[Path]] = {}
    for entry in entries:
        plain = entry.name[: -len("".join(suffixes(entry)))] if entry.is_file() else entry.name
        name = _SPLIT_NAME.fullmatch(plain.lower())
        if name is None:
            return None
        files = [entry] if entry.is_file() or is_datasets_folder(entry) else _below(entry)
        found.setdefault(_SPLITS[name[1]], []).extend(files)
    # one owner may be called "train"; a split has others beside it, or a name that says so
    alone = len(entries) == 1 and entries[0].is_file() and "-of-" not in entries[0].name
    return None if not found or alone else found


def _below(folder: Path) -> list[Path]:
    entries = sorted(folder.iterdir(), key=lambda p: p.name)
    return _data([p for p in entries if not _NOT_DATA.fullmatch(p.name)])


def _chosen(path: Path, splits: dict[str, list[Path]], split: str | None, default: str) -> Sources:
    wanted = split or default
    if wanted not in splits:
        key = "data.test_split" if default == "test" else "data.split"
        raise DataError(
            str(path),
            expected=f"a split named {wanted!r}",
            got=f"the splits {', '.join(map(repr, splits))}",
            hint=f"Name one with {key}, or give its folder as the path.",
        )
    return Sources(tuple(splits[wanted]), wanted, tuple(sorted(splits.keys() - {wanted})))


def _data(entries: list[Path]) -> list[Path]:
    """``entries``, if all of them are data; else all that are not, at once."""
    problems = Problems()
    for entry in entries:
        problems.attempt(lambda entry=entry: _require_data(entry))  # type: ignore[misc]  # bound at once
    problems.raise_any()
    return entries


def _require_data(entry: Path) -> Path:
    if is_datasets_folder(entry) or (entry.is_file() and suffixes(entry)[0] in SUFFIXES):
        return entry
    raise DataError(
        str(entry),
        expected="only .jsonl, .json, .csv, .tsv and .parquet files in a data folder (or packed: .gz, .xz, "
        ".bz2, .zst)",
        got="a folder" if entry.is_dir() else "another file",
        hint="Give that folder as the path, or move its files up; only folders of splits are looked into."
        if entry.is_dir()
        else "Move it elsewhere, so that nothing is left out of the training unseen.",
    )
