"""The selection rule against a sort, and the entropy coder against a second implementation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.compression.byte_reader import Reader
from headwater.compression.entropy import Block, pack, unpack, weights
from headwater.compression.ternary import bound_bits, kept, largest_values, select
from headwater.errors import DecodeError

TAU = [0.9, -0.1, 0.05, -1.2, 0.3, 0.0, 0.7, -0.7, 0.02, -0.4, 1.5, -0.25]


def select_by_sorting(values, count):
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    chosen = {i for i in order[:count] if values[i] != 0}
    return [0 if i not in chosen else 1 if values[i] > 0 else 2 for i in range(len(values))]


@settings(max_examples=200)
@given(
    values=st.lists(
        st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -(2.0**-149)]), st.floats(-9, 9, width=32)),
        min_size=1,
        max_size=40,
    ),
    density=st.floats(0.001, 1),
)
def test_select_is_the_sorted_rule(values, density):
    count = kept(len(values), density)
    array = np.array(values, dtype=np.float32)
    assert select(array, count).tolist() == select_by_sorting(values, count)


@pytest.mark.parametrize(
    ("numel", "density", "count"), [(12, 0.25, 3), (12, 1 / 3, 4), (12, 1.0, 12), (12, 0.01, 1), (1, 0.5, 1)]
)
def test_kept(numel, density, count):
    assert kept(numel, density) == count


def test_f1_selection_and_tie():
    tau = np.array(TAU, dtype=np.float32)
    assert np.flatnonzero(select(tau, 3)).tolist() == [0, 3, 10]
    assert select(tau, 3)[[0, 3, 10]].tolist() == [1, 2, 1]
    assert np.flatnonzero(select(tau, 4)).tolist() == [0, 3, 6, 10]  # |0.7| at 6 and 7: the first


def test_f1_bound():
    assert bound_bits(12, 3) == pytest.approx(12.7353, abs=5e-5)
    assert bound_bits(12, 0) == 0
    assert bound_bits(12, 12) == 12
    assert bound_bits(1_000_000, 50_000) / 8 == pytest.approx(42_050, abs=1)


@settings(max_examples=100)
@given(counts=st.lists(st.integers(0, 2**31), min_size=2, max_size=256).filter(any))
def test_weights_are_a_distribution_close_to_the_counts(counts):
    units = weights(counts)
    total = sum(counts)
    assert sum(units) == 2**24
    assert min(units) >= 1
    for count, unit in zip(counts, units, strict=True):
        if count:
            assert math.log2(2**24 / unit) <= math.log2(total / count) + 9e-8 * len(counts)


# --- the ANS stream of docs/reference/codecs.md, written from that text with Python integers -----------


def reference_unpack(data, blocks):
    data += bytes(-len(data) % 4)
    words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
    state = 0
    for _ in range(2):
        state = state << 32 | (words.pop() if words else 0)
    if len(data) == 4:
        state >>= 32
    out = []
    for counts in blocks:
        if max(counts) == sum(counts):
            out.append([counts.index(max(counts))] * sum(counts))
            continue
        units = reference_weights(counts)
        starts = [sum(units[:i]) for i in range(len(units))]
        symbols = []
        for _ in range(sum(counts)):
            quantile = state & 0xFFFFFF
            symbol = max(i for i, start in enumerate(starts) if start <= quantile)
            state = (state >> 24) * units[symbol] + quantile - starts[symbol]
            if state < 2**32 and words:
                state = state << 32 | words.pop()
            symbols.append(symbol)
        out.append(symbols)
    assert state == 0
    assert not words
    return out


def reference_weights(counts):
    free = 2**24 - len(counts)
    units = [1 + c * free // sum(counts) for c in counts]
    units[counts.index(max(counts))] += 2**24 - sum(units)
    return units


@settings(max_examples=100)
@given(
    vectors=st.lists(
        st.lists(st.sampled_from([0, 0, 0, 1, 2]), min_size=1, max_size=120), min_size=1, max_size=4
    )
)
def test_streams_are_what_the_reference_implementation_reads(vectors):
    arrays = [np.array(v, dtype=np.int32) for v in vectors]
    blocks = [Block(tuple(np.bincount(a, minlength=3).tolist())) for a in arrays]
    data = pack(list(zip(arrays, blocks, strict=True)))
    assert reference_unpack(data, [list(b.counts) for b in blocks]) == vectors
    assert [u.tolist() for u in unpack(Reader(data, "test"), blocks)] == vectors


@settings(max_examples=200)
@given(data=st.data())
def test_a_stream_that_decodes_is_the_one_that_would_be_written(data):
    numel = data.draw(st.integers(2, 60))
    symbols = np.array(data.draw(st.lists(st.integers(0, 2), min_size=numel, max_size=numel)), dtype=np.int32)
    block = Block(tuple(np.bincount(symbols, minlength=3).tolist()))
    stream = bytearray(pack([(symbols, block)]))
    for _ in range(data.draw(st.integers(1, 2))):
        if stream:
            stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    try:
        [decoded] = unpack(Reader(bytes(stream), "test"), [block])
    except DecodeError:
        return
    assert pack([(decoded, block)]) == bytes(stream)


def test_frozen_stream():
    # these bytes leave the house: if they change, the ids of compeft and logquant8 must change
    symbols = np.array(
        [{1: 1, 4: 2, 9: 2, 16: 1, 25: 2}.get(i * i % 101, 0) for i in range(300)], dtype=np.int32
    )
    block = Block(tuple(np.bincount(symbols, minlength=3).tolist()))
    assert block.counts == (273, 11, 16)
    assert pack([(symbols, block)]).hex() == ("a0282372cc2bd173daf1ef3d9955ffdaeeec0ffef75001")


@pytest.mark.parametrize("kind", ["normal", "ties", "few", "sorted", "tiny"])
@pytest.mark.parametrize("density", [0.0001, 0.05, 0.9])
def test_a_sample_of_many_values_finds_what_a_sort_finds(kind, density):
    # 4·2¹⁵ values and more: their threshold comes from a sample, which "few" and "sorted" mislead
    values = np.random.default_rng(5).standard_normal(150_001).astype(np.float32)
    if kind == "ties":
        values = np.round(values * 4) / 4
    elif kind == "few":
        values[::5] = 0
        values[1::5] *= 1e-30
        values[10:] = 0 if density < 0.01 else values[10:]
    elif kind == "sorted":
        values = np.sort(values)
        values[::4] = 9
    elif kind == "tiny":
        values = (values * np.float32(1e-44)).astype(np.float32)
    count = kept(values.size, density)
    order = np.lexsort((np.arange(values.size), -np.abs(values)))[:count]
    expected = np.sort(order[values[order] != 0])
    places, chosen = largest_values(values, count)
    assert np.array_equal(places, expected)
    assert np.array_equal(chosen.view(np.int32), values[expected].view(np.int32))
