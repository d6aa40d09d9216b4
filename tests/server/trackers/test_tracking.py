"""Trackers never cost a round: what they raise, how long they take and how they end is theirs alone."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import tomli_w

from headwater.config.load import federation_of
from headwater.config.plugins import SERVER_ALLOWS, PluginNotAllowed, allow_only
from headwater.errors import ConfigError, MissingDependency
from headwater.server.daemon.daemon import GRACE_S
from headwater.server.events import Notice, RoundEnded, RunStarted
from headwater.server.round_record import RoundRecord
from headwater.server.storage.run_folder import RunFolder
from headwater.server.trackers import tracking as tracking_module
from headwater.server.trackers.tracker_thread import MOST_BEHIND, TRIES
from headwater.server.trackers.tracking import DRAIN_S, Tracking
from headwater.simulation.simulate import simulate
from tests.support.runs import resume, run
from tests.support.trackers import TABLES, rounds


class Site:
    """A run folder whose rounds are told as they come."""

    def __init__(self, folder):
        self.folder, self.events = RunFolder(folder), []
        self.loaded = federation_of(TABLES | {"trackers": [{"kind": "told"}]}, folder=folder, name="f")

    def tracking(self):
        return Tracking(
            self.loaded.trackers, "run-1", self.loaded.settings, self.folder.path, self.events.append
        )

    def round(self, tracking, number):
        record = RoundRecord({"round": number})
        self.folder.append_round(record)
        tracking.observe(RoundEnded(number, record, "loss", 0.5))

    @property
    def told(self):
        return [event.text for event in self.events if isinstance(event, Notice)]


@pytest.fixture
def site(tmp_path, stranger):
    return Site(tmp_path / "run")


def raising(error):
    def act(*words):
        raise error

    return act


def test_it_is_told_start_rounds_and_end_from_one_thread(site, stranger):
    threads = set()
    for word in ("start", "round", "end", "close"):
        stranger.WHEN[word] = lambda *words: threads.add(threading.current_thread())
    with site.tracking() as tracking:
        for number in range(3):
            site.round(tracking, number)
        (report,) = tracking.end({"rounds": 2})
    assert stranger.SAID == [
        ("start", "run-1", 0), ("round", 0), ("round", 1), ("round", 2), ("end", 2), ("close",)
    ]  # fmt: skip
    assert len(threads) == 1
    assert threads != {threading.current_thread()}
    assert report.row() == {"through": 2, "missing": 0, "failures": {}}
    assert site.told == []


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
def test_a_round_that_is_refused_is_told_three_times_then_passed_over(site, stranger, error):
    asked = []

    def act(word, number):
        if number == 1:
            asked.append(number)
            raise error

    stranger.WHEN["round"] = act
    with site.tracking() as tracking:
        for number in range(4):
            site.round(tracking, number)
        (report,) = tracking.end({"rounds": 3})
    assert len(asked) == TRIES
    assert rounds(stranger) == [0, 2, 3]
    assert report.row() == {"through": 3, "missing": 1, "failures": {type(error).__name__: TRIES}}
    first, *rest = site.told
    assert first.startswith(f"tracker told, round 1: {type(error).__name__}")
    assert rest == [
        f"tracker told failed: {type(error).__name__} × {TRIES}",
        "tracker told refused 1 round for good",
    ]
    assert "in act" in (site.folder.path / f"state/trackers/told-{type(error).__name__}.txt").read_text()


def test_a_full_disk_is_waited_for_and_told_once(site, stranger):
    failed = threading.Event()
    stranger.WHEN["round"] = lambda *words: (failed.set(), raising(OSError(28, "full"))())
    with site.tracking() as tracking:
        for number in range(TRIES + 3):
            failed.clear()
            site.round(tracking, number)
            assert failed.wait(300)
        assert rounds(stranger) == []
        del stranger.WHEN["round"]
        (report,) = tracking.end({"rounds": TRIES + 2})
    assert rounds(stranger) == list(range(TRIES + 3))
    assert report.behind == 0
    assert len([text for text in site.told if "round 0: OSError" in text]) == 1


def test_a_run_does_not_wait_for_a_slow_tracker_and_says_so(site, stranger, monkeypatch):
    go_on = threading.Event()
    stranger.WHEN["round"] = lambda *words: go_on.wait(300)
    monkeypatch.setattr(tracking_module, "DRAIN_S", 0.05)
    with site.tracking() as tracking:
        for number in range(MOST_BEHIND + 3):  # all of them end, and none is in memory
            site.round(tracking, number)
        (report,) = tracking.end({"rounds": MOST_BEHIND + 2})
    assert (report.behind, report.answered) == (MOST_BEHIND + 3, False)
    assert [text for text in site.told if "rounds behind: the run does not wait" in text]
    assert site.told[-1].endswith("it did not answer in time; a resume tells them again")
    go_on.set()


def test_a_later_start_tells_what_an_earlier_one_did_not(site, stranger):
    stranger.WHEN["round"] = lambda word, number: number > 1 and raising(OSError("x"))()
    with site.tracking() as tracking:
        for number in range(4):
            site.round(tracking, number)
    del stranger.WHEN["round"]
    stranger.SAID.clear()
    with site.tracking() as tracking:
        tracking.observe(RunStarted(5, 3, 2))
        site.round(tracking, 4)
    assert stranger.SAID == [("start", "run-1", 2), ("round", 2), ("round", 3), ("round", 4), ("close",)]


def test_rounds_that_were_taken_back_are_told_as_they_are_now(site, stranger):
    """A backup was put back: the run goes on from round 1, and its rounds are others from there on."""
    with site.tracking() as tracking:
        for number in range(5):
            site.round(tracking, number)
    stranger.SAID.clear()
    site.folder.keep_rounds(1)
    with site.tracking() as tracking:
        tracking.observe(RunStarted(5, 1, 2))
        site.round(tracking, 2)
    assert stranger.SAID[:2] == [("start", "run-1", 2), ("round", 2)]


def test_a_line_without_its_checkpoint_is_not_told(site, stranger):
    with site.tracking() as tracking:
        site.round(tracking, 0)
        site.folder.append_round(RoundRecord({"round": 1}))
        tracking.end({"rounds": 0})
    assert rounds(stranger) == [0]


def test_a_run_may_begin_before_it_has_a_line(site, stranger):
    """As with ``--engine network``: the daemon writes the line of round 0 later."""
    looked = threading.Event()
    stranger.WHEN["start"] = lambda *words: looked.set()
    with site.tracking() as tracking:
        tracking.observe(RunStarted(1, 0, 2))
        assert looked.wait(300)
        site.round(tracking, 0)
        (report,) = tracking.end({"rounds": 0})
    assert rounds(stranger) == [0]
    assert report.failures == {}
    assert site.told == []


def test_a_start_that_fails_is_tried_again(site, stranger):
    failed = threading.Event()
    stranger.WHEN["start"] = lambda *words: (failed.set(), raising(ValueError("not yet"))())
    with site.tracking() as tracking:
        site.round(tracking, 0)
        assert failed.wait(300)
        del stranger.WHEN["start"]
        site.round(tracking, 1)
    assert stranger.SAID == [("start", "run-1", 0), ("round", 0), ("round", 1), ("close",)]


def test_a_second_interrupt_waits_for_nobody(site, stranger, monkeypatch):
    go_on = threading.Event()
    stranger.WHEN["round"] = lambda *words: go_on.wait(300)
    tracking = site.tracking()
    site.round(tracking, 0)
    tracking.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)  # DRAIN_S is 300 here
    assert site.told == [
        "tracker told has not taken 1 round: it did not answer in time; a resume tells them again"
    ]
    go_on.set()


def test_the_daemons_end_has_time_for_it():
    assert DRAIN_S < GRACE_S


# --- the file -------------------------------------------------------------------------------------


def federation(trackers):
    return federation_of(TABLES | {"trackers": trackers}, folder=Path(), name="f")


@pytest.mark.parametrize(
    ("trackers", "said"),
    [
        (
            [{"kind": "nope"}],
            r"trackers\.0\.kind: expected one of 'mlflow', 'tensorboard', 'wandb'.*\(told\), got 'nope'",
        ),
        ([{"kind": "told"}, {"kind": "told"}], "each kind at most once, and not 'told' again"),
        ([{"kind": "told", "file": "x"}], r"trackers\.0\.file: expected no such key"),
        ([{"kind": "told", "url": 3}], r"trackers\.0\.url: expected a valid string, got 3"),
        ([{"kind": "os:system"}], r"trackers\.0\.kind"),
        ([{"kind": "../told"}], r"trackers\.0\.kind"),
    ],
)
def test_what_is_wrong_is_told_by_its_key(stranger, trackers, said):
    with pytest.raises(ConfigError, match=said):
        federation(trackers)


def test_they_are_written_down_but_not_pinned(stranger, tmp_path):
    loaded, without = federation([{"kind": "told", "url": "u"}]), federation([])
    assert loaded.sha256() == without.sha256()
    assert loaded.settings.packages == {}
    folder = RunFolder.create(tmp_path / "a", loaded, {"engine": "inprocess"})
    _, again, _ = RunFolder.open(folder.path, trackers=True)
    assert again.trackers == loaded.trackers
    assert again.sha256() == loaded.sha256()


def test_who_only_looks_at_a_run_needs_no_package(tmp_path, stranger):
    folder = RunFolder.create(tmp_path / "a", federation([{"kind": "told"}]), {"engine": "inprocess"})
    text = (folder.path / "federation.toml").read_text()
    (folder.path / "federation.toml").write_text(text.replace('"told"', '"gone"'))
    assert RunFolder.open(folder.path)[1].trackers == ()
    with pytest.raises(ConfigError, match="'gone'"):
        RunFolder.open(folder.path, trackers=True)


def test_a_server_refuses_what_its_owner_does_not_allow(stranger):
    allow_only([], SERVER_ALLOWS)
    with pytest.raises(PluginNotAllowed, match=r'server\.toml.*add "trackers:told"'):
        federation([{"kind": "told"}])
    allow_only(["trackers:told"], SERVER_ALLOWS)
    assert federation([{"kind": "told"}]).trackers


def test_without_its_extra_the_built_in_kind_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r'pip install "headwater\[tensorboard\]"'):
        federation([{"kind": "tensorboard"}])


# --- a run ----------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "federation.toml"
    path.write_text(tomli_w.dumps(TABLES))
    return path


@pytest.mark.parametrize("options", [{}, {"workers": 2}], ids=["inprocess", "workers"])
def test_a_run_tells_them(file, tmp_path, stranger, options):
    summary, _ = run(file, tmp_path / "out", "trackers=[{ kind = 'told' }]", **options)
    assert rounds(stranger) == [0, 1, 2, 3]
    assert stranger.SAID[-2:] == [("end", 3), ("close",)]
    assert summary["trackers"] == {"told": {"through": 3, "missing": 0, "failures": {}}}
    assert json.loads((tmp_path / "out/summary.json").read_text())["trackers"] == summary["trackers"]


def test_a_tracker_may_be_added_and_taken_away_between_starts(file, tmp_path, stranger):
    whole, _ = run(file, tmp_path / "whole")
    first, _ = run(file, tmp_path / "out", should_stop=(tmp_path / "out/rounds.jsonl").exists)
    assert first["stopped"] == "stopped"
    assert "trackers" not in first
    settings = tmp_path / "out/federation.toml"
    without = settings.read_text()
    settings.write_text('trackers = [{ kind = "told" }]\n' + without)
    folder, loaded, _ = RunFolder.open(tmp_path / "out", trackers=True)
    summary = simulate(loaded, folder)
    assert summary["adapter_sha256"] == whole["adapter_sha256"]
    assert rounds(stranger) == [0, 1, 2, 3]  # the round before it was there, too
    settings.write_text(without)
    again, _ = resume(tmp_path / "out")
    assert again["adapter_sha256"] == whole["adapter_sha256"]
    assert "trackers" not in again
