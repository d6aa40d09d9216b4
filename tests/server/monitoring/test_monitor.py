"""The monitor: what events add up to, who waits for them, and that nothing grows."""

from __future__ import annotations

import gc
import logging
import math
import threading
import time

import pytest

from headwater.process_memory import status_bytes
from headwater.server.events import (
    ClientAsked,
    ClientFailed,
    ClientKnown,
    Notice,
    RoundEnded,
    RoundStarted,
    RunStarted,
    Waiting,
)
from headwater.server.monitoring.counters import ClientFacts
from headwater.server.monitoring.event_log import MOST_AT_ONCE, MOST_ERRORS, MOST_EVENTS
from headwater.server.monitoring.monitor import MOST_ENDED, Monitor
from headwater.server.monitoring.refusals import MOST_REASONS, TELL_EVERY_S
from headwater.server.round_record import RoundRecord
from tests.support.organisers import RUN, ToyOrganiser


@pytest.fixture
def toy(tmp_path):
    return ToyOrganiser(tmp_path)


def test_a_run_adds_up(toy):
    toy.begin(10)
    toy.end_round(1, 0.7)
    toy.end_round(2, 0.6, {"ben": "no answer"})
    (run,) = toy.status().runs
    assert (run.state, run.round, run.rounds, run.metric) == ("running", 2, 10, "accuracy")
    assert (run.value, run.best_round, run.best_value) == (0.6, 1, 0.7)
    assert (run.asked, run.accepted) == (0, 0)
    assert run.bytes_down == 2 * 3 * 45_000
    assert run.bytes_up == (12_000 * 3 + 37 * 3 + 211 * 3) + (12_000 * 2 + 37 * 2 + 422 * 2)
    assert run.seconds_per_round == pytest.approx(2.15)  # of rounds 1 and 2, not of the measurement before
    ann, ben, _ = toy.status().clients
    assert (ann.accepted_rounds, ann.failed_rounds, ann.doing, ann.examples) == (2, 0, "idle", 800)
    assert (ben.accepted_rounds, ben.failed_rounds, ben.last_error) == (1, 1, "no answer")


def test_an_open_round_shows_who_is_in(toy):
    toy.begin()
    toy.start_round(1)
    assert [c.doing for c in toy.status().clients] == ["train 1"] * 3
    tell = toy.monitor.observer(RUN)
    tell(ClientFailed(1, "ben", "client ben: diverged"))
    assert [c.doing for c in toy.status().clients] == ["train 1", "idle", "train 1"]
    assert toy.status().runs[0].asked == 3
    tell(ClientAsked(1, "ann", "evaluate", 5))
    assert toy.status().clients[0].doing == "evaluate 1"
    toy.monitor.run_state(RUN, "paused")
    assert {c.doing for c in toy.status().clients} == {"idle"}


def test_nothing_is_known_before_the_first_round(tmp_path):
    toy = ToyOrganiser(tmp_path)
    toy.monitor.run_queued(RUN, "x", 3)
    (run,) = toy.status().runs
    assert math.isnan(run.value)
    assert math.isnan(run.best_value)
    assert math.isnan(run.seconds_per_round)
    assert run.state == "queued"


def test_a_client_that_fits_again_has_no_problem_any_more(toy):
    tell = toy.monitor.observer(RUN)
    tell(ClientFailed(0, "ben", "no such model"))
    assert {c.client: c.last_error for c in toy.monitor.status().clients}["ben"] == "no such model"
    tell(ClientKnown("ben", "0.1.0", 7))
    assert {c.client: c.last_error for c in toy.monitor.status().clients}["ben"] == ""


def test_a_client_that_does_not_fit_is_told_with_the_round_that_is_open(toy):
    tell = toy.monitor.observer(RUN)

    def told():
        tell(ClientFailed(0, "ben", "no such model"))
        return toy.monitor.events(-1)[-1].text

    toy.monitor.run_queued(RUN, "x", 500)
    assert told() == "before round 1: client ben: no such model"
    tell(RoundStarted(361, 2))
    assert told() == "while round 361 is open: client ben: no such model"
    tell(RoundEnded(361, RoundRecord({"round": 361, "clients": {}}), "accuracy", 0.5))
    assert told() == "before round 362: client ben: no such model"


