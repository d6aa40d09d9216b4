"""A masked sum is the plain sum of its survivors, whoever drops out as stated; beyond, it ends."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import ConfigError, EmptyRound
from headwater.security.secagg import client as client_module
from headwater.security.secagg import server as server_module
from headwater.security.secagg.bounds import Promise
from headwater.security.secagg.group import mask_info
from headwater.security.secagg.ring import RingLayout, RingPart, Words
from tests.security.secagg.play import PHASES, Play, plain_sum

parts = st.builds(
    lambda i, size, low, high: RingPart(f"p{i}", size, -low, high),
    st.integers(0, 3),
    st.integers(0, 17),
    st.integers(0, 2**61),
    st.integers(0, 2**61),
)


@given(
    count=st.integers(3, 9),
    dropouts=st.sampled_from([0.0, 0.2, 0.34, 0.45]),
    layout=st.lists(parts, min_size=1, max_size=4).map(lambda found: RingLayout(tuple(found))),
    data=st.data(),
)
def test_the_sum_is_the_plain_sum(
    count: int, dropouts: float, layout: RingLayout, data: st.DataObject
) -> None:
    play = Play(count, Promise(dropouts, 0.0), layout)
    few = st.lists(
        st.sampled_from(play.names), unique=True, max_size=min(int(dropouts * count), count - count // 2 - 1)
    )
    stops = {name: data.draw(st.sampled_from(PHASES)) for name in data.draw(few)}
    values = play.some_values(data.draw(st.integers(0, 99)))
    try:
        found = play.whole(values, stops)
    except EmptyRound:
        # a group that lost somebody before its keys were known is smaller, and so is what it may lose
        if "keys" in stops.values():
            return
        raise
    late = {n for n, at in stops.items() if at in ("signature", "reveal")}
    assert found.names == tuple(n for n in play.names if n not in stops or n in late)
    for got, wanted in zip(found.values, plain_sum(values, found.names), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("phase", PHASES[1:])
def test_a_group_whose_members_are_not_all_neighbours(phase: str) -> None:
    play = Play(40, Promise(0.1, 0.03))
    stops = dict.fromkeys(play.names[::10], phase)
    values = play.some_values()
    found = play.whole(values, stops)
    assert not play.group.bounds.complete
    assert len(found.names) == (40 if phase in ("signature", "reveal") else 36)
    np.testing.assert_array_equal(found.values[0], plain_sum(values, found.names)[0])


@pytest.mark.parametrize("phase", PHASES)
def test_more_drop_outs_than_stated_end_the_round(phase: str) -> None:
    play = Play(10, Promise(0.2, 0.1))
    stops = dict.fromkeys(play.names[: 4 if phase == "signature" else 3], phase)
    if phase == "signature":  # what counts there is the quorum
        stops |= dict.fromkeys(play.names[4:6], phase)
    with pytest.raises(EmptyRound, match="masked sum of round 1"):
        play.whole(play.some_values(), stops)


def test_what_is_sent_looks_like_chance() -> None:
    layout = RingLayout((RingPart("values", 4096, -(2**15), 2**15 - 1),))
    play = Play(4, Promise(0.25, 0.0), layout)
    play.whole({name: [np.zeros(4096, np.int64)] for name in play.names})
    for data in play.sent.values():  # 16 bits a value: each of 256 bytes 32 times, σ = 5.7
        counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
        assert 0 < counts.min() <= counts.max() < 32 + 6 * 5.7
    assert len(set(play.sent.values())) == 4


def test_golden_vector_f7(monkeypatch: pytest.MonkeyPatch) -> None:
    """algorithms.md F7: R = 2^16, pairwise and own masks by the numbers; then client 2 drops out."""
    pairs = {(0, 1): [1000, 2000, 3000], (0, 2): [40000, 50000, 60000], (1, 2): [7, 8, 9]}
    own = [[11, 12, 13], [21, 22, 23], [31, 32, 33]]
    layout = RingLayout((RingPart("values", 3, -(2**15), 2**15 - 1),))
    vectors = [[5, 65530 - 2**16, 7], [1, 2, 3], [100, 200, 300]]
    for drops, wanted in ((set[str](), [106, 196, 310]), ({"c002"}, [6, -4, 10])):
        play = Play(3, Promise(0.34, 0.0), layout, round=1)
        play.keys()
        clients = [play.clients[name] for name in play.names]
        table = {c._seed.value: own[i] for i, c in enumerate(clients)}
        for (u, v), mask in pairs.items():
            public = play.group.adverts[v].mask_key
            info = mask_info(play.group, clients[u]._mask.public, public)
            table[clients[u]._mask.agree(public, info, "")] = mask

        def add(words: list[Words], masks: Iterable[tuple[bytes, bool]]) -> None:
            for seed, negative in masks:
                mask = np.array(table[seed], words[0].dtype)  # noqa: B023 - used in this turn only
                np.copyto(words[0], words[0] - mask if negative else words[0] + mask)

        monkeypatch.setattr(client_module, "add_masks", add)
        monkeypatch.setattr(server_module, "add_masks", add)
        play.shares()
        values = {n: [np.array(x, np.int64)] for n, x in zip(play.names, vectors, strict=True)}
        play.vectors(values, drops)
        sent = [np.frombuffer(play.sent[name], "<u2").tolist() for name in play.survivors]
        assert sent == [[41016, 52006, 63020], [64565, 63568, 62571], [25660, 15760, 5860]][: len(sent)]
        play.signatures()
        assert play.reveals().values[0].tolist() == wanted


def test_values_beyond_what_a_sum_may_be_are_not_sent() -> None:
    play = Play(3, Promise(0.34, 0.0))
    play.keys()
    play.shares()
    with pytest.raises(ConfigError, match="values in"):
        play.clients["c000"].mask(play.deliveries["c000"], [np.full(5, 10**6, np.int64)])
