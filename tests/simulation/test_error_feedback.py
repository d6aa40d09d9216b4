"""EF21 in whole runs: the server's sum is that of its clients, whatever happens to either."""

from __future__ import annotations

import pytest
import torch

from headwater.client.execution.store import SharedStore
from headwater.compression.feedback import settle
from headwater.config import load_federation
from headwater.errors import FederationStopped
from headwater.server.rounds import base
from headwater.server.storage.checkpoint import Checkpoint
from headwater.server.storage.run_folder import RunFolder
from tests.support.runs import bare_federation, resume, run

CODEC = {"up": {"kind": "compeft", "density": 0.1, "error_feedback": "ef21"}}


def sums(out):
    """The server's sum and the clients' shifts, as their files say."""
    folder, loaded, _ = RunFolder.open(out)
    spec = folder_spec(loaded)
    checkpoint = Checkpoint.load(folder.checkpoint, spec, loaded.run_id())
    store = SharedStore(folder.clients)
    settled = [settle(store.load(name, spec), done) for name, done in checkpoint.accepted.items()]
    assert [state.made for state in settled] == list(checkpoint.accepted.values())
    return checkpoint, sum(state.residual.vector() for state in settled)


def folder_spec(loaded):
    from headwater.training.context import TrainingContext

    return TrainingContext.open(loaded).spec


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return bare_federation(
        tmp_path_factory.mktemp("f"),
        federation={"rounds": 5},
        data={"clients": 4},
        strategy={"kind": "mean", "weighting": "equal"},
        cohort={"clients_per_round": 2, "min_clients": 2},
        codec=CODEC,
    )


def test_the_servers_sum_is_that_of_its_clients_also_after_a_crash(file, tmp_path):
    whole, _ = run(file, tmp_path / "whole")
    checkpoint, clients = sums(tmp_path / "whole")
    assert 2 < len(checkpoint.accepted) <= 4
    assert torch.allclose(checkpoint.server.shift.vector(), clients, atol=1e-6)
    out = tmp_path / "stopped"
    run(file, out, should_stop=lambda: len(RunFolder(out).read_rounds()) > 2)
    assert resume(out)[0]["adapter_sha256"] == whole["adapter_sha256"]
    ef14, _ = run(file, tmp_path / "ef14", "codec.up.error_feedback=ef14")
    true, _ = run(file, tmp_path / "true", "codec.up.error_feedback=true")
    assert ef14["adapter_sha256"] == true["adapter_sha256"] != whole["adapter_sha256"]


def test_a_client_whose_store_is_lost_is_refused_by_name(file, tmp_path):
    out = tmp_path / "run"
    run(file, out, should_stop=lambda: len(RunFolder(out).read_rounds()) > 3)
    for path in RunFolder(out).clients.iterdir():
        path.unlink()
    with pytest.raises(FederationStopped, match=r"up to round .* nothing of EF21"):
        resume(out)


def test_a_client_that_is_gone_cannot_be_taken_out_of_the_sum(file, tmp_path):
    run(file, tmp_path / "run")
    checkpoint, _ = sums(tmp_path / "run")
    counts = {**dict.fromkeys(checkpoint.accepted, 0), "new": 0, "other": 3}
    counted = base._with_all_of_the_sum(checkpoint, counts)  # also of those who have no examples any more
    assert counted == {**dict.fromkeys(checkpoint.accepted, 1), "new": 0, "other": 3}
    gone = min(checkpoint.accepted)
    del counts[gone]
    with pytest.raises(FederationStopped, match=f"not enrolled any more, such as {gone}"):
        base._with_all_of_the_sum(checkpoint, counts)


def test_the_two_kinds_of_feedback_are_not_taken_for_each_other(file):
    assert load_federation(file).settings.codec.up.shifts
    assert load_federation(file, ["codec.up.error_feedback=false"]).settings.codec.up.error_feedback is False
