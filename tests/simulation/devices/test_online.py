"""When a device is online, against a count of single microseconds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import FederationStopped
from headwater.seeds.keys import Key
from headwater.simulation.devices import online
from headwater.simulation.devices.clock import NEVER
from headwater.simulation.devices.online import DAY, Always, Changes, Churning, Daily

END = 60


@st.composite
def traces(draw):
    times = sorted(draw(st.sets(st.integers(0, 25), max_size=6)))
    times = times[: len(times) // 2 * 2]
    repeat = draw(st.none() | st.integers(26, 30) | st.just(max(times, default=1) or 1))
    return Changes(tuple(times), repeat)


def bits(times, start, end):
    return [times.online(now) for now in range(start, end)]


@given(times=traces(), now=st.integers(0, 30))
def test_the_next_change_is_the_first_moment_that_differs(times, now):
    row = bits(times, now, now + END)
    differs = [now + i for i, online in enumerate(row) if online != row[0]]
    found = times.next_change(now)
    assert found == (differs[0] if differs else NEVER)


@given(times=traces(), start=st.integers(0, 30), amount=st.integers(0, 20), resumes=st.booleans())
@settings(max_examples=200)
def test_work_ends_when_so_many_moments_online_have_passed(times, start, amount, resumes):
    row = bits(times, start, start + 40 * END)
    when, done = times.work(start, amount, resumes=resumes)
    if True not in row:
        assert (when, done) == (NEVER, False)
        return
    now, left = start + row.index(True), amount
    while left and now - start < len(row):
        if row[now - start]:
            left -= 1
        elif not resumes:
            break
        now += 1
    if left and resumes:
        assert (when, done) == (NEVER, False)
    else:
        assert (when, done) == (now, not left)


@given(times=traces(), start=st.integers(0, 30), length=st.integers(0, END))
def test_time_online_is_the_count_of_its_moments(times, start, length):
    assert times.time_online(start, start + length) == sum(bits(times, start, start + length))


@given(start=st.integers(0, 2 * DAY), length=st.integers(0, DAY), now=st.integers(0, 3 * DAY))
def test_a_daily_window_opens_and_closes_once_a_day(start, length, now):
    daily = Daily(start, length)
    assert daily.online(now) == daily.online(now + DAY) == ((now - start) % DAY < length)
    following = daily.next_change(now)
    if following < NEVER:
        assert now < following <= now + DAY
        assert daily.online(following) != daily.online(now) == daily.online(following - 1)
        assert daily.time_online(now, now + DAY) == length


@given(seed=st.integers(0, 50), asked=st.lists(st.integers(0, 5_000_000), max_size=5))
def test_churn_does_not_hang_on_who_asked_before(seed, asked):
    def drawn():
        return Churning(1.0, 0.5, Key.root(seed).numpy())

    fresh, used = drawn(), drawn()
    for now in asked:
        used.next_change(now)
    changes, now = [], 0
    while now < 4_000_000:
        now = fresh.next_change(now)
        changes.append(now)
    now = 0
    for change in changes:
        assert used.online(now) == used.online(change - 1) != used.online(change)
        now = used.next_change(now)
        assert now == change


def test_churn_is_online_for_its_share_of_the_time():
    end = 4_000_000_000
    share = Churning(3.0, 1.0, Key.root(1).numpy()).time_online(0, end) / end
    assert abs(share - 0.75) < 0.05


@pytest.mark.parametrize("resumes", [True, False])
def test_churn_without_end_is_told(monkeypatch, resumes):
    monkeypatch.setattr(online, "MOST_CHANGES", 1000)
    times = Churning(1e-6, 1e-6, Key.root(1).numpy())
    with pytest.raises(FederationStopped, match="comes and goes at most 1,000 times, got one that"):
        times.work(0 if resumes else 10**6, 10**6, resumes=resumes)
    daily = Daily(0, 1)
    assert daily.work(0, 900, resumes=True) == (899 * DAY + 1, True)
    with pytest.raises(FederationStopped, match="longer times online and offline, or shorter tasks"):
        daily.work(0, 1001, resumes=True)


def test_always_is_always():
    assert Always().work(7, 5, resumes=False) == (12, True)
