"""The public names, and the page's example, run as it stands."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import headwater
from headwater.errors import ConfigError, DataError, ModelError
from headwater.simulation.run import Run
from tests.support.runs import run as simulated
from tests.support.runs import tiny_federation
from tests.support.tiny_models import tiny_bert

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
PUBLIC = {
    "AdapterState", "Aggregator", "Codec", "CohortTrainer", "Federation", "HeadwaterError",
    "LoadedFederation", "Predictor", "Run", "StateSpec", "hf", "load", "local_training",
    "merge", "simulate", "sweep",
}  # fmt: skip
"""What other programs may count on. A name leaves this list in no minor version."""
TABLES = {
    "federation": {"name": "t", "rounds": 1},
    "model": {"kind": "encoder", "path": "bert"},
    "adapter": {"kind": "lora"},
    "data": {"kind": "classification", "labels": ["bad", "good"]},
    "training": {"kind": "backprop"},
}


def test_the_public_names_are_these_and_are_there():
    assert set(headwater.__all__) == PUBLIC
    assert set(dir(headwater)) == {*PUBLIC, "__version__"}
    for name in PUBLIC:
        assert getattr(headwater, name).__doc__, name


def test_type_checkers_are_told_the_same():
    stub = ast.parse((ROOT / "headwater" / "__init__.pyi").read_text())
    homes = {
        alias.asname: node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert homes == headwater._HOMES


def test_the_page_names_each():
    text = PAGE.split("```python")[0]
    assert all(re.search(rf"`{name}[`(]", text) for name in PUBLIC)
    assert len(re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL).split()) <= 300


def test_another_name_is_an_error_that_lists_them():
    with pytest.raises(AttributeError, match=r"no attribute 'merg'; it has AdapterState, .*simulate"):
        headwater.merg  # noqa: B018 - the attribute is the point


def loaded_after(code: str) -> set[str]:
    heavy = "{m for m in ('torch', 'numpy', 'flwr', 'pydantic', 'transformers') if m in sys.modules}"
    code = f"import sys\n{code}\nprint(*{heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_headwater_loads_nothing_and_load_no_torch():
    assert loaded_after("import headwater") == set()
    assert loaded_after("import headwater; headwater.HeadwaterError") == set()
    assert loaded_after("from headwater import Federation, load") == {"pydantic"}


def test_rows_in_memory_are_written_once_for_what_they_are(tmp_path):
    rows = {"ann": [{"text": "ä", "label": "bad"}], "ben": [{"text": "b", "label": "good"}]}
    first = headwater.load(TABLES, rows=rows, test=rows["ann"], folder=tmp_path)
    again = headwater.load(TABLES, rows=rows, test=rows["ann"], folder=tmp_path)
    assert first.sha256() == again.sha256()
    other = headwater.load(TABLES, rows={**rows, "ben": rows["ann"]}, folder=tmp_path)
    assert other.settings.data.path != first.settings.data.path
    written = first.path(first.settings.data.path)
    assert sorted(p.name for p in written.iterdir()) == ["ann.jsonl", "ben.jsonl"]
    assert json.loads((written / "ann.jsonl").read_text()) == rows["ann"][0]
    assert first.path(first.settings.data.test).is_file()
    assert TABLES["data"].keys() == {"kind", "labels"}  # the caller's tables are the caller's


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"../ann": []}, r"client '\.\./ann': expected a name"),
        ({"ann": [{"text": float("nan")}]}, "client ann, row 1"),
        ({"ann": [{"text": "a"}, {"text": b"b"}]}, "client ann, row 2"),
    ],
)
def test_rows_that_no_file_holds_are_refused_by_client_and_row(rows, said, tmp_path):
    with pytest.raises(DataError, match=said):
        headwater.load(TABLES, rows=rows, folder=tmp_path)


def test_tables_are_checked_as_a_file_is(tmp_path):
    wrong = {**TABLES, "training": {"kind": "backprop", "learning_rate": -1.0}}
    with pytest.raises(ConfigError, match=r"federation: training\.learning_rate: .*greater than 0"):
        headwater.load(wrong, rows={"ann": []}, folder=tmp_path)
    file = tiny_federation(tmp_path / "fed")
    assert headwater.load(file, ["federation.rounds=7"]).settings.federation.rounds == 7


def test_a_run_is_read_from_its_folder(tmp_path):
    summary, _ = simulated(tiny_federation(tmp_path / "fed"), tmp_path / "run", "federation.rounds=1")
    run = Run.open(tmp_path / "run")
    assert run.summary == json.loads(json.dumps(summary))
    assert [row["round"] for row in run.rounds] == [0, 1]
    assert run.metric == "accuracy"
    assert run.values == {row["round"]: row["test"]["accuracy"] for row in run.rounds}
    (tmp_path / "run" / "adapter").rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="the run has not ended"):
        run.predictor()


def test_the_pages_example_runs(tmp_path):
    ((name, code),) = re.findall(r'^```python title="([^"]+)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / name).write_text(code)
    tiny_bert(tmp_path / "minilm")
    plain = {**os.environ, "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, name], cwd=tmp_path, env=plain, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"3 rounds, \d+ bytes up", lines[0])
    assert (tmp_path / "metric.png").exists() or lines[1].startswith("accuracy {0: ")
    assert [line.split()[0] in ("good", "bad") for line in lines[-2:]] == [True, True]
    assert headwater.Run.open(tmp_path / "run").summary["adapter_sha256"]
