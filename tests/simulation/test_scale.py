"""Many clients: what a round costs hangs on who is asked, and what they keep is in one file."""

from __future__ import annotations

import itertools
import json

import pytest

from headwater.client.execution.store import STORE_FILE, DirectoryStore, SharedStore
from headwater.server.events import ClientAsked
from headwater.simulation import simulate as simulation
from headwater.simulation.grid import InProcessGrid
from tests.support.runs import bare_federation, resume, run, tiny_federation


def hashes(folder):
    return [json.loads(line)["state_sha256"] for line in (folder / "rounds.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return bare_federation(tmp_path_factory.mktemp("f"), federation={"rounds": 4}, data={"clients": 5})


@pytest.fixture(scope="module")
def undisturbed(file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("r") / "run"
    run(file, folder)
    assert not [*(folder / "state" / "clients").glob("*.feedback")]
    return hashes(folder)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_folder_with_a_file_a_client_goes_on_with_the_same_bits(
    file, undisturbed, tmp_path, monkeypatch, workers
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:  # as an earlier version kept it
        patch.setattr(simulation, "SharedStore", lambda folder: DirectoryStore(folder, durable=False))
        run(file, out, should_stop=lambda: (out / "rounds.jsonl").exists() and len(hashes(out)) > 1)
    clients = tmp_path / "run" / "state" / "clients"
    assert 1 < len(hashes(tmp_path / "run")) < 5
    assert len(list(clients.glob("*.feedback"))) == 5
    resume(tmp_path / "run", workers=workers)
    assert hashes(tmp_path / "run") == undisturbed
    assert (clients / STORE_FILE).exists()


def test_a_process_that_dies_after_any_save_goes_on_with_the_same_bits(
    file, undisturbed, tmp_path, monkeypatch
):
    save = SharedStore.save
    for at in (1, 4, 5, 6, 13):
        saves = itertools.count(1)

        def killed(self, *arguments, at=at, saves=saves):
            save(self, *arguments)
            if next(saves) == at:
                raise SystemExit(9)

        out = tmp_path / str(at)
        with monkeypatch.context() as patch:
            patch.setattr(SharedStore, "save", killed)
            with pytest.raises(SystemExit):
                run(file, out)
        resume(out)
        assert hashes(out) == undisturbed


def test_no_more_clients_are_asked_at_the_same_time_than_fit_in_memory(tmp_path, monkeypatch):
    """Of 23 that say what they have and evaluate, at most five messages are out."""
    for module in ("clients.handshake", "rounds.evaluation"):
        monkeypatch.setattr(f"headwater.server.{module}.ASKED_AT_ONCE", 5)
    most, pull = [0], InProcessGrid.pull_messages

    def counted(self, ids):
        most[0] = max(most[0], len(self._sent) + len(self._queued) + len(self._ready))
        return pull(self, ids)

    monkeypatch.setattr(InProcessGrid, "pull_messages", counted)
    owners = {f"o{i:02}": 5 for i in range(23)}
    tables = {"federation": {"rounds": 1}, "cohort": {"clients_per_round": 3}, "training": {"max_steps": 1}}
    few = tiny_federation(tmp_path / "few", owners=owners, **tables)
    summary, events = run(few, tmp_path / "a")
    assert 3 <= most[0] <= 5
    asked = [event for event in events if isinstance(event, ClientAsked)]
    counts = [(kind, sum(e.kind == kind for e in asked if e.round == 1)) for kind in ("train", "evaluate")]
    assert counts == [("train", 3), ("evaluate", 23)]
    with monkeypatch.context() as patch:
        for module in ("clients.handshake", "rounds.evaluation"):
            patch.setattr(f"headwater.server.{module}.ASKED_AT_ONCE", 1000)
        most[0] = 0
        at_once, _ = run(few, tmp_path / "b")
    assert most[0] == 23
    assert at_once["adapter_sha256"] == summary["adapter_sha256"]
    assert at_once["bytes"] == summary["bytes"]
    assert at_once["metric"] == summary["metric"]
