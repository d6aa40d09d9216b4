"""Parquet files and `datasets` folders: :func:`read_parquet`, :func:`read_datasets_folder`.

A folder written by ``Dataset.save_to_disk`` is Arrow streams and two JSON files, so pyarrow alone reads
it. What `datasets` adds, class labels stored as integers, is in the schema's metadata: such a column is
read as the labels' names. Rows come batch by batch, and what they unpack to is bounded.
"""

from __future__ import annotations

import datetime
import decimal
import importlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from headwater.data.files.sniff import HEAD, binary_kind
from headwater.data.files.streams import ALWAYS_UNPACKED, MOST_TIMES, Watch
from headwater.data.files.table import Row
from headwater.errors import DataError, MissingDependency

if TYPE_CHECKING:
    import pyarrow

BATCH = 1024
"""Rows that are unpacked at a time."""


def read_parquet(path: Path, watch: Watch | None = None) -> Iterator[Row]:
    """Rows of a Parquet file, numbered from 1. Lists and structs become lists and objects.

    Raises:
        MissingDependency: pyarrow is not installed.
        DataError: the file is not Parquet, or unpacks to too much.
    """
    arrow = _pyarrow(path)
    import pyarrow.parquet as parquet

    try:
        size = path.stat().st_size
        with parquet.ParquetFile(path) as file:
            metadata = file.schema_arrow.metadata
            yield from _rows(file.iter_batches(BATCH), metadata, path, size, watch)
    except (arrow.ArrowException, OSError) as error:
        kind = None if isinstance(error, FileNotFoundError | PermissionError) else _kind(path)
        got = f"{_first_line(error)}{f': it is {kind}' if kind else ''}"
        raise DataError(str(path), expected="a Parquet file", got=got) from None


def read_datasets_folder(path: Path, watch: Watch | None = None) -> Iterator[Row]:
    """Rows of a folder saved by ``Dataset.save_to_disk``.

    Raises:
        MissingDependency: pyarrow is not installed.
        DataError: a part is missing, or is not what it should be.
    """
    state = read_json_object(path / "state.json")
    if state.get("_indices_data_files"):
        raise DataError(
            str(path),
            expected="a folder saved by datasets 2.0 or later",
            got="rows selected by a separate index",
            hint="Save it again with `datasets.load_from_disk(...).save_to_disk(...)`.",
        )
    arrow = _pyarrow(path)
    first = 0
    for part in _parts(path, state):
        try:
            with arrow.OSFile(str(part)) as source, arrow.ipc.open_stream(source) as batches:
                metadata = batches.schema.metadata
                for row in _rows(batches, metadata, path, part.stat().st_size, watch, first):
                    first = row[0]
                    yield row
        except (arrow.ArrowException, OSError) as error:
            raise DataError(str(part), expected="an Arrow stream", got=_first_line(error)) from None


def read_json_object(path: Path) -> dict[str, Any]:
    """One of the JSON files of a `datasets` folder.

    Raises:
        DataError: it is missing or is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            str(path), expected="a JSON file of a `datasets` folder", got=_first_line(error)
        ) from None
    if not isinstance(content, dict):
        raise DataError(str(path), expected="a JSON object", got=type(content).__name__)
    return content


def _parts(path: Path, state: dict[str, Any]) -> list[Path]:
    entries = state.get("_data_files", [])
    names = (
        [e.get("filename") if isinstance(e, dict) else None for e in entries]
        if isinstance(entries, list)
        else [None]
    )
    for name in names:
        # the file may come from anyone: it names files beside itself and no others
        if not isinstance(name, str) or Path(name).name != name:
            raise DataError(
                str(path / "state.json"), expected="names of files beside it", got=f"{name!r:.60}"
            )
    return [path / str(name) for name in names]


def _rows(
    batches: Iterable[pyarrow.RecordBatch],
    metadata: dict[bytes, bytes] | None,
    path: Path,
    size: int,
    watch: Watch | None,
    first: int = 0,
) -> Iterator[Row]:
    labels = _class_labels(metadata or {})
    limit, unpacked, number = max(ALWAYS_UNPACKED, MOST_TIMES * size), 0, first
    for batch in batches:
        _require_unique(batch.schema.names, path)
        unpacked += batch.nbytes
        if unpacked > limit:
            raise DataError(
                str(path),
                expected=f"a file that unpacks to at most {MOST_TIMES} times its size",
                got=f"more than {limit:,} bytes",
                hint="If this is right, save it in several files.",
            )
        columns = batch.to_pydict()
        for i in range(batch.num_rows):
            number += 1
            yield number, _row(columns, i, labels, f"{path} row {number}")
        if watch is not None:
            watch(batch.nbytes)


def _require_unique(names: list[str], path: Path) -> None:
    """Refuse two columns of one name, of which pyarrow would hand on the last."""
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DataError(str(path), expected="columns of different names", got=f"{twice[0]!r:.60} twice")


def _row(
    columns: dict[str, list[object]], i: int, labels: dict[str, list[str]], where: str
) -> dict[str, object] | DataError:
    row: dict[str, object] = {}
    for name, values in columns.items():
        value = values[i]
        if (names := labels.get(name)) is None:
            row[name] = _plain(value)
            continue
        try:
            row[name] = [_named(v, names) for v in value] if isinstance(value, list) else _named(value, names)
        except ValueError as error:
            return DataError(where, expected=f"one of {len(names)} classes in {name!r}", got=str(error))
    return row


def _named(value: object, names: list[str]) -> str | None:
    """The name of a class; None for -1, which `datasets` writes for "no label"."""
    if value is None or value == -1:
        return None
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise ValueError(f"{value!r:.60}")
    return names[value]


def _plain(value: object) -> object:
    """``value`` as JSON would hold it. A struct's absent fields, which Arrow fills up, are left out."""
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        if value and all(isinstance(v, tuple) and len(v) == 2 for v in value):  # a map
            return {str(k): _plain(v) for k, v in value if v is not None}
        return [_plain(v) for v in value]
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | decimal.Decimal):
        return str(value)
    return value


def _class_labels(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Names of the classes, by column, of every column of ``ClassLabel`` or of lists of them."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        inner = {name: _element(feature) for name, feature in features.items()}
        return {
            name: [str(n) for n in feature["names"]]
            for name, feature in inner.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _element(feature: object) -> object:
    """What a list of `datasets` holds, in the ways in which its versions write that; else the feature."""
    if isinstance(feature, list) and len(feature) == 1:
        return feature[0]
    if isinstance(feature, dict) and feature.get("_type") in ("Sequence", "List", "LargeList"):
        return feature.get("feature")
    return feature


def _kind(path: Path) -> str | None:
    """What a file is that is no whole Parquet file, if its first bytes say something else."""
    with path.open("rb") as stream:
        kind = binary_kind(stream.read(HEAD))
    return None if kind == "a Parquet file" else kind


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
