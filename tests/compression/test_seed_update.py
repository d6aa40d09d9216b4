"""scalars.v1: laws, frozen bytes, a second decoder, and bytes against the entropy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import strategies as st

from headwater.compression.entropy import pack, weights
from headwater.compression.seed_update import SCALARS, decode_scalars, encode_scalars, scalars_max_bytes
from headwater.compression.t_tables import StudentTTable, choose_table
from headwater.errors import DecodeError, UpdateRejected
from headwater.protocol.messages import Payload
from headwater.seeds.coefficients import SeedCoefficients, SeedPlan
from tests.laws.integer_codec_laws import IntegerCodecLaws, vectors

GOLDEN = SeedPlan(first=10, count=16, distribution="rademacher", unit_bits=9, entries=6)


def of(plan, seeds, coefficients):
    return SeedCoefficients(plan, np.array(seeds, np.int64), np.array(coefficients, np.int64))


class ScalarsLaws(IntegerCodecLaws):
    id = SCALARS

    def encode(self, case):
        return encode_scalars(case)

    def decode(self, payload, case):
        found = decode_scalars(payload, case.plan)
        assert found.plan is case.plan
        return found.seeds, found.coefficients

    def value(self, case):
        order = np.lexsort((case.coefficients, case.seeds))
        return case.seeds[order], case.coefficients[order]

    def encode_value(self, value, case):
        return encode_scalars(SeedCoefficients(case.plan, *value))

    def max_bytes(self, case):
        return scalars_max_bytes(case.plan)

    def require_bounds(self, value, case):
        SeedCoefficients(case.plan, *value).require(case.plan, "decoded")
        if case.plan.implied:
            np.testing.assert_array_equal(value[0], case.plan.first + np.arange(case.plan.count))


class TestNamedSeeds(ScalarsLaws):
    def cases(self):
        @st.composite
        def draw_case(draw):
            count, entries = draw(st.integers(1, 3000)), draw(st.integers(1, 300))
            plan = SeedPlan(draw(st.integers(0, 2**40)), count, "gaussian", 12, entries)
            n = draw(st.integers(0, entries))
            seeds = np.random.default_rng(draw(st.integers(0, 99))).integers(0, count, n)
            return SeedCoefficients(plan, np.sort(plan.first + seeds), draw(vectors(n, 32767)))

        return draw_case()


class TestImpliedSeeds(ScalarsLaws):
    def cases(self):
        @st.composite
        def draw_case(draw):
            count = draw(st.integers(1, 300))
            plan = SeedPlan(draw(st.integers(0, 2**40)), count, "rademacher", 12, count, implied=True)
            return SeedCoefficients(plan, plan.first + np.arange(count), draw(vectors(count, 32767)))

        return draw_case()


@pytest.mark.parametrize(
    ("implied", "seeds", "coefficients", "body"),
    [
        (False, [], [], "0100"),
        (False, [10], [0], "0101000000f0"),
        (False, [12, 12, 25], [-300, 7, 41], "0103191ef329be3907ad7a"),
        (True, list(range(10, 16)), [3, -1, 0, 0, 2, -5], "01130b4c31e8a807"),
    ],
)
def test_golden_bytes(implied, seeds, coefficients, body):
    plan = SeedPlan(10, 6, "rademacher", 9, 6, implied=True) if implied else GOLDEN
    assert encode_scalars(of(plan, seeds, coefficients)).body.hex() == body


def curve(bits, shape, scale):
    """Integer probabilities, from the page docs/reference/codecs.md, in Python numbers only."""
    size, p = 2 << bits, (0, 1, 2, 4, 16)[shape]
    heights = []
    for x in range(-(size // 2), size // 2):
        t, s2 = 1.0, (2 * p - 1) * (math.isqrt(1 << (scale + 32)) / 2**20)
        if p:
            t = s2 / (s2 + float(x) * float(x))
            for _ in range(p.bit_length() - 1):
                t = t * t
        heights.append(math.floor(t * 2.0**30))
    out = [1 + h * (2**24 - size) // sum(heights) for h in heights]
    out[size // 2] += 2**24 - sum(out)
    return out


def rans(data, tables, lengths):
    """A rANS decoder of Python integers, from the page."""
    data += bytes(-len(data) % 4)
    words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
    state = words.pop() if words else 0
    state = state << 32 | words.pop() if words else state
    out = []
    for table, length in zip(tables, lengths, strict=True):
        symbols = []
        for _ in range(length):
            q, low, s = state % 2**24, 0, 0
            while low + table[s] <= q:
                low, s = low + table[s], s + 1
            state = (state >> 24) * table[s] + q - low
            if state < 2**32 and words:
                state = state << 32 | words.pop()
            symbols.append(s)
        out.append(symbols)
    assert state == 0
    assert not words
    return out


@pytest.mark.parametrize("sigma", [0.7, 40, 900])
def test_a_decoder_written_from_the_page_reads_it(sigma):
    draw = np.random.default_rng(3)
    plan = SeedPlan(100, 50, "rademacher", 12, 20)
    sent = SeedCoefficients(
        plan, np.sort(draw.integers(100, 150, 20)), draw.normal(0, sigma, 20).round().astype(int)
    )
    body = encode_scalars(sent).body
    version, n, head = body[:3]
    assert (version, n) == (1, 20)
    shape, bits = divmod(head, 16)
    scale, rest = (body[3], body[4:]) if shape else (0, body[3:])
    row, symbols = rans(rest, [weights([49, 20]), curve(bits, shape, scale)], [69, 20])
    seeds, at = [], 100
    for symbol in row:
        if symbol:
            seeds.append(at)
        else:
            at += 1
    decoded = decode_scalars(Payload(SCALARS, body), plan)
    assert seeds == decoded.seeds.tolist()
    assert [s - 2**bits for s in symbols] == decoded.coefficients.tolist()


@pytest.mark.parametrize("sigma", [30, 400, 6000])
def test_a_rounds_scalars_cost_their_entropy(sigma):
    """τ = 200 of K = 4096: within 4 % of log2 of the multisets plus the normal's entropy, and ≤ 700 bytes."""
    draw = np.random.default_rng(5)
    plan, n = SeedPlan(0, 4096, "rademacher", 20, 200), 200
    sizes = []
    for _ in range(20):
        drawn = np.clip(draw.normal(0, sigma, n).round(), -32767, 32767).astype(np.int64)
        sizes.append(
            len(encode_scalars(SeedCoefficients(plan, np.sort(draw.integers(0, 4096, n)), drawn)).body)
        )
    multisets = (math.lgamma(4096 + n) - math.lgamma(n + 1) - math.lgamma(4096)) / math.log(2)
    bound = (multisets + n * math.log2(sigma * math.sqrt(2 * math.pi * math.e))) / 8
    assert max(sizes) <= scalars_max_bytes(plan) <= 700
    assert bound < np.mean(sizes) < 1.04 * bound