def test_a_client_whose_training_fails_keeps_its_problem_though_it_fits(toy):
    tell = toy.monitor.observer(RUN)
    toy.begin()
    tell(ClientFailed(2, "ben", "damaged error feedback"))
    tell(ClientKnown("ben", "0.1.0", 7))
    assert {c.client: c.last_error for c in toy.monitor.status().clients}["ben"] == "damaged error feedback"


def test_waiting_is_a_state_and_ends(toy):
    toy.begin()
    tell = toy.monitor.observer(RUN)
    tell(Waiting(1, 3))
    tell(Waiting(1, 3))
    assert (toy.status().runs[0].state, toy.status().runs[0].reason) == (
        "waiting",
        "1 of the 3 clients that a round needs are here; 2 more must be enrolled",
    )
    tell(Waiting(3, 3))
    assert (toy.status().runs[0].state, toy.status().runs[0].reason) == ("running", "")
    assert sum("waiting" in e.text for e in toy.monitor.events(-1)) == 1  # not once per Waiting


def test_restored_rounds_are_what_was_watched(toy, tmp_path):
    toy.begin(10)
    for number in range(1, 6):
        toy.end_round(number, 0.5 + 0.1 * (number % 3), {"cleo": "late"} if number == 2 else {})
    other = ToyOrganiser(tmp_path)
    other.monitor.run_queued(RUN, "sentiment", 10, submitted=toy.status().runs[0].submitted)
    lines = [RoundRecord.read(line) for line in toy.rounds_file.read_bytes().splitlines()]
    other.monitor.run_restored(RUN, lines, "accuracy")
    other.monitor.run_restored(RUN, lines, "accuracy")  # paused, then resumed: nothing counts twice
    other.monitor.observer(RUN)(RunStarted(10, 5, 3, 0.7, toy.status().runs[0].bytes_up, 0))
    before, after = toy.status(), other.status()
    assert after.runs[0].bytes_up == before.runs[0].bytes_up
    assert after.runs[0].bytes_down == 0  # what the run itself says at its start wins
    assert after.runs[0].best_round == before.runs[0].best_round == 2
    assert after.runs[0].seconds_per_round == before.runs[0].seconds_per_round
    assert [c.accepted_rounds for c in after.clients] == [c.accepted_rounds for c in before.clients]


def test_memory_does_not_grow_with_rounds(tmp_path):
    toy = ToyOrganiser(tmp_path)
    toy.monitor.run_queued(RUN, "long", 10**6, metric="loss")
    tell = toy.monitor.observer(RUN)

    def rounds(first: int, last: int) -> tuple[int, int]:
        for n in range(first, last):
            rows = {"ann": {"bytes_up": n}, "ben": {"failed": f"reason {n}"}}
            record = {"round": n, "clients": rows, "bytes": {"up": n, "down": 1}, "seconds": 1.0}
            tell(RoundEnded(n, RoundRecord(record), "loss", 1 / n))
            if n % 10 == 0:
                tell(ClientFailed(n, "ben", f"reason {n}"))
        gc.collect()
        return len(gc.get_objects()), status_bytes("VmRSS")

    logging.disable()  # pytest keeps every line
    try:
        objects, memory = rounds(1, 5_000)  # every ring is full now
        more_objects, more_memory = rounds(5_000, 45_000)
    finally:
        logging.disable(logging.NOTSET)
    assert more_objects - objects < 200
    assert more_memory - memory < 2_000_000
    assert toy.status().runs[0].round == 44_999
    assert len(toy.status().errors) == MOST_ERRORS


