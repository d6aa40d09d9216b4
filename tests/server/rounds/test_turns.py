"""Correlated noise on a server that lasts: a round waits for whom it may ask, and one sequence is paid."""

from __future__ import annotations

import pytest

from headwater.config import load_federation
from headwater.privacy.events import PositionReleased, SequenceReleased
from headwater.privacy.ledger import Ledger
from headwater.server.clients.client_pool import FixedClients
from headwater.server.clients.run_control import Interrupted
from headwater.server.events import ClientDone, Notice, RoundEnded, RoundStarted, Waiting
from headwater.server.rounds import noise_positions
from headwater.server.rounds.federation_server import FederationServer
from headwater.server.storage.run_folder import RunFolder
from tests.server.storage import test_durability as lasting
from tests.support.runs import bare_federation

pytest.importorskip("dp_accounting", reason="the extra headwater[privacy]")
OWNERS, ROUNDS, APART = 6, 4, 3


class Site(lasting.Site):
    """Six owners, two of them a round, three rounds from one turn to the next."""

    def __init__(self, folder):
        file = bare_federation(
            folder,
            size=50,
            federation={"rounds": ROUNDS},
            data={"clients": OWNERS},
            strategy={"kind": "mean", "weighting": "equal"},
            codec={"up": {"kind": "dense"}},
            cohort={"population": OWNERS, "clients_per_round": 2, "min_clients": 2},
            privacy={
                "clip_l2": 0.5,
                "noise_multiplier": 1.0,
                "delta": 1e-3,
                "mechanism": "banded",
                "min_separation": APART,
            },
            evaluation={"every": 0},
        )
        self.loaded = load_federation(file)
        self.folder = RunFolder.create(folder / "run", self.loaded, {"engine": "test"})
        self.asked = lasting.Counter()
        self.changes, self.rollback, self.leaving = self.loaded.settings, None, ""

    def require_one_sequence(self):
        """It is paid once, each round has the next position, and nobody is asked out of turn."""
        events = Ledger(self.folder.ledger).events
        (paid,) = (event for event in events if isinstance(event, SequenceReleased))
        steps = [(e.round, e.step) for e in events if isinstance(e, PositionReleased)]
        assert steps == [(n, n) for n in range(1, ROUNDS + 1)]
        cohorts = [set(record["clients"]) for record in self.records[1:]]
        for at, names in enumerate(cohorts):
            assert len(names) == 2
            assert not names & set().union(*cohorts[max(0, at - APART + 1) : at])
        return paid


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setattr(lasting, "CLIENTS", OWNERS)
    return Site(tmp_path)


def test_a_round_waits_for_owners_whose_turn_it_is_and_says_who_may_be_asked_when(site, monkeypatch):
    """Four of six are there: the third round would be one of nobody."""
    came, told = [], []

    class Pool(FixedClients):
        def ready(self):
            return self.profiles() if came else dict(list(self.profiles().items())[:4])

    def tell(event):
        if isinstance(event, Waiting):
            told.append((event, len(site.records)))
            came.append(event)

    monkeypatch.setattr(lasting, "FixedClients", Pool)
    site.go(tell=tell)
    (waiting, lines), (over, _) = told
    assert (waiting.have, waiting.need, lines) == (0, 2, 3)  # rounds 0, 1, 2 are written
    first = {name for name, record in site.records[1]["clients"].items()}
    expected = {
        f"{name} (was asked in round {1 if name in first else 2}, and may be again from round "
        f"{4 if name in first else 5} on)"
        for name in (f"client-{i:04}" for i in range(4))
    }
    assert set(waiting.missing) == expected
    assert (over.have, over.need) == (2, 2)
    site.require_one_sequence()
    assert set(site.records[3]["clients"]) == {"client-0004", "client-0005"}


def test_owners_who_leave_between_count_and_plan_cost_no_position(site, monkeypatch):
    """All were there when they were counted; when the round is planned, nobody is whose turn it is."""
    looks, told = [], []

    class Pool(FixedClients):
        def ready(self):
            looks.append(1)
            return dict(list(self.profiles().items())[: 1 if len(looks) == gone else OWNERS])

    def tell(event):
        if isinstance(event, Notice) and "planned anew" in event.text:
            told.append(event)

    monkeypatch.setattr(lasting, "FixedClients", Pool)
    for gone in (3, 4, 5):  # one of these looks is that of a plan
        looks.clear()
        other = Site(site.folder.path.parent / f"at{gone}")
        other.go(tell=tell)
        other.require_one_sequence()
    assert told


@pytest.mark.parametrize("moment", [1, 4, 9])
def test_it_dies_at_any_moment(site, moment):
    with pytest.raises(Interrupted):
        site.go(crash_at=moment, kinds=(RoundStarted, ClientDone, RoundEnded))
    site.go()
    site.require_one_sequence()


def test_it_dies_between_price_and_release_and_pays_once(site, monkeypatch):
    """What the event tells has not left; the position is drawn by the next process."""
    with monkeypatch.context() as patch:
        patch.setattr(noise_positions.CorrelatedNoise, "next", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            site.go()
    assert [event.kind for event in Ledger(site.folder.ledger).events] == ["sequence"]
    assert not site.folder.release.exists()
    site.go()
    site.require_one_sequence()


def test_a_rollback_goes_on_in_the_sequence(site):
    """Its next position; and whom the rounds that it takes back have asked keeps its turn."""
    with pytest.raises(Interrupted):
        site.go(crash_at=4, kinds=RoundEnded)  # after round 3
    site.rollback = 2
    site.go()
    assert site.rollback is None
    assert [row.note for row in site.versions.rows()][-2:] == ["rollback to version 2", "round 4"]
    site.require_one_sequence()


@pytest.mark.parametrize("leaving", ["", "client-0000"])
def test_a_rollback_waits_for_a_round_whose_sum_is_out(site, monkeypatch, leaving):
    """It died between release and checkpoint. Planned anew, the round would need a position of its own."""
    with monkeypatch.context() as patch:
        patch.setattr(FederationServer, "_close", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            site.go()
    site.rollback, site.leaving = 1, leaving
    site.go()
    notes = [row.note for row in site.versions.rows()]
    back = f"without {leaving}: version 1" if leaving else "rollback to version 1"
    assert notes == ["initial", "round 1", back, *(f"round {n}" for n in range(2, ROUNDS + 1))]
    site.require_one_sequence()
