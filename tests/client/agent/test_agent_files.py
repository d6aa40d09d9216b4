"""What the agent keeps in its folder: one agent each, what killed writers left, its log."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headwater.client.agent.agent import is_running, only_agent, sweep
from headwater.client.agent.owner_log import LOG_BYTES, OwnerLog
from headwater.errors import StorageError


def test_one_agent_for_a_folder(tmp_path, monkeypatch):
    assert not is_running(tmp_path)
    with only_agent(tmp_path / "s"):
        assert is_running(tmp_path / "s")
        moments = iter([0.0, 1.0, 9.0])
        monkeypatch.setattr("headwater.client.agent.agent.time.monotonic", lambda: next(moments))
        with pytest.raises(StorageError, match="got one that runs"), only_agent(tmp_path / "s"):
            pass
    assert not is_running(tmp_path / "s")


def test_what_killed_writers_left_is_removed(tmp_path):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    kept = tmp_path / "runs" / "a" / "ann.feedback"
    for path in (tmp_path / ".usage.json.77.tmp", tmp_path / "runs" / "a" / ".ann.feedback.77.tmp", kept):
        path.write_bytes(b"x")
    sweep(tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [kept]


def test_the_log_rotates_and_cannot_be_forged(tmp_path, capsys):
    log = OwnerLog(tmp_path / "agent.log")
    log.say("a reason\nwith \x1b[31mtricks\r of a server")
    assert "a reason·with ·[31mtricks· of a server" in capsys.readouterr().err
    assert len((tmp_path / "agent.log").read_text().splitlines()) == 1
    for _ in range(2200):
        log.say("x" * 2000)
    sizes = [p.stat().st_size for p in tmp_path.iterdir()]
    assert len(sizes) == 3
    assert max(sizes) <= LOG_BYTES


def test_a_delivery_keeps_its_other_fields_while_it_waits():
    from headwater.flower.fleet_client import Delivery as Real

    real = Real("m", "train", {"envelope": b"x"}, origin="from here")
    assert replace(real, parts={}) == Real("m", "train", {}, origin="from here")
    assert replace(real, parts={}).origin == "from here"
