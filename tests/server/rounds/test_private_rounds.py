"""Noise on a server that lasts: an open round is priced as it was drawn, a shortened ledger ends the run."""

from __future__ import annotations

import pytest

from headwater.config import load_federation
from headwater.errors import StorageError
from headwater.privacy.events import Everyone, FixedSample, PoissonSample
from headwater.privacy.ledger import Ledger
from headwater.server.clients.run_control import Interrupted
from headwater.server.events import RoundEnded, RoundStarted
from headwater.server.storage.run_folder import RunFolder
from tests.server.storage import test_durability as lasting
from tests.support.runs import bare_federation

pytest.importorskip("dp_accounting", reason="the extra headwater[privacy]")
OWNERS = 8


class Site(lasting.Site):
    """Eight owners, and noise."""

    def __init__(self, folder, **cohort):
        file = bare_federation(
            folder,
            size=50,
            federation={"rounds": 2},
            data={"clients": OWNERS},
            strategy={"kind": "mean", "weighting": "equal"},
            codec={"up": {"kind": "dense"}},
            cohort={"population": OWNERS, **cohort},
            privacy={"clip_l2": 0.5, "noise_multiplier": 1.0, "delta": 1e-3},
            evaluation={"every": 0},
        )
        self.loaded = load_federation(file)
        self.folder = RunFolder.create(folder / "run", self.loaded, {"engine": "test"})
        self.asked = lasting.Counter()
        self.changes, self.rollback, self.leaving = self.loaded.settings, None, ""

    def ask(self, clients_per_round):
        """What ``headwater server set clients_per_round`` does."""
        cohort = self.changes.cohort.model_copy(update={"clients_per_round": clients_per_round})
        self.changes = self.changes.model_copy(update={"cohort": cohort})

    @property
    def drawn(self):
        return [event.sampling for event in Ledger(self.folder.ledger).events]


@pytest.fixture(autouse=True)
def eight_clients(monkeypatch):
    monkeypatch.setattr(lasting, "CLIENTS", OWNERS)


@pytest.mark.parametrize(
    ("cohort", "drawn"),
    [
        ({"sampling": "poisson", "clients_per_round": 7}, [PoissonSample(7 / 8), PoissonSample(2 / 8)]),
        ({"min_clients": OWNERS}, [Everyone(), FixedSample(2, OWNERS)]),
    ],
    ids=["poisson", "all"],
)
def test_an_open_round_is_priced_as_it_was_drawn(tmp_path, cohort, drawn):
    """The organiser asks for fewer while it is open; the server dies: another q would be an untrue price."""
    site = Site(tmp_path, **cohort)
    with pytest.raises(Interrupted):
        site.go(crash_at=1, kinds=RoundStarted)
    site.ask(2)
    site.go()
    assert site.drawn == drawn


@pytest.mark.parametrize("left", [0, 1], ids=["gone", "shortened"])
def test_a_ledger_that_lacks_a_release_ends_the_run(tmp_path, left):
    site = Site(tmp_path, min_clients=OWNERS)
    with pytest.raises(Interrupted):
        site.go(crash_at=3, kinds=RoundEnded)  # after round 2
    lines = site.folder.ledger.read_bytes().splitlines(keepends=True)
    site.folder.ledger.write_bytes(b"".join(lines[:left]))
    with pytest.raises(StorageError, match=f"none of round {left + 1}"):
        site.go()


def test_a_release_that_is_not_in_the_ledger_is_not_used(tmp_path, monkeypatch):
    site = Site(tmp_path, min_clients=OWNERS)
    monkeypatch.setattr("headwater.server.rounds.federation_server.FederationServer._close", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # it dies between the release and the checkpoint
        site.go()
    monkeypatch.undo()
    monkeypatch.setattr(lasting, "CLIENTS", OWNERS)
    site.folder.ledger.unlink()
    with pytest.raises(StorageError, match=r"which is in release\.safetensors"):
        site.go()


def test_it_dies_between_release_and_checkpoint_and_pays_once(tmp_path, monkeypatch):
    """The next process takes what was released; a round that is priced twice, or not, would show."""
    site = Site(tmp_path, min_clients=OWNERS)
    with monkeypatch.context() as patch:
        patch.setattr("headwater.server.rounds.federation_server.FederationServer._close", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            site.go()
    released = site.folder.release.read_bytes()
    with pytest.raises(Interrupted):
        site.go(crash_at=1, kinds=RoundEnded)  # of round 1
    assert site.folder.release.read_bytes() == released
    site.go()
    assert [event.round for event in Ledger(site.folder.ledger).events] == [1, 2]
