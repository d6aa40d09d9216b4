"""seeds.v1: laws of both forms, frozen bytes, bases that are missing or wrong, bytes of real rounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st

from headwater.compression import entropy
from headwater.compression.seed_state import (
    MAX_SUMS,
    SEEDS,
    decode_sums,
    digest,
    encode_sums,
    read_header,
    sums_max_bytes,
)
from headwater.compression.t_tables import choose_table
from headwater.errors import ConfigError, DecodeError
from headwater.protocol.failures import Failure, FailureCode
from headwater.protocol.messages import Payload
from tests.laws.integer_codec_laws import IntegerCodecLaws, vectors

LIMIT = 400


def pack(sums, since=None, version=0, distribution="rademacher", unit_bits=30):
    return encode_sums(sums, since, version=version, distribution=distribution, unit_bits=unit_bits)


class TestSums(IntegerCodecLaws):
    """A case is (sums, since, version)."""

    id = SEEDS

    def cases(self):
        @st.composite
        def draw_case(draw):
            n = draw(st.integers(0, LIMIT))
            sums = draw(vectors(n, draw(st.sampled_from([3, 10**5, 2**44]))))
            version = draw(st.integers(0, 2**31))
            since = draw(vectors(draw(st.integers(0, n)), 10**6)) if version else None
            if version and draw(st.booleans()):
                kept = draw(st.integers(0, len(since)))
                since[:kept] = sums[:kept]
            return sums, since, version

        return draw_case()

    def encode(self, case):
        return pack(*case)

    def decode(self, payload, case):
        return (decode_sums(payload, lambda version: case[1] if version == case[2] else None, LIMIT),)

    def value(self, case):
        return (case[0],)

    def encode_value(self, value, case):
        header = self.header  # distribution and unit are free: any of them is a valid header
        since = case[1] if header.version else None
        return pack(value[0], since, header.version, header.distribution, header.unit_bits)

    def _decode_or_raise(self, body, case):
        try:
            self.header = read_header(Payload(SEEDS, body), LIMIT)
        except DecodeError:
            with pytest.raises(DecodeError):
                self.decode(Payload(SEEDS, body), case)
            return
        super()._decode_or_raise(body, case)

    def max_bytes(self, case):
        return sums_max_bytes(LIMIT)

    def require_bounds(self, value, case):
        assert len(value[0]) <= LIMIT


@pytest.mark.parametrize(
    ("sums", "since", "version", "body"),
    [
        ([], None, 0, "01001e000000"),
        ([0, 0, 0], None, 0, "01001e030000"),
        ([5, 0, -70_000, 1_000_000], None, 0, "01001e0400030b191f00ba4120003fbcffc21805"),
        (
            [5, 0, -70_000, 1_000_001, 0],
            [5, 0, -70_000, 1_000_000],
            7,
            "01001e0507e5f00e8a11a1cd180100410a26702207",
        ),
    ],
)
def test_golden_bytes(sums, since, version, body):
    since = None if since is None else np.array(since, np.int64)
    assert pack(np.array(sums, np.int64), since, version).body.hex() == body


def test_the_header_says_what_is_needed_to_rebuild():
    since = np.array([1, 2], np.int64)
    header = read_header(pack(np.array([1, 5, 9]), since, 12, "gaussian", -3), 3)
    assert (header.distribution, header.unit_bits, header.count, header.version) == ("gaussian", -3, 3, 12)
    assert header.base == digest(since)


@pytest.mark.parametrize("known", [None, np.array([1, 3], np.int64), np.array([1, 2, 0, 0], np.int64)])
def test_without_the_base_the_receiver_asks_for_everything(known):
    payload = pack(np.array([1, 5, 9]), np.array([1, 2], np.int64), 12)
    with pytest.raises(DecodeError) as error:
        decode_sums(payload, lambda version: known, 10)
    assert error.value.failure == Failure(FailureCode.NEEDS_FULL_STATE, (12,))


def test_hostile_counts_are_refused_before_anything_is_made():
    body = bytearray(pack(np.zeros(3, np.int64)).body)
    body[3] = 11
    with pytest.raises(DecodeError, match="at most 10"):
        decode_sums(Payload(SEEDS, bytes(body)), lambda version: None, 10)


def test_what_can_be_said_in_two_ways_is_refused_in_one():
    """An unchanged coefficient among the changes, and bits beyond the last one."""
    values = np.array([3, 0, -2], np.int64)
    symbols, table = choose_table(values)
    row = np.array([1, 1, 1, 0], np.int32)
    head = bytes([1, 0, 30, 4, 0, 3, 0]) + table.header()
    body = head + entropy.pack([(row, entropy.Block((1, 3))), (symbols, table)])
    with pytest.raises(DecodeError, match="the one encoding"):
        decode_sums(Payload(SEEDS, body), lambda version: None, 10)
    body = bytearray.fromhex("01001e0400030b191f00ba4120003fbcffc21805")
    low_bits = slice(9, 14)  # of 3 values, 11 each: 33 of 40
    assert body[low_bits.stop - 1] == 0
    body[low_bits.stop - 1] = 1
    with pytest.raises(DecodeError, match="the one encoding"):
        decode_sums(Payload(SEEDS, bytes(body)), lambda version: None, 10)


def test_a_change_that_no_writer_makes_is_a_decode_error():
    """A leading part of 11 bits before 47 low ones: together more than a change can have."""
    values = np.array([2**10], np.int64)
    symbols, table = choose_table(values)
    head = bytes([1, 0, 0, 1, 0, 1, 47]) + table.header() + bytes(6)
    body = head + entropy.pack([(np.ones(1, np.int32), entropy.Block((0, 1))), (symbols, table)])
    with pytest.raises(DecodeError, match="can be encoded"):
        decode_sums(Payload(SEEDS, body), lambda version: None, 10)


def test_arguments_that_disagree():
    with pytest.raises(ConfigError, match="since version 3"):
        pack(np.zeros(3, np.int64), None, 3)
    with pytest.raises(ConfigError, match="since version 0"):
        pack(np.zeros(3, np.int64), np.zeros(3, np.int64), 0)
    with pytest.raises(ConfigError, match="of 3"):
        pack(np.zeros(2, np.int64), np.zeros(3, np.int64), 4)
    with pytest.raises(ConfigError, match=str(MAX_SUMS)):
        pack(np.zeros(MAX_SUMS + 1, np.int64))


def test_changes_too_large_to_encode():
    assert len(pack(np.array([2**55 - 1])).body) < 30
    with pytest.raises(ConfigError, match=r"changes below 2\^55 in the mean, got 3\.6e\+16"):
        pack(np.array([2**55]))


def test_many_values_and_long_ones():
    """More than one part of low bits, and the largest shift that a value needs."""
    sums = np.random.default_rng(0).integers(-(2**46), 2**46, 40_000)
    np.testing.assert_array_equal(decode_sums(pack(sums), lambda version: None, 40_000), sums)


def test_bytes_of_rounds():
    """K = 4096, 10 clients of 200 steps a round: within 3 % of the entropy of what happened."""
    draw = np.random.default_rng(2)
    sums, sizes = np.zeros(4096, np.int64), {}
    for number in range(1, 11):
        before, change = sums, np.zeros(4096, np.int64)
        np.add.at(change, draw.integers(0, 4096, 2000), draw.normal(0, 400 * 25.6, 2000).round().astype(int))
        sums = before + change
        sizes[number] = len(pack(sums).body), len(pack(sums, before, number).body)
    touched = np.count_nonzero(change)
    p = touched / 4096
    which = 4096 * -(p * np.log2(p) + (1 - p) * np.log2(1 - p)) / 8
    spread = change[change != 0].std()
    bound = which + touched * np.log2(spread * np.sqrt(2 * np.pi * np.e)) / 8
    assert bound * 0.99 < sizes[10][1] < bound * 1.03
    bound = 4096 * np.log2(sums.std() * np.sqrt(2 * np.pi * np.e)) / 8
    assert bound * 0.99 < sizes[10][0] < bound * 1.03
