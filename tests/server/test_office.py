"""What the organiser wishes of a run, whatever the daemon is doing with it at that moment."""

from __future__ import annotations

import time

import pytest
import torch
from flwr.serverapp import Grid

from headwater.errors import ConfigError, FederationStopped
from headwater.flower.link import FleetLink
from headwater.server.daemon import Daemon
from headwater.server.monitor import Monitor
from headwater.server.office import Office
from headwater.server.registry import ClientRegistry
from headwater.server.run_book import RunBook
from headwater.server.run_job import Network, RunJob
from headwater.server.versions import Versions
from headwater.server.watch import Interrupted
from headwater.server.workspace import Workspace
from headwater.training.build import Workbench

FEDERATION = """
[federation]
name = "wished"
rounds = 2
[model]
kind = "vector"
size = 10
[data]
kind = "none"
clients = 2
examples = 3
[training]
kind = "noop"
[cohort]
min_clients = 2
"""


class Site:
    """A run that no client has come to yet, and the organiser's office."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "runs").mkdir()
        self.monitor = Monitor(version="1")
        self.jobs = []
        self.open()
        self.run = self.office.submit(FEDERATION, folder).run

    def open(self):
        self.book = RunBook(self.folder / "runs.json", self.folder / "runs")
        registry = ClientRegistry(self.folder / "clients.json")
        self.office = Office(self.book, registry, self.monitor, self.working, keep=3, wake=lambda: None)

    def working(self):
        """The daemon's answer to what it works on: each of ``jobs`` once, then the last one."""
        return self.jobs.pop(0) if len(self.jobs) > 1 else self.jobs[0] if self.jobs else None

    def job(self, interrupted=lambda: False):
        grid: Grid = FleetLink(max_reply_bytes=lambda name: 1).grid
        network = Network(grid, {}, lambda name, data: data, dict, lambda name: True)
        entry = self.book.get(self.run)
        return RunJob(entry, self.book, network, self.monitor, keep=3, interrupted=interrupted)

    @property
    def state(self):
        return self.book.get(self.run).state


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


@pytest.mark.parametrize(("wish", "state"), [("pause", "paused"), ("stop", "stopped")])
def test_a_run_that_waits_for_its_first_clients_is_paused_and_no_failure(site, wish, state):
    job = site.job()
    site.jobs = [job]
    getattr(site.office, wish)(site.run)
    job.run()
    assert site.state == state
    assert site.office.status().runs[0].state == state


def test_too_few_clients_without_a_wish_is_an_error(site, monkeypatch):
    def serve(self, members):
        raise FederationStopped("federation", expected="2 clients", got="0")

    monkeypatch.setattr("headwater.server.run_job.FederationServer.serve", serve)
    with pytest.raises(FederationStopped):
        site.job().run()


def test_what_is_paused_between_being_chosen_and_begun_does_not_begin(site):
    """The first run of a daemon imports torch in between: seconds."""
    job = site.job()
    site.office.pause(site.run)
    job.run()  # would wait for clients for ever
    assert site.state == "paused"


def test_a_pause_finds_a_run_that_begins_meanwhile(site):
    job = site.job()
    site.jobs = [None, job]
    site.office.pause(site.run)
    assert site.book.begin(site.run) is False
    site.book.set_state(site.run, "running")  # as if it had begun just before
    assert job._wish == "pause"


def test_a_restart_forgets_no_wish(site):
    job = site.job(interrupted=lambda: True)
    site.jobs = [job]
    site.book.begin(site.run)
    site.office.stop(site.run)
    job._wish = ""  # the round is open, and the daemon is told to end before it closes
    with pytest.raises(Interrupted):
        job.run()
    site.jobs = []
    site.open()
    assert site.state == "running"
    site.job().run()
    assert site.state == "stopped"
    site.office.resume(site.run)
    assert site.book.get(site.run).wish == ""


def test_an_export_leaves_the_threads_of_the_run_at_work(site):
    """With other threads its evaluations round differently, and another round may be the best."""
    folder, loaded = site.book.open(site.run)
    bench = Workbench.open(loaded, threads=False)
    Versions.of_run(folder.path, 3).add(
        bench.initial_state(), run=site.run, round=0, parent=0, config_sha256="", cohort=(),
        metric="loss", value=1.0, best=True, note="initial", created=0.0,
    )  # fmt: skip
    before = torch.get_num_threads()
    torch.set_num_threads(loaded.settings.federation.threads + 1)
    try:
        assert b"".join(site.office.export(site.run))
        assert torch.get_num_threads() == loaded.settings.federation.threads + 1
    finally:
        torch.set_num_threads(before)


def test_an_unpinned_version_goes_at_once_where_no_round_follows(site):
    folder, loaded = site.book.open(site.run)
    bench = Workbench.open(loaded, threads=False)
    versions = Versions.of_run(folder.path, 3)
    for number in range(6):
        versions.add(
            bench.initial_state(), run=site.run, round=number, parent=number, config_sha256="", cohort=(),
            metric="loss", value=1.0, best=not number, note=f"round {number}", created=0.0,
        )  # fmt: skip
    site.office.rollback(site.run, 2)
    with pytest.raises(ConfigError, match="about to go on from"):
        site.office.unpin(site.run, 2)
    site.book.wish_rollback(site.run, None)
    versions.prune()
    versions.pin(4)
    assert site.office.unpin(site.run, 2).kept  # the run is queued: the next round deletes it
    site.office.stop(site.run)
    versions.pin(2)
    assert not site.office.unpin(site.run, 2).kept
    assert [row.version for row in versions.rows() if row.kept] == [1, 4, 5, 6]


def test_a_full_disk_is_tried_again_with_pauses_and_after_a_restart(tmp_path):
    workspace = Workspace.init(tmp_path / "fl")
    daemon = Daemon(workspace)
    run = daemon._book.submit(FEDERATION, tmp_path).run
    assert daemon._next().run == run
    daemon._book.set_state(run, "failed", "no room", again=True)
    daemon._again_s[run] = time.monotonic() + 60
    assert daemon._next() is None
    daemon._book.set_state(run, "running")  # the disk was too full to say that it failed
    assert daemon._next() is None
    daemon._book.set_state(run, "queued")  # the organiser does not want to wait
    assert daemon._next().run == run
    daemon._book.set_state(run, "failed", "no room", again=True)
    assert Daemon(workspace)._next().run == run
    daemon._book.set_state(run, "failed", "a wrong file")
    assert Daemon(workspace)._next() is None
