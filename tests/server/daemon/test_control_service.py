"""What the organiser asks of a run, whatever the daemon is doing with it at that moment."""

from __future__ import annotations

import math
import time

import pytest
import torch
from flwr.serverapp import Grid
from huggingface_hub import constants

from headwater.config import load_federation
from headwater.errors import ConfigError, FederationStopped, ModelError
from headwater.flower.fleet_server import FleetServer
from headwater.server.clients.run_control import Interrupted
from headwater.server.daemon.control_service import ControlService
from headwater.server.daemon.daemon import Daemon
from headwater.server.daemon.run_job import Network, RunJob
from headwater.server.events import RoundEnded, RoundStarted
from headwater.server.metrics import Tracker
from headwater.server.monitoring.monitor import Monitor
from headwater.server.round_record import RoundRecord
from headwater.server.storage.adapter_versions import Versions
from headwater.server.storage.checkpoint import Checkpoint
from headwater.server.workspace.registry import ClientRegistry
from headwater.server.workspace.run_queue import RunQueue
from headwater.server.workspace.workspace import Workspace
from headwater.strategies.strategy import ServerState
from headwater.training.context import TrainingContext
from tests.support.federation_text import vector_text
from tests.support.runs import tiny_federation

FEDERATION = vector_text("controlled", rounds=2, cohort="min_clients = 2")


class Site:
    """A run that no client has come to yet, and the control service."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "runs").mkdir()
        self.monitor = Monitor(version="1")
        self.jobs = []
        self.open()
        self.run = self.service.submit(FEDERATION, folder).run

    def open(self):
        self.book = RunQueue(self.folder / "runs.json", self.folder / "runs")
        registry = ClientRegistry(self.folder / "clients.json")
        self.service = ControlService(
            self.book, registry, self.monitor, self.working, keep=3, wake=lambda: None
        )

    def working(self):
        """The daemon's answer to what it works on: each of ``jobs`` once, then the last one."""
        return self.jobs.pop(0) if len(self.jobs) > 1 else self.jobs[0] if self.jobs else None

    def job(self, interrupted=lambda: False):
        grid: Grid = FleetServer(max_reply_bytes=lambda name: 1).grid
        network = Network(grid, {}, lambda name, data: data, dict, lambda name: True)
        entry = self.book.get(self.run)
        return RunJob(entry, self.book, network, self.monitor, keep=3, interrupted=interrupted)

    @property
    def state(self):
        return self.book.get(self.run).state


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


@pytest.mark.parametrize(("verb", "state"), [("pause", "paused"), ("stop", "stopped")])
def test_a_run_that_waits_for_its_first_clients_is_paused_and_no_failure(site, verb, state):
    job = site.job()
    site.jobs = [job]
    getattr(site.service, verb)(site.run)
    job.run()
    assert site.state == state
    assert site.service.status().runs[0].state == state


def test_too_few_clients_without_a_stop_request_is_an_error(site, monkeypatch):
    def serve(self, pool):
        raise FederationStopped("federation", expected="2 clients", got="0")

    monkeypatch.setattr("headwater.server.daemon.run_job.FederationServer.serve", serve)
    with pytest.raises(FederationStopped):
        site.job().run()


def test_what_is_paused_between_being_chosen_and_begun_does_not_begin(site):
    """The first run of a daemon imports torch in between: seconds."""
    job = site.job()
    site.service.pause(site.run)
    job.run()  # would wait for clients for ever
    assert site.state == "paused"


def test_a_pause_finds_a_run_that_begins_meanwhile(site):
    job = site.job()
    site.jobs = [None, job]
    site.service.pause(site.run)
    assert site.book.begin(site.run) is False
    site.book.set_state(site.run, "running")  # as if it had begun just before
    assert job._stop_request == "pause"


def test_a_restart_forgets_no_stop_request(site):
    job = site.job(interrupted=lambda: True)
    site.jobs = [job]
    site.book.begin(site.run)
    site.service.stop(site.run)
    job._stop_request = ""  # the round is open, and the daemon is told to end before it closes
    with pytest.raises(Interrupted):
        job.run()
    site.jobs = []
    site.open()
    assert site.state == "running"
    site.job().run()
    assert site.state == "stopped"
    site.service.resume(site.run)
    assert site.book.get(site.run).stop_request == ""


