"""One tiny base with three adapters for all tests of this room."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwater.tasks.batches import Example
from headwater.training.merging.network import RowsNetwork
from headwater.training.merging.rows import rows_of_files
from tests.training.merging import cases


@pytest.fixture(scope="package")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the base ``bert``, adapters ``a0`` to ``a2`` and ``twin`` of ``a0``, and rows."""
    folder = tmp_path_factory.mktemp("rows")
    cases.adapters(folder, 3)
    (folder / "twin").mkdir()
    for file in (folder / "a0").iterdir():
        (folder / "twin" / file.name).write_bytes(file.read_bytes())
    cases.rows(folder / "rows.jsonl")
    cases.rows(folder / "other.jsonl", 6, start=100)
    cases.rows(folder / "texts.jsonl", labelled=False)
    return folder


@pytest.fixture(scope="package")
def pair(place: Path) -> RowsNetwork:
    """Two adapters of ranks 2 and 3."""
    return cases.network([place / "a0", place / "a1"], place / "bert")


@pytest.fixture(scope="package")
def twins(place: Path) -> RowsNetwork:
    """Twice the same adapter."""
    return cases.network([place / "a0", place / "twin"], place / "bert")


@pytest.fixture(scope="package")
def rows(place: Path, pair: RowsNetwork) -> list[list[Example]]:
    """Nine rows and six others."""
    return rows_of_files(pair.predictor, [place / "rows.jsonl", place / "other.jsonl"], labelled=True)
