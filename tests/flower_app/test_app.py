"""``headwater flower-app``: what it writes, and its apps over a grid in memory, against ``simulate``."""

from __future__ import annotations

import importlib
import json
import sys
import tomllib

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.cli.build import build_fab_from_disk

from headwater.cli.main import main
from headwater.config import load_federation
from headwater.flower import pack
from headwater.flower_app import client, client_app
from headwater.flower_app.store import KEPT
from headwater.proto.wire import decode_reply, encode_request
from headwater.protocol.failures import FailureCode
from headwater.protocol.messages import ProfileRequest
from headwater.simulation.network import split_data
from tests.support.app_grid import AppGrid
from tests.support.runs import bare_federation, run, tiny_federation

TWO = [{"partition-id": k, "num-partitions": 2} for k in range(2)]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a federation's app and imports it as Flower does: its modules, its file and its run config."""

    def write(file, *arguments, **config):
        assert main(["flower-app", str(file), "-o", str(tmp_path / "app"), *arguments]) == 0
        monkeypatch.syspath_prepend(str(tmp_path / "app"))
        for name in [n for n in sys.modules if n.split(".")[0] == "federation_app"]:
            monkeypatch.delitem(sys.modules, name)
        project = tomllib.loads((tmp_path / "app/pyproject.toml").read_text())["tool"]["flwr"]["app"]
        apps = []
        for side in ("serverapp", "clientapp"):
            module, _, name = project["components"][side].partition(":")
            apps.append(getattr(importlib.import_module(module), name))
        run_config = {**project["config"], "out": str(tmp_path / "out"), **config}
        assert run_config.keys() == project["config"].keys()
        return *apps, run_config

    client._opened.clear()
    yield write
    client._opened.clear()


def finished(server, clients, nodes, run_config, out, **options):
    grid = AppGrid(lambda: clients, nodes, run_config, **options)
    server(grid, Context(1, 1, {}, RecordDict(), run_config))
    return json.loads((out / "summary.json").read_text()), grid


def test_the_app_makes_the_adapter_that_simulate_makes(tmp_path, written, capsys):
    file = tiny_federation(tmp_path / "f", owners={"ann": 12, "ben": 8}, federation={"rounds": 2})
    wanted, _ = run(file, tmp_path / "simulated")
    server, clients, config = written(file)
    assert config["clients"] == 2
    summary, grid = finished(server, clients, TWO, config, tmp_path / "out")
    assert summary["adapter_sha256"] == wanted["adapter_sha256"]
    assert (summary["engine"], summary["clients"]) == ("flower", 2)
    assert wanted["adapter_sha256"] in capsys.readouterr().out
    # error feedback is in Flower's context, and nowhere else
    assert all(KEPT in context.state for context in grid.contexts.values())
    assert (tmp_path / "out/adapter/adapter_model.safetensors").is_file()


def test_nodes_with_rows_of_their_own_need_nothing_of_the_others(tmp_path, written):
    file = tiny_federation(tmp_path / "f", owners={"ann": 12, "ben": 8}, federation={"rounds": 1})
    wanted, _ = run(file, tmp_path / "simulated")
    paths = split_data(load_federation(file), tmp_path / "data")
    (tmp_path / "f/train.jsonl").unlink()
    (tmp_path / "f/bert").rename(tmp_path / "models")
    nodes = [
        {"client": n, "data": str(p), "model": str(tmp_path / "models"), "store": str(tmp_path / n)}
        for n, p in paths.items()
    ]
    (tmp_path / "f/bert").symlink_to(tmp_path / "models")  # the server's
    server, clients, config = written(file, "--clients", "2")
    # each message finds a new process, as on a SuperNode
    summary, grid = finished(server, clients, nodes, config, tmp_path / "out", between=client._opened.clear)
    assert summary["adapter_sha256"] == wanted["adapter_sha256"]
    assert all(not context.state for context in grid.contexts.values())
    assert list((tmp_path / "ann/1").glob("*.feedback"))


def test_without_what_it_keeps_a_client_sends_something_else(tmp_path, written):
    """What the first test would miss: that the context is read at all."""
    file = bare_federation(tmp_path / "f", data={"kind": "none", "clients": 2, "examples": 7})
    wanted, _ = run(file, tmp_path / "simulated")
    server, clients, config = written(file)
    grid: list[AppGrid] = []

    def forget():
        for context in grid[0].contexts.values():
            context.state.clear()

    forgetful = AppGrid(lambda: clients, TWO, config, between=forget)
    grid.append(forgetful)
    server(forgetful, Context(1, 1, {}, RecordDict(), config))
    found = json.loads((tmp_path / "out/summary.json").read_text())["adapter_sha256"]
    config = {**config, "out": str(tmp_path / "kept")}
    kept, _ = finished(server, clients, TWO, config, tmp_path / "kept")
    assert kept["adapter_sha256"] == wanted["adapter_sha256"] != found


