"""A tracker beside a real daemon that is ended in the middle of a run."""

from __future__ import annotations

import json
import signal
import time

import pytest
import tomli_w

from headwater.config import load_federation
from headwater.simulation.network import LocalNetwork
from tests.support.tensorboard import steps

ROUNDS = 30


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["ended", "killed"])
def test_a_daemon_that_is_started_again_goes_on_telling(tmp_path, number):
    file = tmp_path / "f.toml"
    tables = {
        "federation": {"name": "t", "rounds": ROUNDS},
        "model": {"kind": "vector", "size": 100},
        "data": {"kind": "none", "clients": 2},
        "training": {"kind": "noop"},
        "cohort": {"min_clients": 2, "deadline_s": 240},
        "trackers": [{"kind": "tensorboard"}],
    }
    file.write_text(tomli_w.dumps(tables))
    loaded = load_federation(file)
    with LocalNetwork(tmp_path / "net") as network:
        network.add_owners(loaded)
        network.start_daemon()
        for agent in network.agents.values():
            agent.start()
        run = network.submit(loaded)
        lines = network.run_folder(run) / "rounds.jsonl"
        while not lines.exists() or lines.read_bytes().count(b"\n") < 4:
            time.sleep(0.05)
        network.daemon.kill(number)
        network.daemon.process.wait()
        before = lines.read_bytes().count(b"\n")
        told = json.loads((network.run_folder(run) / "state/trackers/tensorboard.json").read_text())["round"]
        assert told < before
        if network.daemon.tail(1).endswith("ended"):  # in time, so that it has told all there was
            assert told == before - 1
        network.start_daemon()
        *_, row = network.watch(run, 600)
        assert row.state == "finished", network.daemon.tail(40)
        assert before <= ROUNDS
        assert steps(network.run_folder(run) / "tensorboard") == list(range(ROUNDS + 1))
