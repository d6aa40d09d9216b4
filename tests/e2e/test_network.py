"""The product as its users run it: a daemon and agents as processes, TLS and gRPC on real sockets."""

from __future__ import annotations

import json

from headwater.config import load_federation
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.network import LocalNetwork
from tests.support.runs import run, tiny_federation
from tests.support.tensorboard import steps

OWNERS = {"ann": 24, "ben": 16}  # each is a process that imports everything
TRACKED = "trackers=[{ kind = 'tensorboard' }]"


def states(folder):
    """The hash of the global state after each round: the exported one may be an early one."""
    found = [record.content["state_sha256"] for record in RunFolder(folder).read_rounds()]
    assert len(set(found)) == len(found) == 3
    return found


def test_agents_and_a_daemon_reach_the_simulations_adapter(tmp_path):
    cohort = {"min_clients": 2, "deadline_s": 240}
    file = tiny_federation(tmp_path / "fed", owners=OWNERS, federation={"rounds": 2}, cohort=cohort)
    simulated, _ = run(file, tmp_path / "simulated")
    loaded = load_federation(file, [TRACKED])
    with LocalNetwork(tmp_path / "net") as network:
        network.add_owners(loaded)
        network.start_daemon()
        for agent in network.agents.values():
            agent.start()
        name = network.submit(loaded)
        *_, row = network.watch(name, 240)
        assert row.state == "finished", network.daemon.tail(40)
        summary = json.loads((network.run_folder(name) / "summary.json").read_text())
        assert states(network.run_folder(name)) == states(tmp_path / "simulated")
        assert steps(network.run_folder(name) / "tensorboard") == [0, 1, 2]
    assert summary["trackers"] == {"tensorboard": {"through": 2, "missing": 0, "failures": {}}}
    assert summary["federation_sha256"] == simulated["federation_sha256"]
    assert summary["adapter_sha256"] == simulated["adapter_sha256"]
    assert summary["metric"] == simulated["metric"]
    assert not summary["failures"]


def test_simulated_devices_get_the_simulations_plans_and_reach_its_adapter(tmp_path):
    """Sensors have room for batches of 2 (of 8) only; what this machine has does not matter."""
    kinds = {"laptop": {"share": 0.6, "memory_mb": 4000}, "sensor": {"share": 0.4, "memory_mb": 426}}
    file = tiny_federation(
        tmp_path / "fed",
        owners=OWNERS,
        federation={"rounds": 2},
        evaluation={"clients": False},
        assignment={"kind": "planner", "devices": kinds},
    )
    simulated, _ = run(file, tmp_path / "simulated")
    networked, _ = run(file, tmp_path / "networked", TRACKED, engine="network")
    assert steps(tmp_path / "networked" / "tensorboard") == [0, 1, 2]
    assert networked["trackers"] == {"tensorboard": {"through": 2, "missing": 0, "failures": {}}}
    (resolved,) = (tmp_path / "networked" / "network").rglob("runs/*/federation.toml")
    assert "trackers" not in resolved.read_text()  # the command's matter, not its daemon's
    taken = [
        [
            row["steps"]
            for _, row in sorted(RunFolder(tmp_path / name).read_rounds()[1].content["clients"].items())
        ]
        for name in ("simulated", "networked")
    ]
    assert taken[0] == taken[1]
    assert len(set(taken[0])) > 1
    assert networked["adapter_sha256"] == simulated["adapter_sha256"]
    assert states(tmp_path / "networked") == states(tmp_path / "simulated")