def test_an_export_leaves_the_threads_of_the_run_at_work(site):
    """With other threads its evaluations round differently, and another round may be the best."""
    folder, loaded = site.book.open(site.run)
    context = TrainingContext.open(loaded, threads=False)
    Versions.of_run(folder.path, 3).add(
        context.initial_state(), run=site.run, round=0, parent=0, config_sha256="", cohort=(),
        metric="loss", value=1.0, best=True, note="initial", created=0.0,
    )  # fmt: skip
    before = torch.get_num_threads()
    torch.set_num_threads(loaded.settings.federation.threads + 1)
    try:
        assert b"".join(site.service.export(site.run))
        assert torch.get_num_threads() == loaded.settings.federation.threads + 1
    finally:
        torch.set_num_threads(before)


def test_an_unpinned_version_goes_at_once_where_no_round_follows(site):
    folder, loaded = site.book.open(site.run)
    context = TrainingContext.open(loaded, threads=False)
    versions = Versions.of_run(folder.path, 3)
    for number in range(6):
        versions.add(
            context.initial_state(), run=site.run, round=number, parent=number, config_sha256="", cohort=(),
            metric="loss", value=1.0, best=not number, note=f"round {number}", created=0.0,
        )  # fmt: skip
    site.service.rollback(site.run, 2)
    with pytest.raises(ConfigError, match="about to go on from"):
        site.service.unpin(site.run, 2)
    site.book.request_rollback(site.run, None)
    versions.prune()
    versions.pin(4)
    assert site.service.unpin(site.run, 2).kept  # the run is queued: the next round deletes it
    site.service.stop(site.run)
    versions.pin(2)
    assert not site.service.unpin(site.run, 2).kept
    assert [row.version for row in versions.rows() if row.kept] == [1, 4, 5, 6]


def test_a_full_disk_is_tried_again_with_pauses_and_after_a_restart(tmp_path):
    workspace = Workspace.init(tmp_path / "fl")
    daemon = Daemon(workspace)
    run = daemon._book.submit(FEDERATION, tmp_path)[0].run
    assert daemon._next().run == run
    daemon._book.set_state(run, "failed", "no room", again=True)
    daemon._retry_at_s[run] = time.monotonic() + 60
    assert daemon._next() is None
    daemon._book.set_state(run, "running")  # the disk was too full to say that it failed
    assert daemon._next() is None
    daemon._book.set_state(run, "queued")  # the organiser does not want to wait
    assert daemon._next().run == run
    daemon._book.set_state(run, "failed", "no room", again=True)
    assert Daemon(workspace)._next().run == run
    daemon._book.set_state(run, "failed", "a wrong file")
    assert Daemon(workspace)._next() is None


def test_an_answer_says_what_was_done_and_from_when_on(site):
    """Also where the open round is one that an answer cannot wait for."""
    site.jobs = [site.job()]
    site.book.begin(site.run)
    site.monitor.run_state(site.run, "running")
    site.monitor.observer(site.run)(RoundStarted(4, 2))
    changed = site.service.change(site.run, {"deadline_s": "30", "rounds": "9", "min_clients": "5"})
    assert changed.note == "deadline_s none → 30, at once; rounds 2 → 9, min_clients 2 → 5, from round 5"
    assert changed.warnings == (
        "min_clients is 5, but 0 devices are enrolled: no round can close until 5 more take part",
    )
    assert site.service.pause("").note == "pauses after round 4"
    (row,) = site.service.status().runs
    assert (row.state, row.note, row.warnings) == ("running", "pauses after round 4", changed.warnings)
    with pytest.raises(ConfigError, match=r"and pauses after round 4\. Resume it then"):
        site.service.resume("")


