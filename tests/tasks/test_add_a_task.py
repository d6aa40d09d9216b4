"""The task of docs/how-to/add-a-task.md, as its user sees it; tests/docs/test_how_to.py builds it too."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tomli_w

from headwater.config.data import lower_is_better
from headwater.config.load import load_federation
from headwater.errors import ConfigError
from tests.support.command import headwater
from tests.support.federations import adapter
from tests.support.plugins import installed_in, write_package
from tests.support.runs import run, write_jsonl
from tests.support.tiny_models import tiny_bert

PAGE = Path(__file__).parents[2] / "docs/how-to/add-a-task.md"
SHOWN = re.search(
    r'^```python title="headwater_ordinal.py"\n(.*?)^```$', PAGE.read_text(), re.DOTALL | re.MULTILINE
)
SCALE = ["low", "middle", "high"]


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    assert SHOWN is not None
    points = {"tasks": {"ordinal": "headwater_ordinal:OrdinalData"}}
    write_package(folder, "headwater_ordinal", SHOWN[1], points)
    with installed_in(folder):
        yield


def federation(folder, **changes):
    folder.mkdir()
    tiny_bert(folder / "bert")
    rows = [{"text": f"well the movie {i % 7}", "label": SCALE[i % 3]} for i in range(30)]
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "test.jsonl", rows[:12])
    content = {
        "federation": {"name": "t", "rounds": 2, "seed": 1},
        "model": {"kind": "encoder", "path": "bert"},
        "adapter": adapter("lora", "bert"),
        "data": {
            "kind": "ordinal", "scale": SCALE, "path": "train.jsonl", "test": "test.jsonl",
            "partition": {"kind": "iid", "clients": 2},
        },
        "training": {"kind": "backprop", "learning_rate": 0.01, "batch_size": 4},
        "baselines": {"majority": True},
        **changes,
    }  # fmt: skip
    (folder / "federation.toml").write_text(tomli_w.dumps(content))
    return folder / "federation.toml"


def test_a_federation_runs_with_it_and_predict_says_the_same(tmp_path):
    summary, _ = run(federation(tmp_path / "fed"), tmp_path / "run")
    assert summary["metric"]["name"] == "steps_off"
    assert summary["metric"]["best"] <= summary["metric"]["start"]
    assert summary["baselines"]["majority"] == pytest.approx(2 / 3)
    found = headwater(
        "predict", tmp_path / "run/adapter", "--file", tmp_path / "fed/test.jsonl", "--metric", "--json"
    )
    assert json.loads(found.out)["steps_off"] == pytest.approx(summary["metric"]["best"], rel=1e-6)
    assert headwater("predict", tmp_path / "run/adapter", "a movie").out.split("\t")[0] in SCALE


def test_a_metric_of_a_package_has_its_direction():
    assert lower_is_better("steps_off")
    assert not lower_is_better("nobody_has_it")


def test_what_it_cannot_do_is_refused_when_the_file_is_read(tmp_path):
    path = federation(tmp_path / "fed", strategy={"kind": "fisher", "space": "ffa"})
    with pytest.raises(ConfigError, match=r"fisher.*draws labels, which data\.kind 'ordinal' cannot"):
        load_federation(path)
    for metric in ("mse", "perplexity"):
        with pytest.raises(ConfigError, match="'steps_off', 'accuracy' or 'loss'"):
            load_federation(path, ["strategy.kind=mean", f"evaluation.metric={metric}"])
