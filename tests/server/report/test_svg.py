"""Laws of scales, ticks and label placing, and golden texts of numbers."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.server.report.svg import Plot, Scale, extent, node, spread
from headwater.text import (
    finite,
    human_bytes,
    human_seconds,
    number,
    percent,
    plain,
    signed,
    times,
)

COORDINATES = st.lists(st.floats(-50, 450), max_size=12)


@given(wanted=COORDINATES, gap=st.floats(0.5, 40))
def test_labels_never_overlap_nor_leave_their_margin(wanted, gap):
    placed = spread(wanted, gap, 0.0, 300.0)
    gap = min(gap, 300 / max(len(wanted) - 1, 1))
    ordered = sorted(placed)
    assert all(0 - 1e-6 <= p <= 300 + 1e-6 for p in placed)
    assert all(b - a >= gap - 1e-6 for a, b in pairwise(ordered))
    by_place = [wanted[i] for i in sorted(range(len(wanted)), key=lambda i: placed[i])]
    assert by_place == sorted(wanted)


def test_labels_with_room_stay_where_they_are_and_pairs_share_the_move():
    assert spread([10, 50, 90], 16, 0, 100) == [10, 50, 90]
    assert spread([50, 50], 16, 0, 100) == [42, 58]
    assert spread([1, 0], 16, 0, 100) == [16, 0]


@given(values=st.lists(st.floats(-1e6, 1e6).map(finite), min_size=1, max_size=20), wanted=st.integers(3, 8))
def test_ticks_are_few_round_and_inside(values, wanted):
    scale = extent(values)
    ticks = scale.ticks(wanted)
    assert 1 <= len(ticks) <= wanted + 1
    slack = 1e-6 * (scale.hi - scale.lo)
    assert all(scale.lo - slack <= t <= scale.hi + slack for t in ticks)


@given(values=st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=20))
def test_every_value_is_drawn_inside(values):
    scale = extent(values)
    assert all(0 <= scale(v) <= 1 for v in values)
    assert all(math.isfinite(scale(v)) for v in (0.0, -1.0, 1e300))


def test_wide_ranges_are_logarithmic():
    assert extent([1, 1000]).log
    assert not extent([1, 20]).log
    assert not extent([0, 1000]).log


def test_attributes_and_text_are_escaped():
    assert node("text", '<b>&"', data_x='"><script>') == (
        '<text data-x="&#34;&gt;&lt;script&gt;">&lt;b&gt;&amp;&#34;</text>'
    )


def test_a_line_breaks_where_a_value_is_missing():
    plot = Plot("t", Scale(0, 4, 0, 1), Scale(0, 1, 0, 1), width=200, height=100, left=0, right=0)
    plot.line([(0, 0.0), (1, 1.0), (2, None), (3, 0.5), (4, 0.5)], "main")
    (path,) = plot.parts
    assert 'd="M0.0,62.0L50.0,22.0M150.0,42.0L200.0,42.0"' in path


@pytest.mark.parametrize(
    ("function", "value", "expected"),
    [
        (human_bytes, 0, "0 B"), (human_bytes, 999, "999 B"), (human_bytes, 1000, "1.00 KB"),
        (human_bytes, 12_345, "12.3 KB"), (human_bytes, 999_499, "999 KB"), (human_bytes, 999_500, "1.00 MB"),
        (human_bytes, 9_996, "10.0 KB"), (human_bytes, None, "–"), (human_bytes, math.nan, "–"),
        (human_seconds, 2.13, "2.1 s"), (human_seconds, 14.2, "14 s"), (human_seconds, 99.97, "1 min 40 s"),
        (human_seconds, 7_500, "2 h 05 min"), (human_seconds, -1, "–"),
        (number, 0.81249, "0.812"), (number, -12.344, "−12.34"), (number, 1234.5, "1,234"), 
        (number, math.inf, "∞"), (number, -1e300, "−∞"), (number, math.nan, "–"),
        (number, 0.00012, "1.2e−4"), (number, 10**400, "∞"), (number, True, "–"), (number, 0.0, "0.000"),
        (signed, 0.3, "+0.300"), (signed, -0.3, "−0.300"), (percent, 0.0123, "1.230 %"),
        (plain, "a\n\tb\x1b\u202e", "a b��"), (plain, "x" * 400, "x" * 299 + "…"),
    ],
)  # fmt: skip
def test_numbers_and_text_as_people_read_them(function, value, expected):
    assert function(value) == expected


def test_times():
    assert (times(480, 10), times(15, 10), times(1, 0), times(None, 3)) == ("48×", "1.5×", "–", "–")
