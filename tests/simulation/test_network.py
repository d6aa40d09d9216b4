"""The processes of a local deployment: whose code they run."""

from __future__ import annotations

import pytest

from headwater.config import load_federation
from headwater.errors import DataError
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.network import LocalProcess, split_data
from headwater.simulation.simulate import simulate
from tests.support.runs import rows, tiny_federation, write_jsonl


def test_a_folder_called_headwater_where_the_user_stands_is_not_run(tmp_path, monkeypatch):
    (tmp_path / "headwater").mkdir()
    mark = f"from pathlib import Path\nPath({str(tmp_path / 'mark')!r}).touch()\n"
    for file in ("headwater/__init__.py", "headwater/__main__.py", "sitecustomize.py"):
        (tmp_path / file).write_text(mark)
    monkeypatch.chdir(tmp_path)
    process = LocalProcess(["--version"], tmp_path / "log")
    process.start()
    assert process.process.wait(100) == 0
    assert not (tmp_path / "mark").exists()
    assert "headwater" in process.tail()


@pytest.mark.parametrize("name", ["../../../../evil", "a/b", "..", "ann smith", "é"])
def test_a_clients_name_is_no_path(tmp_path, name):
    file = tiny_federation(tmp_path / "fed")
    write_jsonl(tmp_path / "fed" / "train.jsonl", [*rows(name, 20), *rows("ben", 20)])
    with pytest.raises(DataError, match=r"client .*expected a name for a device.*engine inprocess"):
        split_data(load_federation(file), tmp_path / "run" / "network" / "data")
    assert [p.name for p in tmp_path.rglob("*.jsonl") if p.parent.name != "fed"] == []


def test_bad_rows_of_all_owners_are_said_before_anything_is_started(tmp_path, monkeypatch):
    file = tiny_federation(tmp_path / "fed")
    write_jsonl(
        tmp_path / "fed" / "train.jsonl", [*rows("ann", 20), {"text": "x", "label": "ugly", "owner": "ben"}]
    )
    loaded = load_federation(file)
    folder = RunFolder.create(tmp_path / "run", loaded, {"engine": "network"})
    monkeypatch.setattr(LocalProcess, "start", lambda self: pytest.fail("started"))
    with pytest.raises(DataError, match=r"train.jsonl:21: expected one of the labels"):
        simulate(loaded, folder, engine="network")
