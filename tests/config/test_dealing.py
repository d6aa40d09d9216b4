"""Dealing shares to names."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headwater.config.dealing import deal

NAMES = st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=40)
WEIGHTS = st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any)


@given(NAMES, WEIGHTS, st.integers(0, 2**63 - 1), st.randoms())
def test_everybody_gets_one_and_no_share_is_off_by_a_whole_name(names, weights, seed, random):
    shares = {f"m{i}": w / sum(weights) for i, w in enumerate(weights)}
    dealt = deal(names, shares, seed)
    assert sorted(dealt) == sorted(names)
    for what, share in shares.items():
        assert abs(sum(v == what for v in dealt.values()) - share * len(names)) < 1 + 1e-9
    random.shuffle(names)
    assert deal(names, shares, seed) == dealt


def test_another_seed_deals_otherwise_and_a_golden_vector():
    names = [f"client-{i}" for i in range(8)]
    shares = {"a": 0.5, "b": 0.25, "c": 0.25}
    assert deal(names, shares, 0) != deal(names, shares, 1)
    assert "".join(deal(names, shares, 0)[n] for n in names) == "aabaccab"


def test_a_share_that_floats_cannot_hold_is_not_lost():
    dealt = list(deal([str(i) for i in range(100)], {"a": 0.29, "b": 0.71}, 0).values())  # 100·0.29 < 29
    assert dealt.count("a") == 29