def test_a_run_can_change_settings_for_server_and_nodes(tmp_path, written):
    file = bare_federation(tmp_path / "f", data={"kind": "none", "clients": 2, "examples": 7})
    changes = ["federation.rounds=1", "federation.seed=9"]
    wanted, _ = run(file, tmp_path / "simulated", *changes)
    server, clients, config = written(file, set=" ".join(changes))
    summary, _ = finished(server, clients, TWO, config, tmp_path / "out")
    assert (summary["rounds"], summary["adapter_sha256"]) == (1, wanted["adapter_sha256"])


def test_what_is_written_is_a_fab(tmp_path):
    file = bare_federation(tmp_path / "f")
    assert main(["flower-app", str(file), "-o", str(tmp_path / "app")]) == 0
    fab = build_fab_from_disk(tmp_path / "app")  # refuses what `flwr build` refuses
    assert len(fab) < 10_000  # the federation file: no row, no model
    there = load_federation(tmp_path / "app/federation_app/federation.toml")
    assert there.run_id() == load_federation(file).run_id()


def test_rows_do_not_leave_a_node_by_its_errors(tmp_path, written, capsys):
    file = tiny_federation(tmp_path / "f", owners={"ann": 12, "ben": 8}, federation={"rounds": 1})
    secret = tmp_path / "ann.jsonl"
    secret.write_text('{"text": "my secret", "label": "worse"}\n')
    server, clients, config = written(file)
    nodes = [{"client": "ann", "data": str(secret)}, TWO[1]]
    with pytest.raises(Exception, match="at least 2 clients that can take part") as caught:
        finished(server, clients, nodes, {**config, "set": "cohort.min_clients=2"}, tmp_path / "out")
    assert "worse" not in str(caught.value)
    assert "worse" in capsys.readouterr().out  # its own log


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({}, "partition-id and num-partitions, or client and data"),
        ({"client": "ann"}, "partition-id and num-partitions, or client and data"),
        ({"partition-id": 0}, "num-partitions"),
        ({"partition-id": "0", "num-partitions": 2}, "a whole number from 0 on"),
        ({"partition-id": 0, "num-partitions": 3}, "num-partitions=2, the number of clients in the data"),
        ({"partition-id": 2, "num-partitions": 2}, "num-partitions=2, the number of clients in the data"),
        ({"partition-id": 0, "num-partitions": 2, "model": 7}, "a text"),
    ],
)
def test_a_wrong_node_config_is_told_on_the_node(tmp_path, written, capsys, node, said):
    file = bare_federation(tmp_path / "f", data={"kind": "none", "clients": 2, "examples": 7})
    server, clients, config = written(file)
    with pytest.raises(Exception, match="clients that can take part"):
        finished(server, clients, [node, TWO[1]], {**config, "set": "cohort.min_clients=2"}, tmp_path / "out")
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--clients", "0"], "at least 1"),
        (["--set", "data.path=nowhere.jsonl", "--set", "federation.name=x"], "--clients N"),
    ],
)
def test_wrong_arguments_of_the_verb(tmp_path, capsys, arguments, said):
    file = tiny_federation(tmp_path / "f")
    assert main(["flower-app", str(file), "-o", str(tmp_path / "app"), *arguments]) != 0
    assert said in capsys.readouterr().err
    assert not (tmp_path / "app").exists()


def test_a_folder_with_files_and_simulated_devices_are_refused(tmp_path, capsys):
    file = bare_federation(tmp_path / "f")
    assert main(["flower-app", str(file), "-o", str(tmp_path / "f")]) != 0
    assert "a new or empty folder" in capsys.readouterr().err
    devices = ["--set", "simulation.devices.flops=1e9"]
    assert main(["flower-app", str(file), "-o", str(tmp_path / "app"), *devices]) != 0
    assert "simulation.devices" in capsys.readouterr().err


def test_a_run_config_without_the_apps_keys_is_refused(tmp_path):
    file = bare_federation(tmp_path / "f")
    app = client_app(file)
    grid = AppGrid(lambda: app, [TWO[0]], {"folder": 3})
    envelope, state = encode_request(ProfileRequest("r"))
    (reply,) = grid.send_and_receive([Message(pack(envelope=envelope, state=state), 2, "query")])
    failure = decode_reply(reply.content["headwater"]["reply"].data, max_bytes=0)
    assert failure.failure.code is FailureCode.BAD_REQUEST
