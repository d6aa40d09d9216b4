"""What the organiser is told of a change: which settings, from when on, and which cannot be met."""

from __future__ import annotations

import math

import pytest

from headwater.config.load import load_federation
from headwater.protocol.control import RunRow
from headwater.server.workspace.steering import (
    AT_ONCE,
    CHANGEABLE,
    PLACES,
    tell_changes,
    tell_stop_request,
    tell_unmet,
)
from tests.support.federation_text import vector_text

FEDERATION = vector_text("steered", rounds=20, cohort="min_clients = 2\ndeadline_s = 120")
TURNS = [
    "strategy.weighting=equal",
    "cohort.population=30",
    "cohort.clients_per_round=10",
    'privacy={clip_l2=0.5,noise_multiplier=1,delta=1e-5,mechanism="tree",min_separation=3}',
]


@pytest.fixture
def federation(tmp_path):
    file = tmp_path / "f.toml"
    file.write_text(FEDERATION)
    return lambda *changes: load_federation(file, changes).settings


def row(state="running", round=9, open=10):
    nan = math.nan
    return RunRow("s-1", "steered", state, "", round, 20, 0, 2, "", nan, 0, nan, 0, 0, 0.0, nan, open)


def told(federation, row, **changes):
    full = {CHANGEABLE[name]: value for name, value in changes.items()}
    after = federation(*(f"{key}={value}" for key, value in full.items()))
    return tell_changes(federation(), after, full, row)


def test_a_time_holds_at_once_and_anything_else_from_the_round_after_the_open_one(federation):
    assert told(federation, row(), deadline_s=30) == "deadline_s 120 → 30, at once"
    assert told(federation, row(), evaluation_deadline_s=5) == "evaluation_deadline_s none → 5, at once"
    assert (
        told(federation, row(), rounds=40, min_clients=3)
        == "rounds 20 → 40, min_clients 2 → 3, from round 11"
    )
    assert told(federation, row(open=0), rounds=40) == "rounds 20 → 40, from round 10"


@pytest.mark.parametrize(
    ("state", "when"),
    [
        ("queued", "when it goes on"),
        ("paused", "once it is resumed: headwater server resume DIR s-1"),
        ("finished", "once it is resumed: headwater server resume DIR s-1"),
        ("stopped", "once it is resumed: headwater server resume DIR s-1"),
        ("failed", "when it goes on or is resumed: headwater server resume DIR s-1"),
    ],
)
def test_a_run_that_does_not_go_on_takes_what_is_set_when_it_does(federation, state, when):
    for setting, shown in (("deadline_s", "120 → 30"), ("rounds", "20 → 30")):
        said = told(federation, row(state, open=0), **{setting: 30})
        assert said == f"{setting} {shown}, {when}"


def test_what_changes_nothing_says_so(federation):
    assert told(federation, row(), deadline_s=120) == "deadline_s is 120 already"
    both = told(federation, row(), deadline_s=120, rounds=30)
    assert both == "deadline_s is 120 already; rounds 20 → 30, from round 11"


def test_every_setting_has_its_moment():
    assert set(CHANGEABLE.values()) >= AT_ONCE | PLACES
    assert {name for name in CHANGEABLE if name.endswith("_s")} == {
        name for name, full in CHANGEABLE.items() if full in AT_ONCE
    }


@pytest.mark.parametrize(
    ("request_", "open", "text"),
    [
        ("pause", 10, "pauses after round 10"),
        ("pause", 0, "pauses before round 10"),
        ("stop", 10, "stops and writes its result after round 10"),
        ("", 10, ""),
    ],
)
def test_a_stop_request_says_when_the_run_ends(request_, open, text):
    assert tell_stop_request(request_, row(open=open)) == text


def test_a_round_that_has_too_few_clients_keeps_nobody_from_stopping():
    told = tell_stop_request("stop", row("waiting"))
    assert told.endswith("after round 10, or without it if too few clients are there for a minute")


@pytest.mark.parametrize(
    ("changes", "enrolled", "words"),
    [
        (
            ["cohort.min_clients=5"],
            2,
            ["min_clients is 5", "2 devices are enrolled", "until 3 more"],
        ),
        (["cohort.min_clients=2"], 1, ["1 device is enrolled", "until 1 more"]),
        (
            TURNS,
            21,
            ["min_separation is 3", "a round asks 10", "wait for ever until 1 more"],
        ),
        (["federation.rounds=4"], 2, ["rounds is 4", "round 10 is open", "ends with round 10"]),
        (["cohort.target_clients=3"], 2, ["target_clients is 3", "a round asks 2", "deadline"]),
        (['schedule={kind="buffered",buffer=5}'], 3, ["buffer is 5", "3 devices are enrolled"]),
    ],
)
def test_what_cannot_be_met_is_said_with_its_numbers(federation, changes, enrolled, words):
    (warning,) = tell_unmet(federation(*changes), row(), enrolled)
    for word in words:
        assert word in warning


def test_what_can_be_met_is_no_warning(federation):
    assert tell_unmet(federation(), row(), 2) == ()
    assert tell_unmet(federation("federation.rounds=10"), row(), 2) == ()  # the open round is the last
    assert tell_unmet(federation("cohort.target_clients=2"), row(), 3) == ()
    assert tell_unmet(federation(*TURNS), row(), 22) == ()  # of whom 20 wait for their turn


def test_of_a_codec_what_it_keeps_may_change(tmp_path):
    file = tmp_path / "f.toml"
    file.write_text(FEDERATION + '[codec.up]\nkind = "compeft"\n')

    def load(*changes):
        return load_federation(file, changes).settings

    keys = ["codec.up.density", "codec.up.alpha"]
    after = load("codec.up.density=0.2", "codec.up.alpha=1.5")
    said = tell_changes(load(), after, keys, row())
    assert said == "density 0.05 → 0.2, alpha none → 1.5, from round 11"
    assert {"density", "alpha", "scale_bits"} <= CHANGEABLE.keys()
    assert not {"codec.up.kind", "codec.up.error_feedback", "codec.up.budget_bytes"} & set(
        CHANGEABLE.values()
    )
