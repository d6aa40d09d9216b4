"""What `headwater verify` proves of a masked run: each owner finds its own vectors in the adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headwater.cli.main import main
from headwater.protocol.messages import MaskStep
from headwater.receipts.check import check_chain
from headwater.receipts.written import RECEIPTS, UPDATES, read_receipts
from headwater.server.clients.run_control import Interrupted
from headwater.server.workspace.credentials import Credentials
from tests.server.rounds.test_masked_exchange import NAMES, at, crash, dies, federation
from tests.support.masked_fleet import Fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    credentials = Credentials(tmp_path / "secrets")
    credentials.folder.mkdir(mode=0o700)
    credentials.create("fed", ["localhost"])
    made = Fleet(tmp_path, federation(tmp_path, federation={"rounds": 2}), NAMES)
    made.receipt_key = credentials.receipt_key
    return made


def verified(fleet: Fleet, name: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What an owner reads, who has the last version's file, the receipts and the authority's certificate."""
    last = max((fleet.folder.path / "versions").glob("*.safetensors"))
    ca = fleet.folder.path.parent / "secrets" / "ca.pem"
    owner = fleet.devices[name].settings.state
    assert main(["verify", str(last), "--ca", str(ca), "--owner", str(owner), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(
    ("step", "rounds"),
    [(MaskStep.VECTOR, "1"), pytest.param(MaskStep.LIST, "1-2", marks=pytest.mark.slow)],
)
def test_who_drops_out_is_in_the_rounds_whose_sum_has_its_vector(
    fleet: Fleet, step: MaskStep, rounds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet.before = at(step, NAMES[2], dies)
    assert fleet.serve().finished
    receipts = read_receipts(fleet.folder.receipts / RECEIPTS)
    check_chain(receipts, "here")
    assert [receipt.count for receipt in receipts] == [0, 5, 4 if step is MaskStep.VECTOR else 5]
    for name in NAMES:
        told = verified(fleet, name, capsys)
        mine = rounds if name == NAMES[2] else "1-2"
        assert told["owner"] == [f"{name}: its updates of these rounds are in it: {mine}"]
        assert "the authority of the certificate vouches for that key" in told["proven"]


@pytest.mark.slow
def test_a_sum_that_was_begun_anew_has_the_last_vector_of_each(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet.before = at(MaskStep.LIST, NAMES[4], crash)
    with pytest.raises(Interrupted):
        fleet.serve()
    fleet.before = lambda device, request: None
    assert fleet.serve().finished
    inside, outside = verified(fleet, NAMES[0], capsys)["owner"]
    assert inside.endswith("are in it: 1-2")
    assert "not in it: 2" in outside
    assert "an attempt at a masked sum" in outside
    # a server that writes the hash of something else down has no receipt that it fits
    path = fleet.folder.receipts / UPDATES
    lines = path.read_text().splitlines()
    row = json.loads(lines[-1])
    row["updates"][0]["sha256"] = "ab" * 32
    lines[-1] = json.dumps(row)
    path.write_text("\n".join(lines) + "\n")
    last = max((fleet.folder.path / "versions").glob("*.safetensors"))
    owner = fleet.devices[NAMES[0]].settings.state
    assert main(["verify", str(last), "--owner", str(owner)]) == 6
    assert "the updates that it has the root of" in capsys.readouterr().err
