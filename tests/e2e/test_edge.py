"""An edge aggregator as its owner runs it: a daemon, an edge, agents behind it, TLS between all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from headwater.config import LoadedFederation, load_federation
from headwater.config.edge import load_edge
from headwater.edge.daemon import identity_of
from headwater.security.enrolment import make_request, read_request
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.network import LocalNetwork, LocalProcess
from tests.support.runs import run, tiny_federation


@contextmanager
def tree(folder: Path, loaded: LoadedFederation, behind: list[str], direct: list[str]) -> Iterator[Any]:
    """A daemon with some clients of its own, and an edge aggregator with the others; nothing started."""
    with LocalNetwork(folder / "net") as network, LocalNetwork(folder / "edge") as below:
        network.add_owners(loaded, direct)
        below.add_owners(loaded, behind)
        file = folder / "edge" / "edge.toml"
        file.write_text(
            f'name = "edge-1"\nserver = "localhost:{network.ports[0]}"\nclients = "server"\npatience_s = 60\n'
        )
        (folder / "edge" / "ca.pem").write_bytes(network.workspace.credentials.ca())
        network.workspace.registry().accept(read_request(make_request(identity_of(load_edge(file)))))
        with network.workspace.settings_file.open("a") as settings:
            settings.write("\n[edges]\nedge-1 = 10\n")
        below.daemon = LocalProcess(["aggregate", str(file)], folder / "edge.log")
        yield network, below


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    return [dict(record.content) for record in RunFolder(folder).read_rounds()]


@pytest.mark.slow
def test_a_tree_of_processes_reaches_the_flat_federations_adapter(tmp_path: Path) -> None:
    file = tiny_federation(
        tmp_path / "fed", federation={"rounds": 1}, cohort={"min_clients": 3, "deadline_s": 240}
    )
    flat, _ = run(file, tmp_path / "flat")
    loaded = load_federation(file)
    names = sorted(rounds_of(tmp_path / "flat")[1]["clients"])
    with tree(tmp_path, loaded, names[:2], names[2:]) as (network, below):
        network.start_daemon()
        below.daemon.start()
        for agent in (*network.agents.values(), *below.agents.values()):
            agent.start()
        name = network.submit(loaded)
        *_, row = network.watch(name, 400)
        assert row.state == "finished", network.daemon.tail(40) + below.daemon.tail(40)
        summary = json.loads((network.run_folder(name) / "summary.json").read_text())
        there, here = rounds_of(network.run_folder(name)), rounds_of(tmp_path / "flat")
    assert summary["adapter_sha256"] == flat["adapter_sha256"]
    assert summary["metric"] == flat["metric"]
    assert not summary["failures"]
    assert [line["state_sha256"] for line in there] == [line["state_sha256"] for line in here]
    assert there[1]["gap"] == here[1]["gap"]
    for client in names:
        row, flat_row = there[1]["clients"][client], here[1]["clients"][client]
        assert row["loss"] == flat_row["loss"]
        assert row["examples"] == flat_row["examples"]
        assert row["bytes_up"] > 0
    assert "2 of 2 updates are in the sum" in below.daemon.tail(100)


@pytest.mark.slow
def test_an_edge_that_is_killed_goes_on_where_it_was_and_one_that_stays_away_is_told_of_by_name(
    tmp_path: Path,
) -> None:
    """Killed in round 1 and started again, nothing is lost; killed after it, its clients fail by name."""
    file = tiny_federation(
        tmp_path / "fed",
        federation={"rounds": 2},
        cohort={"min_clients": 3, "deadline_s": 60},
        evaluation={"clients": False},
    )
    loaded = load_federation(file)
    with tree(tmp_path, loaded, ["ann", "ben"], ["cleo"]) as (network, below):
        network.start_daemon()
        below.daemon.start()
        for agent in (*network.agents.values(), *below.agents.values()):
            agent.start()
        killed = 0
        name = network.submit(loaded)
        for row in network.watch(name, 500):
            if row.open == 1 and not killed:
                below.daemon.kill()
                below.daemon.start()
                with network.control() as control:
                    control.change(name, {"min_clients": "1"})
                killed = 1
            elif row.round == 1 and killed == 1:
                below.daemon.kill()
                killed = 2
        assert row.state == "finished", network.daemon.tail(40) + below.daemon.tail(40)
        first, second = rounds_of(network.run_folder(name))[1:]
    assert killed == 2
    assert not any("failed" in row for row in first["clients"].values())
    assert [client for client, row in second["clients"].items() if "failed" in row] == ["ann", "ben"]
    assert second["clients"]["ann"]["edge"] == "edge-1"
