"""Scripts as agents of a real daemon, as processes with TLS between them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import headwater.hf
from headwater.config import load_federation
from headwater.simulation.network import LocalNetwork, LocalProcess
from tests.hf.scripts import model, script_federation, trainer

ROOT = Path(__file__).parents[2]


class ScriptProcess(LocalProcess):
    """A script in the place of ``headwater client run``; its command is what follows ``python``."""

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.command], stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
                stdin=subprocess.DEVNULL, start_new_session=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip


@pytest.mark.slow
def test_two_trainers_behind_a_daemon_reach_the_simulations_adapter(tmp_path):
    federation, cohort = tmp_path / "fed", {"min_clients": 2, "deadline_s": 240}
    owners = {"ann": 24, "ben": 16}
    file = script_federation(federation, owners=owners, federation={"rounds": 2}, cohort=cohort)
    loaded, peft = load_federation(file), model(federation)
    simulated = headwater.hf.simulate(
        loaded, lambda c, rows: trainer(federation, rows, peft), tmp_path / "run"
    )
    with LocalNetwork(tmp_path / "net") as network:
        network.add_owners(loaded)
        network.start_daemon()
        for name in network.agents:
            home = network.folder / "devices" / name
            command = ["-m", "tests.hf.agent_script", str(federation), str(home / "agent.toml")]
            network.agents[name] = ScriptProcess(command, home / "agent.out")
            network.agents[name].start()
        run = network.submit(loaded)
        *_, row = network.watch(run, 400)
        said = [network.daemon.tail(20), *(agent.tail(20) for agent in network.agents.values())]
        assert row.state == "finished", "\n".join(said)
        summary = json.loads((network.run_folder(run) / "summary.json").read_text())
    assert not summary["failures"]
    assert summary["adapter_sha256"] == simulated.summary["adapter_sha256"]
    assert summary["metric"] == simulated.summary["metric"]
