"""docs/how-to/my-flower.md: its commands and its lines, as they stand there."""

from __future__ import annotations

import importlib
import re
import shlex
import tomllib
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.config import parse_config_args

from headwater.cli.main import main
from headwater.flower_app.settings import NodeSettings, RunSettings
from headwater.flower_strategy.strategy import BYTES_UP
from tests.support.app_grid import AppGrid
from tests.support.runs import bare_federation

PAGE = (Path(__file__).parents[2] / "docs/how-to/my-flower.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line[2:]) for line in PAGE.splitlines() if line.startswith("$ ")]


def test_the_commands(tmp_path, monkeypatch):
    bare_federation(tmp_path)
    monkeypatch.chdir(tmp_path)
    ours, superlink, supernode, run = COMMANDS
    assert ours[0] == "headwater"
    assert main(ours[1:]) == 0
    # Flower's own parsers know what is asked of them
    cli = importlib.import_module("flwr.superlink.cli.flower_superlink")
    link = cli._parse_args_run_superlink().parse_args(superlink[1:])
    assert link.insecure
    cli = importlib.import_module("flwr.supernode.cli.flower_supernode")
    node = cli._parse_args_run_supernode().parse_args(supernode[1:])
    assert NodeSettings.of(parse_config_args([node.node_config])).client == "anna"
    assert run == ["cd", "app", "&&", "flwr", "run", ".", "--stream"]
    assert (tmp_path / "app/pyproject.toml").is_file()


def test_every_key_of_the_tables(tmp_path):
    assert main(["flower-app", str(bare_federation(tmp_path / "f")), "-o", str(tmp_path / "app")]) == 0
    project = tomllib.loads((tmp_path / "app/pyproject.toml").read_text())
    config = project["tool"]["flwr"]["app"]["config"]
    RunSettings.of(config)
    assert all(f"`{key}" in PAGE for key in config)
    whose, *more = re.findall(r"^\| `(.+?)` \|", PAGE, re.MULTILINE)[1:]
    for text in more:
        found = NodeSettings.of(parse_config_args([text if "partition" in text else f"{whose} {text}"]))
        assert found.partitions == 4 or getattr(found, text.split("=")[0])


def test_the_three_lines():
    """A client of Flower's own kind, before and after."""
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    made = {"ClientApp": ClientApp}
    exec(code, made)
    app, strategy = made["app"], made["strategy"]

    @app.train()
    def train(msg, context):
        arrays = msg.content["arrays"]
        random = np.random.default_rng(context.node_id)
        found = {n: Array(a.numpy() + random.normal(size=a.shape).astype("f4")) for n, a in arrays.items()}
        metrics = MetricRecord({"num-examples": 3})
        return Message(RecordDict({"arrays": ArrayRecord(found), "metrics": metrics}), reply_to=msg)

    @app.evaluate()
    def evaluate(msg, context):
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 3, "loss": 1.0})}), reply_to=msg)

    initial = ArrayRecord({"w": Array(np.zeros((100, 10), np.float32))})
    result = strategy.start(AppGrid(lambda: app, [{}, {}]), initial, num_rounds=2)
    assert result.train_metrics_clientapp[2][BYTES_UP] < 2 * 4000 / 10
    assert result.arrays["w"].numpy().any()
