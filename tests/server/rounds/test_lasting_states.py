"""What travels down in a lasting run: after crashes, losses and a rollback clients have the server's bits."""

from __future__ import annotations

import pytest

from headwater.client.execution.runtime import ClientRuntime
from headwater.config.codec import DenseCodec
from headwater.receipts.check import check_chain, lineage
from headwater.receipts.written import read_receipts
from headwater.server.clients.run_control import Interrupted
from headwater.server.events import ClientDone, ClientFailed, Notice, RoundEnded
from tests.server.rounds.test_lasting_seeds import Site, three_clients  # noqa: F401 - a fixture
from tests.server.storage import test_durability as test_deployment
from tests.support.runs import run, tiny_federation

SPARSE = {"codec": {"up": {"kind": "compeft", "density": 0.2}, "down": {"kind": "compeft", "density": 0.1}}}


def down(site):
    """Bytes of states that went down in each round: what is beyond the requests, as in round 1."""
    sizes = [record["bytes"]["down"] for record in site.records]
    return [max(0, size - sizes[1]) for size in sizes]


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_deployment, "CLIENTS", 3)
        site = Site(tmp_path_factory.mktemp("calm"), "calm", **SPARSE)
        site.go()
    return site


def test_a_server_that_dies_comes_to_the_same_bits_for_few_bytes(calm, tmp_path):
    dense = Site(tmp_path, "dense", codec={"up": SPARSE["codec"]["up"]})
    dense.go()
    assert 0 < 15 * sum(down(calm)) < sum(down(dense))
    assert all(record["merge"]["kept_back_norm"] > 0 for record in calm.records[1:-1])
    assert "kept_back_norm" not in calm.records[-1]["merge"]  # the last adapter goes to nobody: it has all
    assert not any("kept_back_norm" in record["merge"] for record in dense.records[1:])
    site = Site(tmp_path, "crash", **SPARSE)
    with pytest.raises(Interrupted):
        site.go(crash_at=5, kinds=ClientDone)
    site.go()
    assert site.states == calm.states
    assert sum(down(site)) <= 2 * sum(down(calm))


def test_who_lost_its_state_is_sent_all_of_it_in_the_same_round(calm, tmp_path):
    site, told, failed = Site(tmp_path, "lost", **SPARSE), [], []
    with pytest.raises(Interrupted):
        site.go(crash_at=3, kinds=RoundEnded)  # after round 2
    lost = list(site.folder.clients.rglob("*.state"))
    assert len(lost) == 1  # the initial one is made from the seed
    for path in lost:
        path.unlink()

    def tell(event):
        if isinstance(event, Notice) and "is sent the whole adapter" in event.text:
            told.append(event.text)
        if isinstance(event, ClientFailed):
            failed.append(event.reason)

    site.go(tell=tell)
    assert len(told) == 3
    assert not failed
    assert site.states == calm.states
    assert down(site)[3] > 5 * down(calm)[3]


def test_after_a_rollback_and_a_change_of_codec_clients_go_on(tmp_path):
    site, ended = Site(tmp_path, "back", **SPARSE), []

    def tell(event):
        if isinstance(event, RoundEnded) and event.round == 2 and not ended:
            ended.append(event)
            site.rollback = 2  # the version after round 1, which clients hold
            codec = site.changes.codec.model_copy(update={"down": DenseCodec(kind="dense")})
            site.changes = site.changes.model_copy(update={"codec": codec})

    site.go(tell=tell)
    assert len(site.states) == 4
    assert down(site)[2] > down(site)[3] > 0
    receipts = read_receipts(site.folder.receipts / "receipts.jsonl")
    check_chain(receipts, "here")
    assert [(r.kind, r.round) for r in receipts] == [
        ("start", 0), ("round", 1), ("round", 2), ("rollback", 2), ("round", 3),
    ]  # fmt: skip
    assert [r.number for r in lineage(receipts, receipts[-1])] == [4, 3, 1, 0]


def test_clients_that_can_make_nothing_are_repaired_in_evaluations_and_rounds(tmp_path, monkeypatch):
    file = tiny_federation(tmp_path / "file", federation={"name": "lost", "rounds": 1, "seed": 5})
    calm, _ = run(file, tmp_path / "calm")
    monkeypatch.setattr(ClientRuntime, "_base", lambda self, name, store: None)
    monkeypatch.setattr(ClientRuntime, "_hold", lambda *arguments: None)
    lost, events = run(file, tmp_path / "lost")
    assert lost["adapter_sha256"] == calm["adapter_sha256"]
    assert lost["metric"] == calm["metric"]
    assert not [event for event in events if isinstance(event, ClientFailed)]
    assert lost["bytes"]["down"] > calm["bytes"]["down"]