def test_ended_runs_reasons_and_events_are_bounded(toy):
    for i in range(MOST_ENDED + 50):
        toy.monitor.run_queued(f"run{i}", "x", 1)
        toy.monitor.run_state(f"run{i}", "finished")
    assert len(toy.status().runs) <= MOST_ENDED + 1
    assert toy.status().runs[-1].run == f"run{MOST_ENDED + 49}"
    for i in range(10_000):
        toy.monitor.refused(f"reason {i}", f"client {i}")
    refused = toy.status().refused
    assert len(refused) == MOST_REASONS + 1
    assert sum(refused.values()) == 10_000
    toy.monitor.notice("long " * 1000)
    assert len(toy.monitor.events(toy.monitor.last_seq - 1)[0].text) <= 500


def test_a_flood_of_refusals_is_counted_but_told_once_a_minute(tmp_path):
    now = [0.0]
    monitor = Monitor(version="1", clock=lambda: now[0])
    for _ in range(5_000):
        monitor.refused("unknown key")
    assert monitor.last_seq == 1
    now[0] = TELL_EVERY_S
    monitor.refused("unknown key")
    assert monitor.events(1)[0].text == "refused 5,000: unknown key"
    now[0] = 0.0  # the clock was set back: told, not silent for ever
    monitor.refused("unknown key")
    assert monitor.last_seq == 3
    assert monitor.status().refused == {"unknown key": 5_002}


def test_refusals_of_the_port_are_added(tmp_path):
    monitor = Monitor(version="1", refused=lambda: {"a": 2, "b": 1})
    monitor.refused("a")
    assert monitor.status().refused == {"a": 3, "b": 1}


def test_failures_of_clients_do_not_push_out_errors_of_the_daemon(toy):
    toy.begin()
    toy.monitor.error("the disk is full")
    for i in range(500):
        toy.monitor.observer(RUN)(ClientFailed(1, "ann", f"late {i}"))
    texts = [e.text for e in toy.status().errors]
    assert "the disk is full" in texts
    assert texts[-1] == "round 1: client ann: late 499"
    toy.monitor.run_state(RUN, "failed", "no space")
    assert toy.status().errors[-1].kind == "error"


def test_hostile_text_is_one_visible_line(toy):
    toy.monitor.observer(RUN)(Notice("a\nb\x1b[31m\u202ec"))
    text = toy.monitor.events(-1)[-1].text
    assert text == "a b�[31m�c"


def test_events_are_numbered_and_none_is_lost_or_doubled(toy):
    for i in range(MOST_EVENTS + 700):
        toy.monitor.notice(str(i))
    found, after = [], -1
    while batch := toy.monitor.events(after):
        assert len(batch) <= MOST_AT_ONCE
        found += batch
        after = batch[-1].seq
    assert [e.seq for e in found] == list(range(701, MOST_EVENTS + 701))
    assert toy.monitor.events(10**9)[0].seq == 701  # a number of an earlier daemon


def test_waiting_for_an_event(toy):
    threading.Timer(0.15, lambda: toy.monitor.notice("now")).start()
    (event,) = toy.monitor.events(0, 600.0)  # longer than a test may take: it ends by the event
    assert event.text == "now"
    assert toy.monitor.events(event.seq, 0.05) == []


def test_watch_begins_now_or_with_all_and_ends(toy):
    toy.monitor.notice("old")
    everything = toy.monitor.watch(-1)
    assert next(everything).text == "old"
    seen: list[str] = []
    watcher = threading.Thread(target=lambda: seen.extend(e.text for e in toy.monitor.watch(0)))
    watcher.start()
    while not seen:  # until the watcher watches
        toy.monitor.notice("new")
        time.sleep(0.01)
    toy.monitor.close()
    watcher.join(60)
    assert not watcher.is_alive()
    assert set(seen) == {"new"}
    assert list(Monitor(version="1").watch(0, ended=lambda: True)) == []


