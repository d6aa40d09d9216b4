"""Shamir's threshold is exact; rings, streams and bounds are what they say."""

from __future__ import annotations

import pickle
from fractions import Fraction
from itertools import product
from math import comb

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import ConfigError, HeadwaterError, UpdateRejected
from headwater.security.secagg import messages
from headwater.security.secagg.agreement import AgreementKey, seal, unseal
from headwater.security.secagg.bounds import GroupBounds, Promise, choose, least_window, most_common
from headwater.security.secagg.group import Advert, Group
from headwater.security.secagg.ring import RingLayout, RingPart
from headwater.security.secagg.secret import Secret
from headwater.security.secagg.shamir import PRIME, SHARE_BYTES, join, split
from headwater.security.secagg.stream import add_masks


@given(st.data())
def test_any_threshold_many_shares_give_the_secret(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    threshold = data.draw(st.integers(1, count))
    points = data.draw(st.lists(st.integers(1, 10_000), min_size=count, max_size=count, unique=True))
    secret = Secret(data.draw(st.binary(min_size=32, max_size=32)))
    shares = dict(zip(points, split(secret, points, threshold), strict=True))
    chosen = data.draw(st.permutations(points))[:threshold]
    assert join({x: shares[x] for x in chosen}, "ann").value == secret.value


@given(st.integers(2, 8), st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_one_share_less_goes_with_every_secret(threshold: int, real: bytes, other: bytes) -> None:
    """For any other secret there is one polynomial through the shares: its last share is in the field."""
    points = list(range(1, threshold + 1))
    shares = split(Secret(real), points, threshold)
    total = int.from_bytes(other, "big")
    known = 0
    weights = []
    for x in points:
        weight = 1
        for y in points:
            if y != x:
                weight = weight * y * pow(y - x, -1, PRIME) % PRIME
        weights.append(weight)
    for weight, share in zip(weights[:-1], shares[:-1], strict=True):
        known += weight * int.from_bytes(share, "big")
    last = (total - known) * pow(weights[-1], -1, PRIME) % PRIME
    forged = dict(zip(points, [*shares[:-1], last.to_bytes(SHARE_BYTES, "big")], strict=True))
    assert join(forged, "ann").value == other


def test_shares_are_new_each_time_and_refuse_nonsense() -> None:
    secret = Secret.create()
    assert split(secret, [1, 2, 3], 2) != split(secret, [1, 2, 3], 2)
    for points, threshold in (([1, 1], 1), ([0, 1], 1), ([1, 2], 3), ([1], 0)):
        with pytest.raises(ValueError, match=r"points|threshold"):
            split(secret, points, threshold)
    with pytest.raises(HeadwaterError):
        join({1: (2**256).to_bytes(SHARE_BYTES, "big")}, "ann")


def test_a_secret_shows_nothing() -> None:
    secret = Secret.create()
    assert repr(secret) == "Secret(...)"
    with pytest.raises(TypeError, match="does not leave"):
        pickle.dumps(secret)


def test_agreement_and_seals() -> None:
    ann, bob = AgreementKey.create(), AgreementKey.create()
    key = ann.agree(bob.public, b"info", "bob")
    assert key == bob.agree(ann.public, b"info", "ann") != bob.agree(ann.public, b"other", "ann")
    sealed = seal(key, b"text", b"list")
    assert unseal(key, sealed, b"list", "ann") == b"text"
    for wrong in (sealed[:-1] + bytes([sealed[-1] ^ 1]), sealed[:5], b""):
        with pytest.raises(UpdateRejected):
            unseal(key, wrong, b"list", "ann")
    with pytest.raises(UpdateRejected):
        unseal(key, sealed, b"another list", "ann")
    for low_order in (bytes(32), (1).to_bytes(32, "little"), b"short"):
        with pytest.raises(UpdateRejected, match="small order"):
            ann.agree(low_order, b"info", "bob")


@pytest.mark.parametrize("size", [1, 5, 16_384, 40_000])
@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_masks_are_the_chacha20_stream(size: int, dtype: type[np.uint32]) -> None:
    seed = Secret.create().value
    words = np.zeros(size, dtype)
    add_masks([words], [(seed, False)])
    stream = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor().update(bytes(words.nbytes))
    assert words.tobytes() == stream
    add_masks([words], [(seed, True)])
    assert not words.any()


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 2**61), st.integers(0, 2**61)), min_size=1, max_size=3
    ),
    st.integers(0, 99),
)
def test_rings_hold_what_they_are_for(rows: list[tuple[int, int, int]], seed: int) -> None:
    layout = RingLayout(tuple(RingPart("p", size, -low, high) for size, low, high in rows))
    draw = np.random.default_rng(seed)
    values = [draw.integers(p.low, p.high, p.size, endpoint=True) for p in layout.parts]
    words = layout.to_words(values)
    data = layout.pack(words)
    assert len(data) == layout.packed_bytes
    for found, wanted in zip(layout.to_values(layout.unpack(data, "ann")), values, strict=True):
        np.testing.assert_array_equal(found, wanted)
    for part, (_, low, high) in zip(layout.parts, rows, strict=True):
        assert low + high in range(2**part.bits // 2, 2**part.bits)
    with pytest.raises(HeadwaterError):
        layout.unpack(data + b"x", "ann")


def test_a_ring_of_more_than_63_bits_is_refused() -> None:
    with pytest.raises(ConfigError, match="63 bits"):
        RingLayout((RingPart("sums", 3, -(2**62), 2**62),))


def _tail(population: int, marked: int, drawn: int, least: int) -> Fraction:
    ways = sum(
        comb(marked, x) * comb(population - marked, drawn - x) for x in range(least, min(marked, drawn) + 1)
    )
    return Fraction(ways, comb(population, drawn))


@pytest.mark.parametrize(
    ("clients", "dropouts", "colluding", "neighbours", "threshold", "window"),
    [
        (10, 0.4, 0.1, 9, 5, 0),
        (10, 0.1, 0.1, 4, None, None),
        (100, 0.1, 0.1, 30, None, None),
        (100, 0.3, 0.1, 50, None, None),
        (100, 0.3, 1 / 3, 84, None, None),
        (1000, 0.1, 0.1, 70, None, None),
    ],
)
def test_bounds_keep_the_promise(
    clients: int,
    dropouts: float,
    colluding: float,
    neighbours: int,
    threshold: int | None,
    window: int | None,
) -> None:
    """The numbers of neighbours were also found by a search of its own over all even k."""
    promise = Promise(dropouts, colluding)
    bounds = choose(clients, promise)
    bounds.require_private(promise)
    assert bounds.neighbours == neighbours
    if bounds.complete:
        assert (bounds.threshold, bounds.window) == (threshold, window)
        return
    n, k, c, d = clients, bounds.neighbours, promise.corrupt(clients), promise.dropped(clients)
    assert n * _tail(n - 1, c, k, bounds.threshold) <= Fraction(1, 2**41)
    assert Fraction(n * (n - 1), 2) * _both(n, c, k // 2, bounds.window) <= Fraction(1, 2**41)
    assert n * _tail(n - 1, d, k, k - bounds.threshold + 1) <= Fraction(1, 2**21)
    assert n * _tail(n, d, k // 2, k // 2 - bounds.window + 1) <= Fraction(1, 2**21)
    for worse in (
        GroupBounds(n, k, most_common(n - 1, c, k, n, 41), bounds.window),
        GroupBounds(n, k, bounds.threshold, least_window(n, c, k // 2) - 1),
        GroupBounds(n, k + 1, bounds.threshold, bounds.window),
    ):
        with pytest.raises(UpdateRejected, match="bounds that hold"):
            worse.require_private(promise)


def _both(population: int, marked: int, drawn: int, least: int) -> Fraction:
    """That both of two disjoint rows have so many marked ones, exactly."""
    rows = range(least, min(marked, drawn) + 1)
    ways = sum(
        comb(drawn, x) * comb(drawn, y) * comb(population - 2 * drawn, marked - x - y)
        for x in rows
        for y in rows
        if x + y <= marked
    )
    return Fraction(ways, comb(population, marked))


@pytest.mark.parametrize(("n", "half"), [(10, 2), (11, 3)])
def test_honest_survivors_hang_together_unless_two_rows_collude(n: int, half: int) -> None:
    """The lemma behind the window, for every pair of rows without an honest survivor of one ring."""
    adverts, parted = tuple(Advert(i, b"", b"", b"", bytes(64)) for i in range(n)), 0
    places, numbers = range(n), range(half + 1)
    for window in numbers[1:]:
        group = Group(adverts, GroupBounds(n, 2 * half, 1, window))
        near = [set(group.neighbours(member)) for member in places]
        for first, apart, *colluding in product(places, range(half + 1, n - half), numbers, numbers):
            survivors, honest = np.ones(n, np.bool_), set(places)
            for start, some in zip((first, first + apart), colluding, strict=True):
                row = [group.ring[(start + step) % n] for step in range(half)]
                survivors[row[some:]] = False
                honest -= set(row)
            try:
                group.require_enough(survivors, Promise(1.0, 0.0))
            except UpdateRejected:
                continue
            reached, todo = set[int](), [min(honest)]
            while todo:
                reached.add(member := todo.pop())
                todo += (honest & near[member]) - reached
            assert honest == reached or min(colluding) >= window
            parted += honest != reached
    assert parted  # the server's own can do it: so the bounds make two such rows rare


def test_most_common_is_the_smallest() -> None:
    x = most_common(99, 10, 42, 100, 20)
    assert 100 * _tail(99, 10, 42, x + 1) <= Fraction(1, 2**20)
    assert x == 0 or 100 * _tail(99, 10, 42, x) > Fraction(1, 2**20)


@pytest.mark.parametrize(
    ("clients", "dropouts", "colluding"), [(2, 0.0, 0.0), (10, 0.6, 0.0), (20, 0.3, 0.6)]
)
def test_promises_that_cannot_be_kept_are_refused(clients: int, dropouts: float, colluding: float) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.masks"):
        choose(clients, Promise(dropouts, colluding))


@given(st.binary(max_size=600), st.integers(1, 20))
def test_any_bytes_are_read_or_refused(data: bytes, members: int) -> None:
    for read in (
        messages.load_group,
        lambda d: messages.load_rows(d, 33, members),
        lambda d: messages.load_delivery(d, members),
        lambda d: messages.load_reveal(d, members),
        lambda d: messages.load_flags(d, members),
    ):
        try:
            read(data)
        except HeadwaterError:
            continue
