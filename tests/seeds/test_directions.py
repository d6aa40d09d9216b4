"""Directions against known answers, an oracle in plain integers, the reference page and statistics."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import ConfigError, HeadwaterError
from headwater.seeds import directions as module
from headwater.seeds.coefficients import SeedPlan, directions_of
from headwater.seeds.directions import MAX_COEFFICIENTS, Directions
from headwater.seeds.keys import Key
from tests.seeds import philox
from tests.support.processes import in_another

PAGE = (Path(__file__).parents[2] / "docs/reference/directions.md").read_text(encoding="utf-8")
BOTH = ("rademacher", "gaussian")
KEY = bytes(range(16))
GROUPS = st.one_of(st.integers(0, 40), st.integers(0, 2**63 - 1))
COEFFICIENTS = st.one_of(st.integers(-3, 3), st.integers(-32767, 32767), st.integers(-(2**38), 2**38))


def of(seed, distribution, size):
    return directions_of(SeedPlan(0, 1, distribution, 0, 1), Key.root(seed), size)


# --- known answers ---


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("0 0 0 0 0 0", "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"),
        (" ".join(6 * ["f" * 16]), "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0"),
        (
            "243f6a8885a308d3 13198a2e03707344 a4093822299f31d0 082efa98ec4e6c89 "
            "452821e638d01377 be5466cf34e90c6c",
            "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(words, answer):
    """The published vectors of philox4x64-10: zeros, ones, digits of π; of the oracle and of NumPy's."""
    *counter, k0, k1 = (int(word, 16) for word in words.split())
    expected = [int(word, 16) for word in answer.split()]
    assert philox.philox4x64(counter, [k0, k1]) == expected
    key = (k0 + (k1 << 64)).to_bytes(16, "little")
    if counter[3] == 0:  # which Directions always has
        got = Directions(key, "gaussian", 1)._raw(counter[0], counter[1], counter[2], 1)
        assert got.tolist() == expected
    whole = sum(word << 64 * i for i, word in enumerate(counter))
    numpy = np.random.Philox(key=k0 + (k1 << 64), counter=(whole - 1) % 2**256)
    assert numpy.random_raw(4).tolist() == expected


@pytest.mark.parametrize("distribution", BOTH)
@settings(max_examples=40)
@given(st.integers(-(2**63), 2**63), st.one_of(GROUPS, st.just(2**64 - 1)), st.integers(0, 10**7))
def test_every_value_is_the_oracles(distribution, federation, seed, index):
    family = of(federation, distribution, 10**7 + 40)
    assert family.key == philox.family(federation, distribution)
    expected = [philox.value(family.key, distribution, seed, index + i) for i in range(34)]
    assert family.integers(seed, index, index + 34).tolist() == expected


def test_the_page_has_the_golden_vectors():
    rows = re.findall(r"\| (rademacher|gaussian) \| (\d+) \| (\d+) \| `([^`]+)` \|", PAGE)
    assert len(rows) == 10
    assert {int(seed) for _, seed, _, _ in rows} == {0, 9, 4095, 2**63, 2**64 - 1}
    for distribution, seed, start, values in rows:
        got = of(7, distribution, 10**6).integers(int(seed), int(start), int(start) + 16).tolist()
        signs = "".join("+" if value > 0 else "-" for value in got)
        assert values == (signs if distribution == "rademacher" else " ".join(map(str, got)))


@pytest.mark.parametrize("distribution", BOTH)
def test_the_page_has_the_golden_sum_and_key(distribution):
    sums = of(7, distribution, 6).combine(np.array([0, 9, 4095]), np.array([3, -32767, 12345]))
    assert f"`{' '.join(map(str, sums.tolist()))}`" in PAGE.replace("\n", " ")
    assert f"`{philox.family(7, distribution).hex()}`" in PAGE


def test_the_table_is_the_pages():
    table = module._quantiles()
    assert hashlib.sha256(table.astype("<i2").tobytes()).hexdigest() in PAGE
    assert table.tolist() == [philox.quantile(i) for i in range(65536)]
    assert int(table.astype(np.int64).sum()) == 0
    assert table.max() == 17715


def test_a_machine_with_another_logarithm_is_refused(monkeypatch):
    monkeypatch.setattr(module, "_TABLE_SHA256", "0" * 64)
    with pytest.raises(HeadwaterError, match="rademacher"):
        module._quantiles.__wrapped__()


# --- parts, sums ---


@pytest.mark.parametrize("distribution", BOTH)
@settings(max_examples=60)
@given(GROUPS, st.integers(0, 300), st.data())
def test_any_part_is_a_slice_of_the_whole(distribution, seed, size, data):
    family = Directions(KEY, distribution, size)
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    whole, longer = family.integers(seed), Directions(KEY, distribution, size + 50).integers(seed)
    assert family.integers(seed, start, stop).tolist() == whole[start:stop].tolist()
    assert longer[:size].tolist() == whole.tolist()
    assert whole.dtype == (np.int8 if distribution == "rademacher" else np.int16)


