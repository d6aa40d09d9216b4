"""Who is asked again, and when."""

from __future__ import annotations

from headwater.protocol.retries import Retries


def test_pauses_double_up_to_sixteenfold_and_stay_there_for_weeks():
    retries, now, pauses = Retries(3), 0.0, []
    for _ in range(2000):
        retries.later("ann", now)
        (due,) = retries._due_s.values()
        pauses.append(due - now)
        assert retries.due(due - 0.001) == []
        assert retries.due(due) == ["ann"]
        now = due
    assert pauses[:6] == [3, 6, 12, 24, 48, 48]
    assert set(pauses[4:]) == {48}


def test_the_longest_waiting_come_first_and_once():
    retries = Retries(5)
    retries.later("ben", 2)
    retries.later("cleo", 1)
    retries.later("ann", 2)
    assert retries.due(7) == ["cleo", "ann", "ben"]
    assert retries.due(7) == []


def test_one_can_be_taken_before_its_time_and_all_dropped():
    retries = Retries(5)
    retries.later("ann", 0)
    assert retries.take("ann")
    assert not retries.take("ann")
    retries.later("ben", 0)
    retries.clear()
    assert retries.due(1e9) == []


def test_without_a_pause_nobody_is_asked_again():
    retries = Retries(None)
    retries.later("ann", 0)
    assert retries.due(1e9) == []
    assert not retries.take("ann")
