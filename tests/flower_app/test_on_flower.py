"""``flwr run .`` on a stock SuperLink with stock SuperNodes: the same adapter as ``headwater simulate``.

Of the flwr that is installed here, or of the Pythons in ``HEADWATER_FLOWER_PYTHONS``, which are separated as
in ``PATH`` and must find this package (their own flwr before that of the development environment).
"""

from __future__ import annotations

import os
import sys

import pytest

from headwater.cli.main import main
from headwater.config import load_federation
from headwater.simulation.network import split_data
from tests.support.flower_deployment import FlowerDeployment
from tests.support.runs import bare_federation, run, tiny_federation

PYTHONS = os.environ.get("HEADWATER_FLOWER_PYTHONS", sys.executable).split(os.pathsep)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("python", PYTHONS)
def test_flower_runs_the_app(tmp_path, python):
    """Two rounds, so that what a client keeps in its context has an effect."""
    file = bare_federation(
        tmp_path / "f", data={"kind": "none", "clients": 2, "examples": 7}, federation={"rounds": 2}
    )
    wanted, _ = run(file, tmp_path / "simulated")
    assert main(["flower-app", str(file), "-o", str(tmp_path / "app")]) == 0
    nodes = [f"partition-id={k} num-partitions=2" for k in range(2)]
    with FlowerDeployment(tmp_path / "flower", python, nodes) as flower:
        found = flower.run(tmp_path / "app", tmp_path / "out", within_s=600)
    assert found["adapter_sha256"] == wanted["adapter_sha256"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("python", PYTHONS)
def test_flower_trains_a_model_on_rows_that_only_their_node_has(tmp_path, python):
    file = tiny_federation(
        tmp_path / "f",
        owners={"ann": 24, "ben": 16},
        federation={"rounds": 1},
        evaluation={"min_client_examples": 100},  # no message but one profile and one training each
    )
    wanted, _ = run(file, tmp_path / "simulated")
    paths = split_data(load_federation(file), tmp_path / "data")
    (tmp_path / "f/train.jsonl").unlink()
    assert main(["flower-app", str(file), "-o", str(tmp_path / "app"), "--clients", "2"]) == 0
    nodes = [f'client="{name}" data="{path}"' for name, path in paths.items()]
    with FlowerDeployment(tmp_path / "flower", python, nodes) as flower:
        found = flower.run(tmp_path / "app", tmp_path / "out", within_s=600)
    assert found["adapter_sha256"] == wanted["adapter_sha256"]
