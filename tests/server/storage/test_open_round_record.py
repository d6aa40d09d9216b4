"""What a crash right after a checkpoint leaves behind does not pass for an open round."""

from __future__ import annotations

import pytest

from headwater.errors import StorageError
from headwater.server.storage.durability import Durability, OpenRoundRecord
from headwater.server.storage.update_spool import Spool


def left_behind(folder, number):
    """Record and spool as an open round leaves them."""
    record, spool = folder / "open_round.json", Spool(folder / "spool")
    OpenRoundRecord(number, {}, {}).save(record)
    spool.put(number, "ann", b"reply")
    durability = Durability(spool, None, record, lambda: None, lambda: None, lambda: None, "run-1")
    return durability, record, spool


def test_a_finished_round_is_forgotten(tmp_path):
    durability, record, spool = left_behind(tmp_path, 4)
    durability.forget_through(4)
    assert not record.exists()
    assert spool.rounds() == ()
    durability.forget_through(4)  # again, as after a second crash


def test_an_open_round_is_kept(tmp_path):
    durability, record, spool = left_behind(tmp_path, 5)
    durability.forget_through(4)
    assert OpenRoundRecord.load(record) == OpenRoundRecord(5, {}, {})
    assert spool.read(5, "ann") == b"reply"


def test_a_damaged_record_is_named(tmp_path):
    durability, record, _ = left_behind(tmp_path, 4)
    record.write_text("{")
    with pytest.raises(StorageError, match=r"open_round\.json.*Delete the file"):
        durability.forget_through(4)
