"""The product as its users run it: a daemon and agents as processes, TLS and gRPC on real sockets."""

from __future__ import annotations

import json

from headwater.config import load_federation
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.network import LocalNetwork
from tests.support.runs import run, tiny_federation


def states(folder):
    """The hash of the global state after each round: the exported one may be an early one."""
    found = [record.content["state_sha256"] for record in RunFolder(folder).read_rounds()]
    assert len(set(found)) == len(found) == 3
    return found


def test_three_agents_and_a_daemon_reach_the_simulations_adapter(tmp_path):
    file = tiny_federation(
        tmp_path / "fed", federation={"rounds": 2}, cohort={"min_clients": 3, "deadline_s": 240}
    )
    simulated, _ = run(file, tmp_path / "simulated")
    loaded = load_federation(file)
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
    assert summary["adapter_sha256"] == simulated["adapter_sha256"]
    assert summary["metric"] == simulated["metric"]
    assert not summary["failures"]


def test_simulated_devices_get_the_simulations_plans_and_reach_its_adapter(tmp_path):
    """Sensors have room for batches of 2 (of 8) only; what this machine has does not matter."""
    kinds = {"laptop": {"share": 0.6, "memory_mb": 4000}, "sensor": {"share": 0.4, "memory_mb": 426}}
    file = tiny_federation(
        tmp_path / "fed",
        federation={"rounds": 2},
        evaluation={"clients": False},
        assignment={"kind": "planner", "devices": kinds},
    )
    simulated, _ = run(file, tmp_path / "simulated")
    networked, _ = run(file, tmp_path / "networked", engine="network")
    steps = [
        [
            row["steps"]
            for _, row in sorted(RunFolder(tmp_path / name).read_rounds()[1].content["clients"].items())
        ]
        for name in ("simulated", "networked")
    ]
    assert steps[0] == steps[1]
    assert len(set(steps[0])) > 1
    assert networked["adapter_sha256"] == simulated["adapter_sha256"]
    assert states(tmp_path / "networked") == states(tmp_path / "simulated")
