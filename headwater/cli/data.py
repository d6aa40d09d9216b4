"""``headwater data check FILE|DIR|FEDERATION.toml``: what would be trained. No torch without ``--model``."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from headwater.cli.data_view import Checked, as_dict, show
from headwater.config import load_federation
from headwater.config.data import UNKNOWN_LABELS, NoData, data_kind
from headwater.config.load import LoadedFederation, load_data
from headwater.config.partitions import ColumnPartition
from headwater.data.files.folders import Sources, sources
from headwater.data.files.formats import read_chunks
from headwater.data.files.guess import guess
from headwater.data.files.layouts import RowData
from headwater.data.files.problems import Problems
from headwater.data.files.streams import Watch, stem
from headwater.data.files.table import Table
from headwater.data.opened import open_rows
from headwater.data.remarks import unread_splits
from headwater.data.survey import Survey
from headwater.errors import ConfigError
from headwater.seeds.keys import Key

if TYPE_CHECKING:
    from headwater.adapters.reading.tokenizer import TextTokenizer


_PIPED = 1000
"""Characters in a line that no screen bounds."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("action", choices=["check"], help="read it all and say what it is")
    parser.add_argument("path", type=Path, metavar="PATH", help="a data file, a folder, or a federation file")
    parser.add_argument(
        "--model",
        nargs="?",
        const="",
        metavar="MODEL",
        help="count tokens and show rows as this model sees them: a folder or a hub name; of a federation "
        "file its own model if left out",
    )
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override a key")
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def run(options: argparse.Namespace) -> int:
    """Print what is there; raise what is wrong."""
    federation = options.path.suffix.lower() == ".toml"
    checked = _federation(options) if federation else _files(options)
    if options.json:
        print(json.dumps(as_dict(checked), ensure_ascii=True))
    elif checked.survey.owners:
        show(checked, _console())
    checked.problems.raise_any()
    return 0


def _console() -> Console:
    """Standard output; into a file or a pipe every column is written, however many there are."""
    console = Console(highlight=False)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(highlight=False, width=_PIPED)


def _federation(options: argparse.Namespace) -> Checked:
    """The rows of a federation, as a simulation would open them."""
    loaded = load_federation(options.path, options.set, trackers=False)
    settings = loaded.settings.data
    if isinstance(settings, NoData):
        raise ConfigError(str(options.path), expected="a federation with data", got="data.kind 'none'")
    key = Key.root(loaded.settings.federation.seed)
    opened = open_rows(loaded, settings, key)
    survey, test = Survey(settings), None
    warnings = opened.warnings
    if opened.table is not None:
        for name, (train, validation) in sorted(opened.splits.items()):
            survey.add(name, opened.table, [*train, *validation])
    if opened.test is not None:
        test = Survey(settings)
        test.add("test", opened.test, range(len(opened.test)))
    checked = Checked(str(options.path), settings, survey, test, list(warnings))
    checked.splits = {name: (len(t), len(v)) for name, (t, v) in opened.splits.items()}
    checked.read = 0 if opened.table is None else len(opened.table)
    checked.samples = survey.samples
    if options.model is not None:
        from headwater.cli.data_tokens import count_federation

        path = options.model or getattr(loaded.settings.model, "path", "")
        base = Path.cwd() if options.model else loaded.folder
        count_federation(checked, loaded, _tokenizer(path, base, loaded))
    return checked


def _files(options: argparse.Namespace) -> Checked:
    """The rows of files, which stream by."""
    if options.model == "":
        raise ConfigError("--model", expected="a folder or a hub name", got="nothing")
    given: dict[str, object] = {"partition": {"kind": "files"}, "path": str(options.path)}
    first = next(iter(options.set), None)
    said = [text.partition("=")[0].strip() for text in options.set]
    if wrong := [key for key in said if not key.startswith("data.")]:
        raise ConfigError(f"--set {wrong[0]}", expected="a key of [data], as data.kind", got=repr(first))
    found = _sources(options)
    probe = next((table for _, table in read_chunks(found, Problems(), rows=256)), None)
    kind = guess(probe) if probe is not None and "data.kind" not in said else None
    settings: RowData | None = None
    if kind is not None or "data.kind" in said:
        if kind is not None:
            given["kind"] = kind
        known = data_kind(kind or _said(options.set, "data.kind") or "")
        if "data.labels" not in said and known is not None and known.has_labels:
            given["labels"] = list(UNKNOWN_LABELS)
        data = load_data(given, options.set)
        if isinstance(data, NoData):
            raise ConfigError("--set data.kind", expected="a kind with rows", got="'none'")
        settings = data
    survey = Survey(settings)
    problems = Problems()
    with _watched(found, "reading") as watch:
        for owner, table, rows in _owned(found, settings, problems, watch):
            survey.add(owner, table, rows)
    checked = Checked(str(options.path), settings, survey, None, [])
    checked.files, checked.samples = len(found.files), survey.samples
    checked.read = survey.rows + survey.problems.count + problems.count
    checked.unread_splits = unread_splits(found, [])
    problems.extend(survey.problems)
    checked.problems = problems
    if settings is not None and getattr(settings, "labels", ()) == UNKNOWN_LABELS:
        names = sorted({label for owner in survey.owners.values() for label in owner.labels})
        settings = settings.model_copy(update={"labels": tuple(names) or UNKNOWN_LABELS})
    if options.model is not None and settings is not None and survey.rows:
        from headwater.cli.data_tokens import count_rows

        with _watched(found, "tokens") as watch:
            unread = Problems()
            rows_of = _owned(found, settings, unread, watch)
            count_rows(checked, settings, _tokenizer(options.model, Path.cwd(), None), rows_of, unread)
    return checked


def _sources(options: argparse.Namespace) -> Sources:
    split = _said(options.set, "data.split")
    return sources(options.path, split)


def _said(sets: list[str], key: str) -> str | None:
    """The value of ``key`` in ``--set``, as a plain string."""
    values = [text.partition("=")[2].strip() for text in sets if text.partition("=")[0].strip() == key]
    return values[-1].strip("\"'") if values else None


def _owned(
    found: Sources, settings: RowData | None, problems: Problems, watch: Watch
) -> Iterator[tuple[str, Table, list[int]]]:
    """Rows, piece by piece, with whose they are: by file, or by the column of the partition."""
    column = None
    if settings is not None and isinstance(settings.partition, ColumnPartition):
        column = settings.partition.column
    for index, table in read_chunks(found, problems, watch):
        if column is None:
            yield stem(found.files[index]), table, list(range(len(table)))
            continue
        owners: dict[str, list[int]] = {}
        for row in range(len(table)):
            name = problems.attempt(lambda table=table, row=row: table.name(column, row))  # type: ignore[misc]  # bound at once
            if name is not None:
                owners.setdefault(name, []).append(row)
        for name, rows in owners.items():
            yield name, table, rows


@contextmanager
def _watched(found: Sources, what: str) -> Iterator[Watch]:
    """A bar of bytes on standard error, on a terminal."""
    console = Console(stderr=True)
    files = [file for source in found.files for file in ([source] if source.is_file() else source.rglob("*"))]
    total = sum(file.stat().st_size for file in files if file.is_file())
    if not console.is_terminal or total < 2**23:
        yield lambda count: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


def _tokenizer(path: str, folder: Path, loaded: LoadedFederation | None) -> TextTokenizer:
    from headwater.adapters.reading.tokenizer import TextTokenizer
    from headwater.adapters.weights import resolve_base

    revision = getattr(loaded.settings.model, "revision", None) if loaded is not None else None
    return TextTokenizer.load(resolve_base(path, revision, folder), path)