def test_the_cheapest_table_beats_its_neighbours():
    values = np.random.default_rng(1).standard_t(3, 2000) * 100
    symbols, table = choose_table(values.round().astype(np.int64))

    def bits(other):
        return -np.log2(other.weights()[symbols] / 2**24).sum()

    others = [StudentTTable(2000, table.bits, p, s) for p in range(1, 5) for s in range(10, 60)]
    assert bits(table) <= min(map(bits, others)) + 0.1


@pytest.mark.parametrize("bits", [1, 6, 15])
def test_tables_are_probabilities(bits):
    for table in [
        StudentTTable(1, bits),
        *(StudentTTable(1, bits, p, s) for p in range(1, 5) for s in (0, 33, 71)),
    ]:
        found = table.weights()
        assert len(found) == 2 ** (bits + 1)
        assert found.sum() == 2**24
        assert found.min() >= 1


def test_hostile_counts_are_refused_before_anything_is_made():
    with pytest.raises(DecodeError, match="at most 6"):
        decode_scalars(Payload(SCALARS, bytes([1, 7])), GOLDEN)
    with pytest.raises(DecodeError, match="padded"):
        decode_scalars(Payload(SCALARS, bytes([1, 0x80, 0])), GOLDEN)
    one = SeedPlan(0, 1, "gaussian", 0, 1, implied=True)
    lowest = bytes([1]) + StudentTTable(1, 15).header()  # the empty stream is symbol 0: −32,768
    with pytest.raises(DecodeError, match="32767"):
        decode_scalars(Payload(SCALARS, lowest), one)


def test_another_table_for_the_same_scalars_is_refused():
    plan = SeedPlan(0, 200, "rademacher", 9, 200, implied=True)
    values = np.random.default_rng(4).normal(0, 50, 200).round().astype(np.int64)
    symbols, table = choose_table(values)
    assert decode_scalars(_with(symbols, table), plan).coefficients.tolist() == values.tolist()
    wider = StudentTTable(200, table.bits + 1)
    for other in (StudentTTable(200, table.bits), replace(table, scale=table.scale + 1)):
        with pytest.raises(DecodeError, match="the one encoding"):
            decode_scalars(_with(symbols, other), plan)
    with pytest.raises(DecodeError, match="the one encoding"):
        decode_scalars(_with(symbols + (1 << table.bits), wider), plan)


def _with(symbols, table):
    return Payload(SCALARS, b"\1" + table.header() + pack([(symbols.astype(np.int32), table)]))


def test_the_order_of_a_seeds_entries_is_not_on_the_wire():
    swapped = encode_scalars(of(GOLDEN, [12, 12], [9, -4]))
    assert swapped == encode_scalars(of(GOLDEN, [12, 12], [-4, 9]))
    assert decode_scalars(swapped, GOLDEN).coefficients.tolist() == [-4, 9]


def test_what_is_no_scalars_of_its_plan_is_not_sent():
    with pytest.raises(UpdateRejected, match="-32768"):
        encode_scalars(of(GOLDEN, [10], [-32768]))
    implied = SeedPlan(10, 16, "rademacher", 9, 16, implied=True)
    with pytest.raises(UpdateRejected, match="one for each seed"):
        encode_scalars(of(implied, [10, 11], [1, 1]))
