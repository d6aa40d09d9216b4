"""Parquet files and `datasets` folders: :func:`read_parquet`, :func:`read_datasets_folder`.

A folder written by ``Dataset.save_to_disk`` is Arrow streams and two JSON files, so pyarrow alone reads
it. What `datasets` adds, class labels stored as integers, is in the schema's metadata: such a column is
read as the labels' names.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from headwater.data.table import Row
from headwater.errors import DataError, MissingDependency

if TYPE_CHECKING:
    import pyarrow


def read_parquet(path: Path) -> Iterator[Row]:
    """Rows of a Parquet file, numbered from 1.

    Raises:
        MissingDependency: pyarrow is not installed.
        DataError: the file is not Parquet.
    """
    arrow = _pyarrow(path)
    import pyarrow.parquet as parquet

    try:
        # partitioning=None: a folder called a=b above the file is not a column of it
        table = parquet.read_table(path, partitioning=None)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(str(path), expected="a Parquet file", got=_first_line(error)) from None
    yield from _rows(table, path)


def read_datasets_folder(path: Path) -> Iterator[Row]:
    """Rows of a folder saved by ``Dataset.save_to_disk``; of a ``DatasetDict``, its split ``train``.

    Raises:
        MissingDependency: pyarrow is not installed.
        DataError: a part is missing, or is not what it should be.
    """
    if (path / "dataset_dict.json").is_file():
        splits = _json(path / "dataset_dict.json").get("splits", [])
        if "train" not in splits:
            raise DataError(
                str(path),
                expected="a split named 'train'",
                got=f"the splits {', '.join(map(repr, splits))}",
                hint="Give the folder of one split as the path.",
            )
        path = path / "train"
    state = _json(path / "state.json")
    if state.get("_indices_data_files"):
        raise DataError(
            str(path),
            expected="a folder saved by datasets 2.0 or later",
            got="rows selected by a separate index",
            hint="Save it again with `datasets.load_from_disk(...).save_to_disk(...)`.",
        )
    arrow = _pyarrow(path)
    parts = []
    for entry in state.get("_data_files", []):
        part = path / entry["filename"]
        try:
            with arrow.OSFile(str(part)) as source:
                parts.append(arrow.ipc.open_stream(source).read_all())
        except (arrow.ArrowException, OSError) as error:
            raise DataError(str(part), expected="an Arrow stream", got=_first_line(error)) from None
    if parts:
        yield from _rows(arrow.concat_tables(parts), path)


def _rows(table: pyarrow.Table, path: Path) -> Iterator[Row]:
    names = _class_labels(table.schema.metadata or {})
    columns: dict[str, list[object]] = {}
    for name, values in table.to_pydict().items():
        labels = names.get(name)
        columns[name] = [_label(v, labels, path, name, i) for i, v in enumerate(values)] if labels else values
    for i in range(table.num_rows):
        yield i + 1, {name: values[i] for name, values in columns.items()}


def _class_labels(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Names of the classes, by column, of every ``ClassLabel`` column."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
    }


def _label(value: object, labels: list[str], path: Path, column: str, row: int) -> object:
    if value is None or value == -1:  # `datasets` writes -1 for "no label"
        return None
    if not isinstance(value, int) or not 0 <= value < len(labels):
        raise DataError(
            f"{path} row {row + 1}", expected=f"one of {len(labels)} classes in {column!r}", got=repr(value)
        )
    return labels[value]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            str(path), expected="a JSON file of a `datasets` folder", got=_first_line(error)
        ) from None
    if not isinstance(content, dict):
        raise DataError(str(path), expected="a JSON object", got=type(content).__name__)
    return content


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _pyarrow(path: Path) -> ModuleType:
    try:
        importlib.import_module("pyarrow.ipc")
        return importlib.import_module("pyarrow")
    except ImportError:
        raise MissingDependency(
            str(path),
            expected="the package pyarrow, to read this format",
            got="nothing",
            hint="Install it with `pip install headwater[simulation]`, or save the data as JSONL or CSV.",
        ) from None
