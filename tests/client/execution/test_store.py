"""Where feedback lies on disk: any name that a client can have, and disks that do not obey."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from headwater.client.execution.store import DirectoryStore
from headwater.compression.feedback import FeedbackState
from headwater.data.files.table import check_name
from headwater.errors import DataError, StorageError
from headwater.files import write_atomically
from headwater.state import AdapterState, StateSpec, TensorSpec

SPEC = StateSpec((TensorSpec("v", (4,), "vector"),))


def state(value):
    return FeedbackState(AdapterState.from_vector(SPEC, torch.full((4,), float(value))))


def value(found):
    return found.residual.vector()[0].item()


@pytest.mark.parametrize("character", ["医", "😀", "ж", "a", "."])
@pytest.mark.parametrize("durable", [True, False])
def test_names_of_any_script_are_kept_apart(tmp_path, character, durable):
    store = DirectoryStore(tmp_path, durable=durable)
    names = [character * 63 + last for last in ("1", "2", character)]  # alike far beyond any prefix
    for i, name in enumerate(names):
        check_name(name, "x")
        assert store.load(name, SPEC) == FeedbackState()
        store.save(name, state(i))
    assert [value(store.load(name, SPEC)) for name in names] == [0, 1, 2]
    assert len(list(tmp_path.iterdir())) == 3
    again = DirectoryStore(tmp_path)  # as after a restart
    assert [value(again.load(name, SPEC)) for name in names] == [0, 1, 2]


def allowed(name):
    try:
        return bool(check_name(name, "x"))
    except DataError:
        return False


NAMES = st.text(min_size=1, max_size=64).filter(allowed)


@given(one=NAMES, two=NAMES)
@example(one="/" * 64, two="医" * 64)
@example(one="..", two=".")
def test_every_name_has_a_file_of_its_own(one, two):
    store = DirectoryStore(Path("folder"))
    files = [store._path(name) for name in (one, two)]
    for file in files:
        assert file.parent == Path("folder")
        assert len(file.name.encode()) <= 200  # leaves room for what write_atomically puts around it
    assert (files[0] == files[1]) == (one == two)


def test_readable_names_stay_readable():
    assert DirectoryStore(Path())._path("edge 7").name == "edge%207.feedback"
    name = "больница номер семь"
    assert DirectoryStore(Path())._path(name).name == quote(name, safe="") + ".feedback"


def test_what_cannot_be_read_is_a_storage_error(tmp_path):
    store = DirectoryStore(tmp_path)
    store._path("ann").mkdir()
    with pytest.raises(StorageError, match=r"ann\.feedback.*directory"):
        store.load("ann", SPEC)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="Not a directory"):
        DirectoryStore(tmp_path / "file").load("ann", SPEC)


def test_a_name_too_long_to_write_is_a_storage_error(tmp_path):
    """The temporary file's name is too long as well, and its removal must not hide the error."""
    with pytest.raises(StorageError, match="File name too long"):
        write_atomically(tmp_path / ("x" * 300), b"")
