"""The daemon is killed with SIGKILL at every moment of a round that can be told from outside."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.faults.fleet import Trial, eventually, vector

pytestmark = pytest.mark.faults


def strike(trial: Trial, moment: Callable[[], bool], landed: Callable[[], bool], tries: int = 8) -> str:
    """Kill the daemon at a moment; again, in a later round, if the files say that it was another one.

    Returns:
        What the files say.
    """
    for attempt in range(1, tries + 1):
        eventually(moment, 60, "the moment")
        trial.fleet.daemon.kill()
        seen = (
            f"rounds.jsonl {trial.round}, checkpoint {trial.saved}, open {trial.open_round or '-'}, "
            f"spool {len(trial.spool())}, kill {attempt}"
        )
        hit = landed()
        trial.fleet.restart_daemon()
        if hit:
            return seen
        begun = trial.round
        eventually(lambda begun=begun: trial.round > begun, 60, "the next round")
    raise AssertionError(f"{tries} kills missed the moment; the last: {seen}")


def test_before_the_first_round(fleet, note, outcome):
    trial = Trial(fleet)
    fleet.daemon.kill()
    note("kill -9 of the daemon right after it took a run", f"checkpoint {trial.saved}")
    assert trial.saved == -1
    fleet.restart_daemon()
    outcome(trial.ends_right())


def test_while_it_starts(fleet, note, outcome):
    trial = Trial(fleet)
    trial.reach(2)
    fleet.daemon.kill()
    for after_s in (0.3, 1.0, 2.0):
        fleet.restart_daemon()
        time.sleep(after_s)
        fleet.daemon.kill()
    note("kill -9 of the daemon 0.3, 1 and 2 s into its start", times=3)
    fleet.restart_daemon()
    outcome(trial.ends_right())


def test_while_clients_train(fleet, note, outcome):
    trial = Trial(fleet)
    trial.reach(3)
    seen = strike(
        trial,
        lambda: trial.open_round > trial.saved and not trial.spool(),
        lambda: trial.open_round > trial.saved and not trial.spool(trial.open_round),
    )
    note("kill -9 of the daemon while clients train, nothing accepted yet", seen)
    outcome(trial.ends_right())


def test_right_after_an_update_is_on_disk(fleet, note, outcome):
    trial = Trial(fleet)
    trial.reach(3)
    count = lambda: len(trial.spool(trial.open_round))  # noqa: E731 - a name for the condition
    seen = strike(trial, lambda: 0 < count() < 3, lambda: 0 < count() < 3)
    note("kill -9 of the daemon right after an update of an open round is on disk", seen)
    outcome(trial.ends_right())


def test_with_all_updates_before_the_merge(fleet, note, outcome):
    trial = Trial(fleet, vector(20))
    trial.reach(3)

    def all_in() -> bool:
        number = trial.saved + 1
        return len(trial.spool(number)) == 3 and trial.round < number

    seen = strike(trial, all_in, all_in)
    note("kill -9 of the daemon with all updates on disk, before their merge", seen)
    outcome(trial.ends_right())


def test_between_the_rounds_line_and_the_checkpoint(fleet, note, outcome):
    trial = Trial(fleet, vector(20))
    trial.reach(3)
    seen = strike(trial, lambda: trial.round > trial.saved, lambda: trial.round > trial.saved)
    note("kill -9 of the daemon between a round's line and its checkpoint", seen)
    outcome(trial.ends_right())


def test_between_the_checkpoint_and_the_end_of_the_spool(fleet, note, outcome):
    trial = Trial(fleet, vector(20))
    trial.reach(3)
    left = lambda: bool(trial.spool(trial.saved))  # noqa: E731 - a name for the condition
    seen = strike(trial, left, left)
    note("kill -9 of the daemon between a checkpoint and the removal of what is in it", seen)
    outcome(trial.ends_right())


def test_while_it_writes_the_result(fleet, note, outcome):
    trial = Trial(fleet, vector(6))
    eventually(lambda: trial.saved == 6, 60, "the last checkpoint")
    fleet.daemon.kill()
    done = sorted(p.name for p in trial.folder.iterdir() if p.name in ("adapter", "summary.json"))
    assert not (trial.folder / "report.html").exists()
    note("kill -9 of the daemon after the last round, before the result is written", f"had {done}")
    fleet.restart_daemon()
    outcome(trial.ends_right())


def test_in_the_middle_of_the_export(fleet, note, outcome):
    trial = Trial(fleet, vector(6))
    eventually(lambda: (trial.folder / "adapter").exists(), 60, "the export")
    fleet.daemon.kill()
    assert not (trial.folder / "report.html").exists()
    note("kill -9 of the daemon between the adapter and the report")
    fleet.restart_daemon()
    outcome(trial.ends_right())
    assert (trial.folder / "report.html").exists()


def test_again_and_again(fleet, note, outcome):
    trial = Trial(fleet, vector(16))
    kills = 0
    for pause_s in (0.2, 0.5, 1.0, 0.1, 1.5, 0.7):
        eventually(lambda: fleet.status() is not None, 60, "the daemon's answer", 0.1)
        time.sleep(pause_s)
        row = trial.row()
        if row is not None and row.state == "finished":
            break
        fleet.daemon.kill()
        kills += 1
        fleet.restart_daemon()
    assert kills >= 4
    note("kill -9 of the daemon 0.1 to 1.5 s after each start", times=kills)
    outcome(trial.ends_right())


def test_while_clients_evaluate(tiny, note, outcome):
    trial = Trial(tiny)
    trial.reach(1)

    def evaluating() -> bool:
        said = f"round {trial.saved + 1}: evaluating"
        return trial.round == trial.saved and said in tiny.daemon.tail(3)

    seen = strike(trial, evaluating, evaluating)
    note("kill -9 of the daemon while it and the clients evaluate", seen)
    outcome(trial.ends_right())


def test_while_clients_backpropagate(tiny, note, outcome):
    trial = Trial(tiny)
    seen = strike(
        trial,
        lambda: trial.open_round > trial.saved and not trial.spool(),
        lambda: not trial.spool(trial.open_round),
    )
    note("kill -9 of the daemon while clients train a BERT", seen)
    outcome(trial.ends_right())