@pytest.mark.parametrize("distribution", BOTH)
def test_values_are_the_integers_exactly(distribution):
    family = Directions(KEY, distribution, 1000)
    unit = 1.0 if distribution == "rademacher" else 2.0**-12
    values = family.values(11)
    assert values.dtype == np.float32
    assert [float(v) / unit for v in values] == family.integers(11).tolist()


@pytest.mark.parametrize("distribution", BOTH)
@settings(max_examples=80)
@given(st.lists(st.tuples(GROUPS, COEFFICIENTS), max_size=12), st.integers(0, 90), st.data())
def test_combine_is_the_naive_sum(distribution, steps, size, data):
    """In Python's integers: duplicates, zeros, seeds of one group and far ones, coefficients beyond int32."""
    steps += data.draw(st.lists(st.sampled_from(steps), max_size=3)) if steps else []
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    family = Directions(KEY, distribution, size)
    seeds, coefficients = np.array(steps, np.int64).reshape(-1, 2).T
    expected = [0] * (stop - start)
    for seed, coefficient in steps:
        z = family.integers(seed, start, stop).tolist()
        expected = [total + coefficient * value for total, value in zip(expected, z, strict=True)]
    got = family.combine(seeds, coefficients, start, stop)
    assert got.dtype == np.int64
    assert got.tolist() == expected


@pytest.mark.parametrize("distribution", BOTH)
@pytest.mark.parametrize("scale", [1, 2**20])
def test_combine_of_long_vectors_is_the_naive_sum(distribution, scale, monkeypatch):
    """Tables for pairs, several blocks and chunks, odd ends; int32 emptied and left (scale 2^20)."""
    monkeypatch.setattr(module, "_CHUNK", 2**16)
    monkeypatch.setattr(module, "_BLOCK", 2**13)
    monkeypatch.setattr(module, "_TOGETHER", 7)
    rng = np.random.default_rng(0)
    family = Directions(KEY, distribution, 150_001)
    seeds = rng.integers(0, 60, 40)
    coefficients = rng.integers(-32767, 32768, 40) * scale
    expected = np.zeros(family.size, np.int64)
    for seed, coefficient in zip(seeds.tolist(), coefficients.tolist(), strict=True):
        expected += family.integers(seed).astype(np.int64) * coefficient
    assert np.array_equal(family.combine(seeds, coefficients), expected)
    assert np.array_equal(family.combine(seeds, coefficients, 40_003, 149_990), expected[40_003:149_990])


@pytest.mark.parametrize("distribution", BOTH)
@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 40), COEFFICIENTS), min_size=2, max_size=10), st.randoms())
def test_incremental_is_at_once_in_any_order(distribution, steps, random):
    family = Directions(KEY, distribution, 77)
    seeds, coefficients = np.array(steps, np.int64).T
    whole = family.combine(seeds, coefficients)
    order = np.array(random.sample(range(len(steps)), len(steps)))
    cut = random.randrange(len(steps))
    first, second = order[:cut], order[cut:]
    parts = family.combine(seeds[first], coefficients[first]) + family.combine(
        seeds[second], coefficients[second]
    )
    assert np.array_equal(parts, whole)
    assert np.array_equal(family.combine(seeds[order], coefficients[order]), whole)


@pytest.mark.parametrize("distribution", BOTH)
def test_the_largest_sums_do_not_overflow(distribution):
    """Every coefficient of a group at the bound, all signs alike in some value: still the naive sum."""
    family = Directions(KEY, distribution, 4096)
    each = (MAX_COEFFICIENTS - 1) // 8
    got = family.combine(np.arange(8), np.full(8, each))
    naive = np.sum([family.integers(s).astype(object) for s in range(8)], axis=0) * each
    assert got.tolist() == naive.tolist()
    assert max(map(abs, naive.tolist())) < 2**62


@pytest.mark.parametrize(("distribution", "each"), [("rademacher", 2**27), ("gaussian", 120_000)])
def test_what_fits_int32_by_itself_does_not_overflow_together(distribution, each):
    """64 seeds: no look-up or step leaves int32, their sums do in many of 4,096 values."""
    family = Directions(KEY, distribution, 4096)
    naive = np.sum([family.integers(s).astype(np.int64) for s in range(64)], axis=0) * each
    assert np.mean(np.abs(naive) >= 2**31) > 0.01
    assert np.array_equal(family.combine(np.arange(64), np.full(64, each)), naive)


