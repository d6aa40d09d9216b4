"""When a client was last heard of outlives the daemon, at the price of a write a minute."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import StorageError
from headwater.server.daemon.daemon import Daemon
from headwater.server.workspace import last_seen
from headwater.server.workspace.last_seen import EVERY_S, LastSeen
from headwater.server.workspace.workspace import Workspace


def test_another_start_knows_it(tmp_path):
    now = [1000.0]
    LastSeen(tmp_path / "seen.json", lambda: now[0]).note({"ann": 20.0}, now=True)
    now[0] += 500
    again = LastSeen(tmp_path / "seen.json", lambda: now[0])
    assert again.age_s("ann") == 520.0
    assert again.age_s("ben") is None
    again.note({"ben": 1.0}, now=True)
    assert LastSeen(tmp_path / "seen.json", lambda: now[0]).age_s("ann") == 520.0


def test_a_clock_that_goes_back_gives_no_age_below_zero(tmp_path):
    LastSeen(tmp_path / "seen.json", lambda: 1000.0).note({"ann": 0.0}, now=True)
    assert LastSeen(tmp_path / "seen.json", lambda: 900.0).age_s("ann") == 0.0


def test_it_is_written_once_a_minute_however_often_it_is_told(tmp_path, monkeypatch):
    written, now = [], [0.0]
    monkeypatch.setattr(last_seen, "write_atomically", lambda path, data: written.append(now[0]))
    seen = LastSeen(tmp_path / "seen.json", lambda: now[0])
    while now[0] < 10 * EVERY_S:
        now[0] += 1
        seen.note({"ann": 0.0})
    assert len(written) == 10
    seen.note({"ann": 0.0}, now=True)
    assert len(written) == 10  # nothing is new


def test_a_disk_that_is_full_costs_a_warning_and_no_more(tmp_path, monkeypatch, caplog):
    def full(path, data):
        raise StorageError(f"writing {path}", expected="room", got="none")

    monkeypatch.setattr(last_seen, "write_atomically", full)
    seen = LastSeen(tmp_path / "seen.json")
    with caplog.at_level(logging.WARNING):
        seen.note({"ann": 0.0}, now=True)
        seen.note({"ann": 1.0}, now=True)
    assert len(caplog.records) == 1
    assert seen.age_s("ann") is not None


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"ann": "x"}', b'{"ann": NaN, "ben": 5}', b"\xff"])
def test_a_damaged_file_is_told_and_forgotten(tmp_path, caplog, content):
    (tmp_path / "seen.json").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        seen = LastSeen(tmp_path / "seen.json")
    assert seen.age_s("ann") is None
    assert ("seen.json" in caplog.text) == (b"ben" not in content)


@given(st.binary(max_size=60))
def test_no_content_stops_a_daemon(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("seen") / "seen.json"
    path.write_bytes(content)
    LastSeen(path).note({"ann": 1.0}, now=True)
    assert LastSeen(path).age_s("ann") is not None


def test_a_daemon_that_was_started_again_says_when_and_not_never(tmp_path):
    workspace = Workspace.init(tmp_path / "fl")
    LastSeen(workspace.last_seen).note({"ann": 30.0}, now=True)
    daemon = Daemon(workspace)
    assert daemon._last_seen.age_s("ann") == pytest.approx(30, abs=20)
    assert not list(daemon._facts())  # who is not enrolled has no row
