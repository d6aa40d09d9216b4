"""Noise in shares on a server: the simulation's bits; a vector leaves once, a round pays once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headwater.privacy.events import SharesReleased
from headwater.privacy.ledger import Ledger
from headwater.protocol.messages import EncodedUpdate, MaskReply, MaskStep, Request
from headwater.server.clients.run_control import Interrupted
from tests.server.rounds.test_masked_exchange import NAMES, at, crash, records, replies, states
from tests.support.masked_fleet import Device, Fleet
from tests.support.runs import bare_federation, run

pytest.importorskip("dp_accounting", reason="the extra headwater[privacy]")
TABLES: dict[str, Any] = {
    "privacy": {
        "clip_l2": 0.5,
        "noise_multiplier": 1.0,
        "delta": 1e-3,
        "masks": True,
        "mask_dropouts": 0.2,
        "mask_wait_s": 5,
        "noise_by": "clients",
    },
    "strategy": {"kind": "mean", "weighting": "equal"},
    "codec": {"up": {"kind": "dense"}},
    "cohort": {"min_clients": 4, "population": 5, "retry_s": 0.1},
    "data": {"kind": "none", "clients": 5, "examples": 7},
    "federation": {"rounds": 2},
    "evaluation": {"every": 0},
}


def federation(folder: Path, **privacy: Any) -> Path:
    tables = {**TABLES, "privacy": {**TABLES["privacy"], **privacy}}
    return bare_federation(folder / "fed", size=60, **tables)


@pytest.fixture(autouse=True)
def quick_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is spent is told after each round: here coarsely."""
    monkeypatch.setattr("headwater.privacy.accounting._INTERVAL", 0.05)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path, federation(tmp_path), NAMES)


def told(folder: Path) -> list[tuple[str, int]]:
    events = Ledger(folder / "privacy.jsonl").events
    assert all(isinstance(event, SharesReleased) and event.honest == 4 for event in events)
    return [(event.kind, event.round) for event in events]


def test_agents_noise_to_the_simulations_bits_and_tell_no_loss(tmp_path: Path) -> None:
    file = federation(tmp_path, noise="reproducible")
    run(file, tmp_path / "simulated")
    fleet = Fleet(tmp_path, file, NAMES)
    assert fleet.serve().finished
    assert states(fleet.folder.path) == states(tmp_path / "simulated")
    assert told(fleet.folder.path) == told(tmp_path / "simulated") == [("shares", 1), ("shares", 2)]
    updates = replies(fleet, EncodedUpdate)
    assert len(updates) == 10
    assert all(reply.metrics == {} for reply in updates)


@pytest.mark.parametrize(
    "step",
    [pytest.param(MaskStep.SHARES, marks=pytest.mark.slow), MaskStep.REVEAL],
    ids=["before", "after"],
)
def test_a_round_that_dies_is_paid_once_and_left_out_if_a_vector_has_been_asked_for(
    fleet: Fleet, step: MaskStep
) -> None:
    fleet.before = at(step, NAMES[2], crash)
    with pytest.raises(Interrupted):
        fleet.serve()
    fleet.before = lambda device, request: None
    assert fleet.serve().finished
    found, left_out = states(fleet.folder.path), step > MaskStep.VECTOR
    assert (found[2] == found[1]) is left_out
    assert told(fleet.folder.path) == [("shares", 1), ("shares", 2)]
    vectors = [r for r in replies(fleet, MaskReply) if r.step is MaskStep.VECTOR and r.round == 2]
    assert len(vectors) == len({reply.client for reply in vectors}) == 5


def test_more_drop_outs_than_are_stated_end_the_round_without_a_release(fleet: Fleet) -> None:
    """Of five one may: two start again in the step of vectors, and have no keys of it."""
    gone = [at(MaskStep.VECTOR, name, lambda device: device.start(), round=1) for name in NAMES[:2]]

    def before(device: Device, request: Request) -> None:
        for one in gone:
            one(device, request)

    fleet.before = before
    assert fleet.serve().finished
    found = records(fleet.folder.path)
    assert found[1]["state_sha256"] == found[0]["state_sha256"] != found[2]["state_sha256"]
    assert all("failed" in row for row in found[1]["clients"].values())
    assert not [r for r in replies(fleet, MaskReply) if r.step is MaskStep.LIST and r.round == 1]
    assert told(fleet.folder.path) == [("shares", 1), ("shares", 2)]