def walked(threads, *sizes):
    """Hashes of sums and values, made in chunks of these sizes."""
    module._CHUNK, module._BLOCK, module._SHORT = sizes
    torch.set_num_threads(threads)
    rng, found = np.random.default_rng(5), []
    seeds, coefficients = rng.integers(0, 500, 60), rng.integers(-32767, 32768, 60)
    for distribution in BOTH:
        family = Directions(bytes(range(16)), distribution, 100_003)
        sums = family.combine(seeds, coefficients)
        found.append(hashlib.sha256(sums.tobytes() + family.values(2**64 - 1).tobytes()).hexdigest())
    return found


def test_two_processes_with_other_threads_and_chunks_agree():
    first = in_another(walked, 1, 2**20, 2**16, 2**15)
    assert first == in_another(walked, 2, 2**12, 2**9, 2**20)
    assert len(set(first)) == 2


# --- statistics; fixed seeds, so a test passes always or never ---


@pytest.mark.parametrize("distribution", BOTH)
def test_moments(distribution):
    """Of 2^21 values. The mean's standard error is 0.0007, the variance's (gaussian) 0.001, the fourth
    moment's 0.007: the bounds, 4 of them, would catch a bias of 0.003, 0.4 % of scale, 1 % of kurtosis."""
    family = Directions(KEY, distribution, 2**18)
    z = np.concatenate([family.values(s).astype(np.float64) for s in (0, 5, 6, 77, 4095, 2**33, 2**50, 9)])
    fourth, spread = (3.0, 1.0) if distribution == "gaussian" else (1.0, 0.0)
    assert abs(z.mean()) < 4 / np.sqrt(len(z))
    assert abs(np.mean(z**2) - 1) <= spread * 4 * np.sqrt(2 / len(z)) + 3e-5
    assert abs(np.mean(z**4) - fourth) <= spread * 4 * np.sqrt(96 / len(z)) + 1e-3


@pytest.mark.parametrize("distribution", BOTH)
@pytest.mark.parametrize(
    "seeds", [range(8), range(4, 12), [0, 2**32, 2**63, 2**64 - 1, 2**32 + 1, 256, 65536, 2**40]]
)
def test_seeds_are_uncorrelated(distribution, seeds):
    """All 28 pairs of the 8 seeds of one group, of two groups, of far ones, over 2^16 values: a
    correlation has standard error 0.0039; the bound of 4.5 (28 pairs, 6 cases: 0.1 % by chance) catches
    0.03 with certainty. Squares too: gaussian values must not share their magnitude."""
    family = Directions(KEY, distribution, 2**16)
    z = np.stack([family.values(s) for s in seeds]).astype(np.float64)
    bound = 4.5 / np.sqrt(z.shape[1])
    pairs = np.triu_indices(8, 1)
    assert np.abs(np.corrcoef(z)[pairs]).max() < bound
    if distribution == "gaussian":
        assert np.abs(np.corrcoef(z**2)[pairs]).max() < bound


@pytest.mark.parametrize("distribution", BOTH)
def test_neighbouring_values_are_uncorrelated(distribution):
    """Lags 1 to 64, across counters of 16 and 32 values, over 2^17 values: standard error 0.0028, bound 4.5
    of them: a correlation of 0.02 is caught."""
    z = Directions(KEY, distribution, 2**17).values(3).astype(np.float64)
    found = [np.mean(z[lag:] * z[:-lag]) for lag in range(1, 65)]
    assert np.abs(found).max() < 4.5 / np.sqrt(len(z) - 64)


def test_families_differ():
    a, b = of(0, "rademacher", 4096).values(0), of(1, "rademacher", 4096).values(0)
    assert abs(float(a @ b)) < 5 * np.sqrt(4096)
    assert of(0, "gaussian", 1).key != of(0, "rademacher", 1).key


# --- errors ---


@pytest.mark.parametrize(
    ("seed", "start", "stop"), [(-1, 0, 5), (2**64, 0, 5), (0, -1, 5), (0, 3, 2), (0, 0, 11)]
)
def test_seeds_and_parts_out_of_range_are_refused(seed, start, stop):
    for distribution in BOTH:
        with pytest.raises(ConfigError, match=f"seed {seed}, values {start} to {stop}"):
            Directions(KEY, distribution, 10).integers(seed, start, stop)


def test_negative_seeds_cannot_be_combined():
    with pytest.raises(ConfigError, match="seed -1"):
        Directions(KEY, "rademacher", 10).combine(np.array([4, -1]), np.array([1, 1]))


@pytest.mark.parametrize(
    "coefficients", [[MAX_COEFFICIENTS], [MAX_COEFFICIENTS // 2, -MAX_COEFFICIENTS // 2], [-(2**63), 1]]
)
def test_coefficients_that_could_overflow_are_refused(coefficients):
    """Also of one seed, where they would cancel, and -2^63, whose magnitude is no int64."""
    for seeds in (np.arange(len(coefficients)), np.zeros(len(coefficients), np.int64)):
        with pytest.raises(ConfigError, match="diverged"):
            Directions(KEY, "rademacher", 10).combine(seeds, np.array(coefficients))
