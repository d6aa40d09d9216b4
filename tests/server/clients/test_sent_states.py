"""How states travelled, by round: every request is counted once, by what its client had."""

from __future__ import annotations

import json

import pytest

from headwater.server.clients.run_control import Interrupted
from headwater.server.events import RoundEnded
from headwater.server.round_record import RoundRecord, SentStates
from tests.server.rounds.test_lasting_seeds import KSEED, Site, three_clients  # noqa: F401 - a fixture
from tests.server.rounds.test_lasting_states import SPARSE


def states(site):
    return [record.get("states", {}) for record in site.records][1:]


def test_first_nothing_and_catch_up_are_told_apart(tmp_path):
    site = Site(tmp_path, "sparse", **SPARSE)
    with pytest.raises(Interrupted):
        site.go(crash_at=3, kinds=RoundEnded)  # after round 2
    for path in site.folder.clients.rglob("*.state"):
        path.unlink()
    site.go()
    first, second, third = states(site)
    assert first == {"nothing": {"sent": 3, "bytes": 3 * 10}}  # the seed makes it: ten bytes say which
    assert second.keys() == {"since"}
    assert (second["since"]["sent"], second["since"]["versions"]) == (3, {"1": 3})
    assert third.keys() == {"since", "whole"}  # who lost what it had is sent all of it
    assert (third["since"]["sent"], third["whole"]["sent"]) == (3, 3)
    assert third["whole"]["bytes"] > 5 * third["since"]["bytes"]


def test_seeds_have_a_first_and_know_versions(tmp_path):
    seeds = Site(tmp_path, "seeds", training=KSEED)
    seeds.go()
    assert [set(found) for found in states(seeds)] == [{"first"}, {"whole"}, {"since"}]
    assert states(seeds)[2]["since"]["versions"] == {"1": 3}


@pytest.mark.parametrize("content", [{}, {"states": 3}, {"states": {"since": 4, "other": {"sent": 1}}}])
def test_a_line_of_anything_reads_as_words(content):
    record = RoundRecord({"round": 1, **content})
    assert record.states in ("", "0 since –")


def test_counts_add_up_and_are_said_in_words():
    tally = SentStates()
    for way, behind, size in (("since", 2, 700), ("nothing", 0, 10), ("since", 11, 500), ("nothing", 0, 10)):
        tally.add(way, behind, size)
    found = tally.record()
    assert found == {
        "nothing": {"sent": 2, "bytes": 20},
        "since": {"sent": 2, "bytes": 1200, "versions": {"2": 1, "11": 1}},
    }
    assert (
        RoundRecord(json.loads(json.dumps({"round": 1, "states": found}))).states
        == "2 nothing, 2 since 1.20 KB"
    )
