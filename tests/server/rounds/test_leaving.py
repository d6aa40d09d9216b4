"""An owner leaves: the run goes on from a version that nothing of it is in, and keeps nothing else of it."""

from __future__ import annotations

import pytest
import torch

from headwater.cli.main import main
from headwater.config import load_federation
from headwater.errors import ConfigError
from headwater.merging.aggregator import Merged
from headwater.receipts.check import check_chain, lineage
from headwater.receipts.written import read_receipts, read_updates
from headwater.server.storage.adapter_versions import Versions
from headwater.server.storage.checkpoint import Checkpoint
from headwater.state import AdapterState
from headwater.strategies.federated import FederatedStrategy
from headwater.training.context import TrainingContext
from tests.server.storage.test_durability import ROUNDS, Site
from tests.server.storage.version_lists import SPEC, add

WHO = "client-0001"


def test_the_run_goes_back_to_what_nothing_of_it_is_in(tmp_path):
    site = Site(tmp_path)
    site.go()
    held = site.versions.holding(WHO)
    assert held == tuple(range(2, ROUNDS + 2))
    row = site.versions.newest_without(WHO)
    assert row.version == 1
    site.rollback, site.leaving = row.version, WHO
    site.go()
    rows = site.versions.rows()
    assert rows[-1].note == f"without {WHO}: version 1"
    assert rows[-1].sha256 == rows[0].sha256
    assert [r.version for r in rows if r.kept] == [1, rows[-1].version]
    assert site.versions.newest_without(WHO) is None
    context = TrainingContext.open(site.loaded)
    checkpoint = Checkpoint.load(site.folder.checkpoint, context.spec, site.loaded.run_id())
    assert checkpoint.best is None
    assert checkpoint.tracker.best_round is None
    assert WHO not in checkpoint.accepted
    receipts = read_receipts(site.folder.receipts / "receipts.jsonl")
    check_chain(receipts, "here")
    last = receipts[-1]
    assert (last.kind, last.about["to"]) == ("leaving", "0")
    assert [r.number for r in lineage(receipts, last)] == [last.number, 0]
    first = read_updates(site.folder.receipts / "updates.jsonl")[1]
    assert last.about["leaf"] == next(e.leaf().hex() for e in first if e.client == WHO)
    site.rollback = row.version  # a crash before the request was struck off
    site.go()
    assert read_receipts(site.folder.receipts / "receipts.jsonl") == receipts


def test_a_rollback_after_somebody_left_finds_nothing_of_it_and_is_verified(tmp_path, capsys):
    site = Site(tmp_path)
    site.go()
    site.rollback, site.leaving = site.versions.newest_without(WHO).version, WHO
    site.go()
    with pytest.raises(ConfigError, match="version 3"):
        site.versions.state(3, TrainingContext.open(site.loaded).spec)
    without = site.versions.rows()[-1]
    more = site.loaded.settings.federation.model_copy(update={"rounds": ROUNDS + 1})
    site.rollback, site.leaving = None, ""
    site.changes = site.loaded.settings.model_copy(update={"federation": more})
    site.go()
    assert site.versions.rows()[-1].sha256 != without.sha256
    site.rollback = without.version
    site.go()
    last = site.versions.rows()[-1]
    assert (last.note, last.sha256) == (f"rollback to version {without.version}", without.sha256)
    receipts = read_receipts(site.folder.receipts / "receipts.jsonl")
    check_chain(receipts, "here")
    assert [r.kind for r in receipts] == ["start", *["round"] * ROUNDS, "leaving", "round", "rollback"]
    (file,) = (tmp_path / "run" / "versions").glob(f"*{last.version}.safetensors")
    assert main(["verify", str(file)]) == 0
    assert "lineage: 0 rounds with 0 updates" in capsys.readouterr().out


@pytest.mark.parametrize("strategy", [{"kind": "mean", "server_momentum": 0.9}, {"kind": "mean"}])
def test_whatever_was_before_the_server_is_the_same_after(tmp_path, strategy):
    import tomli_w

    content = {
        "federation": {"name": "n", "rounds": 3, "seed": 3}, "model": {"kind": "vector", "size": 500},
        "data": {"kind": "none", "clients": 2, "examples": 5}, "training": {"kind": "noop"},
        "strategy": strategy,
    }  # fmt: skip
    (tmp_path / "f.toml").write_text(tomli_w.dumps(content))
    loaded = load_federation(tmp_path / "f.toml")
    made, spec = FederatedStrategy(loaded.settings), TrainingContext.open(loaded).spec
    target = AdapterState.from_vector(spec, torch.linspace(-1, 1, 500))
    found = []
    for history in (1.0, -7.0):
        server = made.init(AdapterState.zeros(spec))
        for _ in range(2):
            delta = AdapterState.from_vector(spec, torch.full((500,), history))
            server = made.update(server, Merged(delta, ("a",), 1))
        found.append(made.begun_again(server, target, WHO))
    one, other = found
    assert one.state == target
    assert (one.round, one.momentum, one.second_moment, one.noise, one.links) == (
        other.round, other.momentum, other.second_moment, other.noise, other.links,
    )  # fmt: skip
    assert one.round == 2


def test_versions_on_a_line_without_it_are_kept(tmp_path):
    """1 ← 2 (ann) ← 3 (ann, ben) ← 4 (ann): of ben are 3 and 4; the newest without is 2."""
    versions = Versions(tmp_path, keep=9)
    for number, cohort in enumerate(((), ("ann",), ("ann", "ben"), ("ann",))):
        add(versions, number, cohort=cohort)
    assert versions.holding("ben") == (3, 4)
    assert versions.newest_without("ben").version == 2
    versions.pin(3)
    versions.drop_values((3, 4))
    assert [row.kept for row in versions.rows()] == [True, True, False, False]
    with pytest.raises(ConfigError):
        versions.state(3, SPEC)
    assert versions.holding("cleo") == ()
