"""The processes of a local deployment: whose code they run."""

from __future__ import annotations

import pytest

from headwater.errors import ConfigError
from headwater.simulation.network import LocalProcess
from tests.support.runs import run, tiny_federation


def test_a_folder_called_headwater_where_the_user_stands_is_not_run(tmp_path, monkeypatch):
    (tmp_path / "headwater").mkdir()
    mark = f"from pathlib import Path\nPath({str(tmp_path / 'mark')!r}).touch()\n"
    for file in ("headwater/__init__.py", "headwater/__main__.py", "sitecustomize.py"):
        (tmp_path / file).write_text(mark)
    monkeypatch.chdir(tmp_path)
    process = LocalProcess(["--version"], tmp_path / "log")
    process.start()
    assert process.process.wait(30) == 0
    assert not (tmp_path / "mark").exists()
    assert "headwater" in process.tail()


def test_simulated_devices_are_refused_where_devices_are_real(tmp_path):
    devices = {"phone": {"share": 1.0, "memory_mb": 900}}
    file = tiny_federation(tmp_path / "fed", assignment={"kind": "planner", "devices": devices})
    with pytest.raises(ConfigError, match=r"assignment\.devices.*phone"):
        run(file, tmp_path / "run", engine="network")