@pytest.mark.parametrize("state", ["stopped", "finished", "failed", "paused"])
def test_settings_that_an_ended_run_cannot_meet_are_warned_of_too(site, state):
    """They are there for when it is resumed."""
    site.monitor.observer(site.run)(RoundEnded(1, RoundRecord({"round": 1}), "", math.nan))
    site.book.set_state(site.run, state, "")
    site.monitor.run_state(site.run, state)
    changed = site.service.change(site.run, {"rounds": "1"})
    assert changed.note.startswith("rounds 2 → 1, ")
    assert [w for w in changed.warnings if "rounds is 1, but 1 are done" in w]
    assert len(set(changed.warnings)) == len(changed.warnings)


def test_a_run_that_cannot_be_meant_names_those_that_can(site):
    first, second = site.run, site.service.submit(FEDERATION, site.folder).run
    site.service.stop(second)
    with pytest.raises(ConfigError, match=f"run {second}: .*is stopped.*Name the run: {first}"):
        site.service.pause("")


def test_a_federation_whose_model_is_not_there_is_not_queued(site, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    lacks = (
        FEDERATION.partition("[model]")[0]
        + """
[model]
kind = "encoder"
path = "no/model"
[adapter]
kind = "lora"
[data]
kind = "classification"
path = "d"
labels = ["a", "b"]
partition = { kind = "files" }
[training]
kind = "backprop"
"""
    )
    before = sorted(path.name for path in (site.folder / "runs").iterdir())
    with pytest.raises(ModelError, match=r"model\.path 'no/model'"):
        site.service.submit(lacks, site.folder)
    assert sorted(path.name for path in (site.folder / "runs").iterdir()) == before
    assert len(site.book.entries()) == 1


def test_a_run_of_a_folder_that_was_moved_finds_its_files(tmp_path):
    """A restored folder is another one: what lies within it is found there, not in the old one."""
    old = tmp_path / "old"
    (old / "data").mkdir(parents=True)
    site = Site(old)
    (old / "data" / "test.jsonl").write_text("")
    (tmp_path / "elsewhere").mkdir()
    inside = site.service.submit(FEDERATION, old / "data").run
    outside = site.service.submit(FEDERATION, tmp_path / "elsewhere").run
    old.rename(tmp_path / "new")
    moved = RunQueue(tmp_path / "new" / "runs.json", tmp_path / "new" / "runs")
    assert moved.open(inside)[1].folder == tmp_path / "new" / "data"
    assert moved.open(outside)[1].folder == tmp_path / "elsewhere"
    moved.move(outside, tmp_path / "new" / "data")
    (tmp_path / "new").rename(tmp_path / "newer")
    again = RunQueue(tmp_path / "newer" / "runs.json", tmp_path / "newer" / "runs")
    assert again.open(outside)[1].folder == tmp_path / "newer" / "data"


def test_a_resume_finds_what_lacks_before_the_run_is_queued(site):
    site.service.pause(site.run)
    with pytest.raises(ConfigError, match="--folder PATH"):
        site.service.resume(site.run, site.folder / "none")
    assert site.state == "paused"
    (site.folder / "there").mkdir()
    assert site.service.resume(site.run, site.folder / "there").state == "queued"
    assert site.book.open(site.run)[1].folder == site.folder / "there"


def test_a_run_that_fails_as_it_begins_is_shown_with_the_round_of_its_checkpoint(tmp_path):
    """A line that was written and whose checkpoint was not is done again, so it does not count."""
    workspace = Workspace.init(tmp_path / "fl")
    daemon = Daemon(workspace)
    run = daemon._book.submit(FEDERATION.replace("rounds = 2", "rounds = 200"), tmp_path)[0].run
    folder, loaded = daemon._book.open(run)
    for number in range(28):
        folder.append_round(RoundRecord({"round": number, "clients": {}, "bytes": {"up": 1, "down": 1}}))
    state = TrainingContext.open(loaded, threads=False).initial_state()
    Checkpoint(run, ServerState(26, state), Tracker("loss")).save(folder.checkpoint)
    assert folder.checkpoint_round() == 26
    for state in ("queued", "running", "failed", "paused"):
        daemon._book.set_state(run, state)
        again = Daemon(workspace)
        again._restore(again._book.get(run))
        (row,) = again._service.status().runs
        assert (row.state if state != "running" else "running", row.round, row.rounds) == (state, 26, 200)


def test_a_damaged_run_folder_does_not_hide_the_others(site):
    other = site.service.submit(FEDERATION, site.folder).run
    (site.folder / "runs" / site.run / "federation.toml").write_text("no toml [")
    site.open()
    assert [row.run for row in site.service.status().runs] == [site.run, other]


def test_a_run_that_is_stopped_while_it_is_not_at_work_says_that_no_result_is_written(site):
    site.service.pause(site.run)
    site.monitor.run_restored(site.run, [RoundRecord({"round": 1, "clients": {}, "bytes": {}})], "loss")
    stopped = site.service.stop(site.run)
    assert stopped.state == "stopped"
    assert "adapter/ are not written" in stopped.note
    fresh = site.service.submit(FEDERATION, site.folder).run
    assert site.service.stop(fresh).note == ""  # there is nothing to write


def test_a_place_that_is_not_there_is_a_warning_where_it_is_set(tmp_path):
    site = Site(tmp_path)
    loaded = load_federation(tiny_federation(tmp_path / "fed"))
    run = site.service.submit(loaded.to_toml(), loaded.folder).run
    row = site.service.change(run, {"model": "/nonexist"})
    assert any("/nonexist" in warning and "nothing there" in warning for warning in row.warnings)
    assert "model bert → /nonexist" in row.note
    assert not any("cannot go on" in w for w in site.service.change(run, {"model": "bert"}).warnings)
    assert any(
        "gone.jsonl" in warning for warning in site.service.change(run, {"test": "gone.jsonl"}).warnings
    )


def test_who_leaves_is_revoked_and_its_rounds_are_trained_again(site, monkeypatch):
    from headwater.security.enrolment import make_request
    from headwater.security.signing import Identity

    monkeypatch.setattr(ControlService, "_client", lambda self, name: name)  # the daemon tells the monitor
    for name in ("ann", "ben"):
        site.service.accept(make_request(Identity.create(name)))
    folder, loaded = site.book.open(site.run)
    state = TrainingContext.open(loaded, threads=False).initial_state()
    versions = Versions.of_run(folder.path, 3)
    for number, cohort in enumerate(((), ("ann",), ("ann", "ben"))):
        versions.add(
            state, run=site.run, round=number, parent=number, config_sha256="", cohort=cohort,
            metric="loss", value=1.0, best=False, note=f"round {number}", created=0.0,
        )  # fmt: skip
    rounds = site.book.settings(site.book.get(site.run)).federation.rounds
    put, written = site.book._put, []
    monkeypatch.setattr(site.book, "_put", lambda entry: written.append(entry) or put(entry))
    for _ in range(2):  # asked twice, done once
        assert site.service.forget(site.run, "ben").version == 2
    (entry,) = written  # a daemon that is killed has added rounds and notes who leaves, or neither
    assert (entry.leaving, entry.changes["federation.rounds"]) == ("ben", str(rounds + 1))
    entry = site.book.get(site.run)
    assert (entry.rollback, entry.leaving) == (2, "ben")
    assert site.book.settings(entry).federation.rounds == rounds + 1
    with pytest.raises(ConfigError, match="without ben"):
        site.service.forget(site.run, "ann")
    with pytest.raises(ConfigError, match="without ben"):
        site.service.rollback(site.run, 3)
    site.open()  # a daemon that starts again knows it still
    assert site.book.get(site.run).leaving == "ben"
    versions.drop_values(versions.holding("ben"))  # as the run does when it goes on
    site.book.request_rollback(site.run, None)
    with pytest.raises(ConfigError, match="whose values were deleted"):
        site.service.rollback(site.run, 3)
    assert site.service.rollback(site.run, 2).cohort == ("ann",)
    assert (site.book.get(site.run).rollback, site.book.get(site.run).leaving) == (2, "")
