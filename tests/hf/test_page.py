"""docs/how-to/use-your-trainer.md, run as it stands."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from tests.support.runs import rows, write_jsonl
from tests.support.tiny_models import tiny_bert

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "use-your-trainer.md"


@pytest.mark.parametrize("name", ["simulate.py", "function.py"])
def test_the_pages_scripts_run(tmp_path, monkeypatch, capsys, name):
    for title, text in re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGE.read_text(), re.M | re.S):
        (tmp_path / title).write_text(text)
    tiny_bert(tmp_path / "base")
    (tmp_path / "clients").mkdir()
    for owner in ("ann", "ben"):
        write_jsonl(tmp_path / "clients" / f"{owner}.jsonl", rows(owner, 8))
    write_jsonl(tmp_path / "test.jsonl", rows("dora", 8))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(tmp_path / name), run_name="__main__")
    assert re.search(r"3: [01]\.\d+\}", capsys.readouterr().out)
