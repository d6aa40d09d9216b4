"""load: a federation from a file or from Python's own tables and rows. Imports no torch."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from headwater.config.agent import NAME
from headwater.config.load import LoadedFederation, federation_of, read_tables
from headwater.errors import DataError
from headwater.files import write_atomically

Rows = Iterable[Mapping[str, Any]]


def load(
    source: str | Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    *,
    rows: Mapping[str, Rows] | None = None,
    test: Rows | None = None,
    folder: str | Path | None = None,
) -> LoadedFederation:
    """A federation, checked.

    Args:
        source: a federation file, or its tables as a mapping: ``{"federation": {"rounds": 3, ...}, ...}``.
        overrides: ``table.key=value`` strings; the value is TOML, or a bare string.
        rows: by client, its rows. They are written as JSONL to ``rows-HASH`` in ``folder``, a file a client,
            and ``data.path`` and ``data.partition`` say so.
        test: the server's held-out rows, written likewise; ``data.test`` says so.
        folder: where relative paths start; the file's folder, or the current one for tables.

    Raises:
        ConfigError: names the key, what was expected and what was got.
        DataError: a client's name that is no file's name, or a row that is no JSON.
        StorageError: the rows cannot be written.
    """
    if isinstance(source, Mapping):
        raw, name = copy.deepcopy(dict(source)), "federation"
        start = Path(folder or ".")
    else:
        raw, name = read_tables(Path(source)), str(source)
        start = Path(folder) if folder is not None else Path(source).parent
    start = start.resolve()
    if rows is not None:
        data = raw.setdefault("data", {})
        data["path"], data["partition"] = _written(rows, start / "rows"), {"kind": "files"}
    if test is not None:
        raw.setdefault("data", {})["test"] = f"{_written({'test': test}, start / 'test')}/test.jsonl"
    return federation_of(raw, overrides, folder=start, name=name)


def _written(rows: Mapping[str, Rows], stem: Path) -> str:
    """Write each client's rows; the folder's name, which has their hash: other rows are another folder."""
    files = {f"{_name(client)}.jsonl": _lines(client, own) for client, own in rows.items()}
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    folder = stem.with_name(f"{stem.name}-{digest.hexdigest()[:12]}")
    for name, content in files.items():
        write_atomically(folder / name, content)
    return folder.name


def _name(client: str) -> str:
    if not NAME.fullmatch(client):
        raise DataError(
            f"client {client!r}",
            expected="a name of 1 to 64 letters, digits, '.', '_' and '-', a letter or digit first",
            got="another one",
        )
    return client


def _lines(client: str, rows: Rows) -> bytes:
    lines = []
    for number, row in enumerate(rows, start=1):
        try:
            lines.append(json.dumps(dict(row), ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise DataError(
                f"client {client}, row {number}",
                expected="texts, numbers and lists of them, by column",
                got=str(error)[:200],
            ) from None
    return "".join(f"{line}\n" for line in lines).encode()
