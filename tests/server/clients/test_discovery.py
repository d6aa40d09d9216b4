"""Who is here, who is away, and why: as clients come and go under a daemon."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from headwater.config import load_federation
from headwater.errors import DecodeError
from headwater.protocol.failures import Failure, FailureCode
from headwater.protocol.messages import ClientFailure, ClientProfile, ProfileRequest, reported
from headwater.server.clients import discovery
from headwater.server.clients.client_pool import AWAY_S
from headwater.server.clients.discovery import DiscoveredClients, EnrolledClients
from headwater.server.clients.exchange import ReceivedReply
from headwater.server.clients.run_control import RunControl
from headwater.server.events import Notice
from headwater.server.round_record import RoundDraft, Traffic
from headwater.server.rounds.evaluation import EvaluationRound
from headwater.server.storage.profiles import save_profiles
from tests.support.federation_text import vector_text

FEDERATION = vector_text("t", cohort="deadline_s = 3600.0")
NAMES = ("ann", "ben", "cleo", "dora")


def profile(name, validation=6):
    return ClientProfile(name, 54, validation, "", "", "", "")


class Site:
    """A client discovery whose clients' sessions and answers a test writes down, and the time."""

    def __init__(self, folder, monkeypatch):
        self.sessions, self.now, self.events, self.replies = {}, 0.0, [], []
        save_profiles(folder / "profiles.json", {name: profile(name) for name in NAMES[:3]})
        monkeypatch.setattr(discovery, "profile_of", self.answer)
        control = RunControl(self.events.append, clock=lambda: self.now)
        self.pool = DiscoveredClients(
            self,
            "run-1",
            SimpleNamespace(told_to_devices=lambda start: "{}"),
            SimpleNamespace(base_sha256="", start=None),
            EnrolledClients(lambda: self.sessions, lambda name: name in NAMES, lambda: NAMES),
            folder / "profiles.json",
            control,
        )
        self.control = control

    def answer(self, incoming, context, run, client=""):
        if incoming.error:
            raise DecodeError(f"client {client}", expected="a profile", got=incoming.error)
        return profile(client)

    def send(self, requests, round):
        self.asked = [name for name, _ in requests]

    def forget_address(self, kind, name):
        pass

    def poll(self, *kinds):
        while self.replies:
            yield self.replies.pop()

    def come(self, name, error=""):
        self.sessions[name] = self.sessions.get(name, 0) + 1
        self.look()
        self.replies.append(ReceivedReply(name, ProfileRequest, 0, b"", error, 0))
        self.look()

    def look(self):
        assert list(self.pool.poll()) == []


@pytest.fixture
def site(tmp_path, monkeypatch):
    return Site(tmp_path, monkeypatch)


def test_why_each_is_missing(site):
    site.come("ann")
    site.come("ben", error="other weights")
    site.sessions["dora"] = 1
    site.look()
    assert list(site.pool.ready()) == ["ann"]
    assert site.pool.missing() == {
        "ben": "does not fit this run",
        "cleo": "offline",
        "dora": "has not said yet what it has",
    }
    site.now += 100
    site.come("ben")
    assert "ben" not in site.pool.missing()


def test_who_cannot_work_is_missing_for_the_reason_that_its_device_gave(site, monkeypatch):
    hours = Failure(FailureCode.POLICY_HOURS, (9 * 60, 17 * 60, 20 * 60))
    full = Failure(FailureCode.DISK_FULL, (10**6, 5))
    after_hours, no_room = (
        reported(ClientFailure.coded("ann", 0, f), "client ann", expected="a profile") for f in (hours, full)
    )

    def refuse(incoming, context, run, client=""):
        raise after_hours

    monkeypatch.setattr(discovery, "profile_of", refuse)
    site.come("ann")
    assert site.pool.missing()["ann"] == hours.sentence()
    monkeypatch.undo()
    monkeypatch.setattr(discovery, "profile_of", site.answer)
    site.come("ann")
    assert "ann" in site.pool.ready()
    site.pool.forget_profile("ann", no_room)
    assert site.pool.missing()["ann"] == full.sentence()
    site.look()
    assert site.pool.missing()["ann"] == full.sentence()
    site.replies.append(ReceivedReply("ann", ProfileRequest, 0, b"", "", 0))
    site.look()
    assert "ann" in site.pool.ready()
    del site.sessions["ann"]
    assert site.pool.missing()["ann"] == "offline"


def test_who_was_here_and_has_left_is_away_at_once(site):
    site.come("ann")
    assert not site.pool.is_away("ann")
    del site.sessions["ann"]
    assert site.pool.is_away("ann")
    site.come("ann")
    assert not site.pool.is_away("ann")


def test_who_has_not_been_here_since_the_daemon_began_has_time_to_come_back(site):
    assert not site.pool.is_away("ben")
    site.now += AWAY_S
    assert not site.pool.is_away("ben")
    site.now += 1
    assert site.pool.is_away("ben")


def who_is_asked(site, took_part):
    measurement = EvaluationRound(None, "run-1", None, None, None, site.control, live=lambda: None)
    record = RoundDraft(3, {}, Traffic())
    asked = measurement._available(NAMES[:3], took_part, site.pool, record)
    again = RoundDraft(4, {}, Traffic())
    measurement._available(NAMES[:3], took_part, site.pool, again)
    return asked, record.record(1.0).content.get("not_evaluated", {})


def test_a_client_that_said_goodbye_after_its_update_is_not_asked_and_is_named_once(site):
    site.come("ann")
    site.come("ben")
    del site.sessions["ben"]
    asked, absent = who_is_asked(site, {"ann", "ben"})
    assert asked == ["ann"]
    assert absent == {"ben": "not asked: offline", "cleo": "not asked: offline"}
    (notice,) = [event.text for event in site.events if isinstance(event, Notice)]
    assert notice == ("round 3: 1 of 3 clients are asked to evaluate, without ben (offline), cleo (offline)")


def test_after_a_restart_whoever_took_part_is_asked_though_it_is_not_back_yet(site):
    """The same clients evaluate as without the crash, so the run comes to the same bits."""
    asked, absent = who_is_asked(site, {"ann", "ben"})
    assert asked == ["ann", "ben"]
    assert absent == {"cleo": "not asked: offline"}


def test_how_long_an_evaluation_is_waited_for_is_what_the_organiser_says_now(site, tmp_path):
    def federation(*changes):
        file = tmp_path / "f.toml"
        file.write_text(FEDERATION)
        return load_federation(file, changes).settings

    now = [federation()]
    measurement = EvaluationRound(federation(), "run-1", None, None, None, site.control, live=lambda: now[0])
    assert measurement._deadline_s() == 3600.0  # the round's, where it has none of its own
    now[0] = federation("evaluation.deadline_s=20")
    assert measurement._deadline_s() == 20.0