def test_many_threads_tell_and_ask_at_once(toy):
    toy.begin(10**6)
    failures: list[BaseException] = []

    def tell(client: str) -> None:
        try:
            for i in range(300):
                toy.monitor.observer(RUN)(ClientAsked(i, client, "train", 1))
                toy.monitor.refused("x")
                toy.status()
                toy.monitor.events(-1)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=tell, args=(c,)) for c in toy.clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert toy.status().refused == {"x": 900}


def test_a_client_that_is_not_enrolled_has_no_row(toy):
    toy.begin()
    toy.facts.pop("ben")
    toy.end_round(1, 0.6)
    assert [c.client for c in toy.status().clients] == ["ann", "cleo"]
    toy.facts["ann"] = ClientFacts("ann", revoked=True, online=True)
    assert toy.status().clients[0].state == "revoked"


def test_what_a_client_has_mended_is_no_problem_any_more_also_after_a_restart(tmp_path):
    toy = ToyOrganiser(tmp_path)
    toy.begin(10)
    toy.end_round(1, 0.6, {"ben": "a damaged file"})
    assert last_errors(toy) == {"ben": "a damaged file"}
    toy.end_round(2, 0.7)
    assert last_errors(toy) == {}
    restarted = ToyOrganiser(tmp_path / "none")
    restarted.monitor.run_queued(RUN, "sentiment", 10)
    restarted.monitor.run_restored(RUN, records(toy), "accuracy")
    assert last_errors(restarted) == {}
    toy.end_round(3, 0.7, {"cleo": "late"})
    again = ToyOrganiser(tmp_path / "none")
    again.monitor.run_queued(RUN, "sentiment", 10)
    again.monitor.run_restored(RUN, records(toy), "accuracy")
    assert last_errors(again) == {"cleo": "late"}


def last_errors(toy):
    return {row.client: row.last_error for row in toy.monitor.status().clients if row.last_error}


def records(toy):
    return [RoundRecord.read(line) for line in toy.rounds_file.read_bytes().splitlines()]


def test_an_evaluation_that_failed_stays_told_until_the_next_update(toy):
    toy.begin(10)
    toy.end_round(1, 0.6)
    tell = toy.monitor.observer(RUN)
    tell(ClientFailed(2, "ben", "client ben: expected an evaluation, got noise"))
    rows = {name: {"bytes_up": 1} for name in ("ann", "ben", "cleo")}
    record = {
        "round": 2,
        "clients": rows,
        "bytes": {},
        "not_evaluated": {"ben": "noise", "ann": "not asked: offline"},
    }
    tell(RoundEnded(2, RoundRecord(record), "accuracy", math.nan))
    assert last_errors(toy) == {"ben": "evaluation: noise"}
    toy.end_round(3, 0.7)
    assert last_errors(toy) == {}


def test_a_run_with_noise_says_what_it_has_cost(toy):
    toy.begin()
    assert toy.status().runs[0].privacy == ""
    spent = {"epsilon": 1.2341, "delta": 1e-5, "budget": 4.0, "relation": "zero-out", "rounds_left": 12}
    record = {"round": 1, "clients": {}, "bytes": {}, "privacy": spent}
    toy.monitor.observer(RUN)(RoundEnded(1, RoundRecord(record), "accuracy", math.nan))
    assert toy.status().runs[0].privacy == "ε 1.234 of 4 at δ 1e-05, 12 more rounds"


def test_a_client_that_is_not_heard_of_or_revoked_is_not_shown_at_work(toy):
    toy.begin()
    toy.start_round(1)
    toy.facts["ben"] = ClientFacts("ben", online=False)
    assert [c.doing for c in toy.status().clients] == ["train 1", "train 1, not heard of", "train 1"]
    toy.monitor.client_changed("ben", "revoked")
    toy.facts["ben"] = ClientFacts("ben", revoked=True)
    assert toy.status().clients[1].doing == "idle"
    toy.facts["ben"] = ClientFacts("ben", online=True)  # accepted again, with new keys
    assert toy.status().clients[1].doing == "idle"
