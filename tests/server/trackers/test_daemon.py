"""Trackers of a run that a daemon works on: told to its end, allowed by its owner, of no harm to the run."""

from __future__ import annotations

import pytest
import tomli_w
from flwr.serverapp import Grid

from headwater.config.plugins import SERVER_ALLOWS, PluginNotAllowed, allow_only
from headwater.flower.fleet_server import FleetServer
from headwater.server.clients.run_control import Interrupted
from headwater.server.daemon.run_job import Network, RunJob
from headwater.server.events import RoundEnded
from headwater.server.monitoring.monitor import Monitor
from headwater.server.round_record import RoundRecord
from headwater.server.workspace.run_queue import RunQueue
from tests.support.trackers import TABLES, rounds


class Server:
    """A queue with one run, whose rounds a test makes."""

    def __init__(self, folder):
        (folder / "runs").mkdir(parents=True)
        self.queue, self.monitor = RunQueue(folder / "runs.json", folder / "runs"), Monitor(version="1")
        self.folder = folder

    def submit(self, *trackers):
        return self.queue.submit(tomli_w.dumps(TABLES | {"trackers": list(trackers)}), self.folder)[0]

    def job(self, entry):
        grid: Grid = FleetServer(max_reply_bytes=lambda name: 1).grid
        network = Network(grid, {}, lambda name, data: data, dict, lambda name: True)
        return RunJob(entry, self.queue, network, self.monitor, keep=3, interrupted=lambda: False)

    @property
    def told(self):
        return [event.text for event in self.monitor.events(-1)]


@pytest.fixture
def server(tmp_path):
    return Server(tmp_path / "server")


@pytest.fixture
def interrupted(monkeypatch):
    """The daemon is told to end after two rounds, before its trackers have been told of any."""

    def serve(self, pool):
        for number in range(2):
            record = RoundRecord({"round": number})
            self._folder.append_round(record)
            self._observer(RoundEnded(number, record, "loss", 0.5))
        raise Interrupted

    monkeypatch.setattr("headwater.server.daemon.run_job.FederationServer.serve", serve)


def test_a_daemon_that_ends_tells_what_there_is_before(server, stranger, interrupted):
    entry = server.submit({"kind": "told"})
    with pytest.raises(Interrupted):
        server.job(entry).run()
    said = stranger.SAID
    assert said == [("start", entry.run, 0), ("round", 0), ("round", 1), ("close",)]


def test_what_the_owner_does_not_allow_is_not_queued(server, stranger):
    allow_only([], SERVER_ALLOWS)
    with pytest.raises(PluginNotAllowed, match=r'server\.toml.*add "trackers:told"'):
        server.submit({"kind": "told"})
    assert server.queue.entries() == ()


def test_a_tracker_that_is_no_longer_there_ends_no_run(server, stranger, interrupted):
    entry = server.submit({"kind": "told"})
    allow_only([], SERVER_ALLOWS)  # as after a restart with another server.toml
    with pytest.raises(Interrupted):  # and not ConfigError
        server.job(entry).run()
    assert rounds(stranger) == []
    assert any("goes on without trackers: plug-in trackers:told" in text for text in server.told)


def test_failures_are_told_to_the_organiser(server, stranger, interrupted):
    def refuse(*words):
        raise ValueError("no such column")

    stranger.WHEN["round"] = refuse
    with pytest.raises(Interrupted):
        server.job(server.submit({"kind": "told"})).run()
    assert "tracker told, round 0: ValueError: no such column" in server.told
    assert "tracker told refused 2 rounds for good" in server.told


def test_what_clients_are_sent_does_not_name_them(server, stranger):
    entry = server.submit({"kind": "told", "url": "https://user:secret@example.org"})
    assert "secret" not in server.queue.settings(entry).model_dump_json()
    assert server.queue.open(entry.run)[1].trackers == ()
    assert [tracker.url for tracker in server.queue.trackers(entry.run)] == [
        "https://user:secret@example.org"
    ]
