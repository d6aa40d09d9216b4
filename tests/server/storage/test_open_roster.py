"""What a crash right after a checkpoint leaves behind does not pass for an open round."""

from __future__ import annotations

import pytest

from headwater.errors import StorageError
from headwater.server.storage.durability import Durability, OpenRoundRecord
from headwater.server.storage.update_spool import Spool


def left_behind(folder, number):
    """Roster and spool as a round that was open has them."""
    roster, spool = folder / "open_round.json", Spool(folder / "spool")
    OpenRoundRecord(number, {}, {}).save(roster)
    spool.put(number, "ann", b"reply")
    deployment = Durability(spool, None, roster, lambda: None, lambda: None, lambda: None, lambda: False)
    return deployment, roster, spool


def test_a_finished_round_is_forgotten(tmp_path):
    deployment, roster, spool = left_behind(tmp_path, 4)
    deployment.forget_through(4)
    assert not roster.exists()
    assert spool.rounds() == ()
    deployment.forget_through(4)  # again, as after a second crash


def test_an_open_round_is_kept(tmp_path):
    deployment, roster, spool = left_behind(tmp_path, 5)
    deployment.forget_through(4)
    assert OpenRoundRecord.load(roster) == OpenRoundRecord(5, {}, {})
    assert spool.read(5, "ann") == b"reply"


def test_a_damaged_roster_is_named(tmp_path):
    deployment, roster, _ = left_behind(tmp_path, 4)
    roster.write_text("{")
    with pytest.raises(StorageError, match=r"open_round\.json.*Delete the file"):
        deployment.forget_through(4)
