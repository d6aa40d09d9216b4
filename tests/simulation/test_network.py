"""The processes of a local deployment: whose code they run."""

from __future__ import annotations

from headwater.simulation.network import LocalProcess


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
