"""Rules of ``headwater merge`` in a run that is interrupted and begun again: the same bits."""

from __future__ import annotations

import pytest

from headwater.errors import StorageError
from headwater.server.clients.run_control import Interrupted
from headwater.server.events import ClientDone, RoundEnded
from headwater.server.rounds.open_round import OpenRound
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.simulate import simulate
from tests.merging.test_offline_rules_in_rounds import KINDS, LOOSE, TWO
from tests.server.storage.test_durability import CLIENTS, ROUNDS, Site


@pytest.mark.parametrize("kind", KINDS)
def test_a_rule_of_headwater_merge_comes_to_the_same_bits_after_a_death_and_in_a_simulation(tmp_path, kind):
    """Rules that draw, of two passes (over the spool, or in memory in a simulation), and on kept updates."""
    strategy = {"kind": kind, **LOOSE.get(kind, {})}
    calm = Site(tmp_path, strategy=strategy, name="calm")
    calm.go()
    site = Site(tmp_path, strategy=strategy, name="dies")
    with pytest.raises(Interrupted):
        site.go(crash_at=CLIENTS + 3, kinds=ClientDone)  # in the second round
    site.go()
    assert site.states == calm.states
    assert len(set(site.states)) > 2  # Model Stock of noise that points anywhere is now and then 0
    if kind not in TWO:
        return
    simulated = simulate(
        calm.loaded, RunFolder.create(tmp_path / "sim", calm.loaded, {"engine": "inprocess"})
    )
    assert simulated["adapter_sha256"] == calm.states[-1]


def test_a_second_pass_over_a_buffer_reads_the_spool_too(tmp_path):
    schedule = {"kind": "buffered", "buffer": 3}
    site = Site(tmp_path, schedule=schedule, strategy={"kind": "sce"}, min_clients=1)
    with pytest.raises(Interrupted):
        site.go(crash_at=5, kinds=(ClientDone, RoundEnded))
    site.go()
    assert len(set(site.states)) == ROUNDS + 1
    assert any(row.get("staleness") for r in site.records for row in r["clients"].values())


def test_a_second_pass_over_a_reply_that_was_damaged_meanwhile_ends_the_run_and_a_restart_mends_it(
    tmp_path, monkeypatch
):
    site = Site(tmp_path, strategy={"kind": "sce"})
    spools = []
    merge = OpenRound.merge

    def damaged(self, again=None):
        if not spools:
            spools.extend(sorted((site.folder.path / "state" / "spool").iterdir()))
            spools[1].write_bytes(b"bits that fell over")
        return merge(self, again)

    monkeypatch.setattr(OpenRound, "merge", damaged)
    with pytest.raises(StorageError, match="second pass over the update of client client-0001"):
        site.go()
    site.go()
    whole = Site(tmp_path, strategy={"kind": "sce"}, name="whole")
    whole.go()
    assert site.states == whole.states
    assert [name for (name, round), count in site.asked.items() if count == 2] == ["client-0001"]
