import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.compression.byte_reader import Reader
from headwater.compression.codecs import symbols as coding
from headwater.errors import DecodeError
from tests.laws.codec_laws import LAW


@LAW
@given(data=st.data(), size=st.integers(2, 256))
def test_round_trip_within_the_bound(data, size):
    values = data.draw(st.lists(st.integers(0, size - 1), max_size=60))
    symbols = np.array(values * data.draw(st.integers(1, 20)), np.int32)
    body = coding.write(symbols, size)
    assert len(body) <= coding.most_bytes(symbols.size, size)
    assert np.array_equal(coding.read(Reader(body, "x"), symbols.size, size), symbols)


@pytest.mark.parametrize(
    ("size", "symbols", "body"),
    [
        (2, [1, 0, 1], "00a0"),
        (4, [1, 2, 3, 0, 3], "006cc0"),
        (15, [14, 0, 7], "00e070"),
        (255, [254, 1], "00fe01"),
        (16, [3] * 100, "01030064"),
        (256, [9] * 100 + [255], "0109f66400f401012b4dfb01"),
    ],
)
def test_golden(size, symbols, body):
    assert coding.write(np.array(symbols, np.int32), size).hex() == body


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("02", "mode"),
        ("00e0", "packed"),
        ("00e07000", "the end"),
        ("00e071", "zero bits"),
        ("00f070", "symbols below 15"),
        ("010f0003", "first symbol"),
        ("01030c03", "symbols after"),
        ("01030004", "count of a symbol"),
        ("01030002", "uncounted"),
        ("010301030000", "uncounted"),
        ("01030200000102", "a used symbol first"),
        ("0103040100000000", "after zeros"),
        ("010303010003", "zeros in a row"),
        ("0103010201", "announced symbol counts"),
    ],
)
def test_what_is_refused(body, why):
    with pytest.raises(DecodeError, match=why):
        coding.read(Reader(bytes.fromhex(body), "x"), 3, 15)


def test_uneven_symbols_take_their_entropy():
    symbols = np.repeat(np.arange(4, dtype=np.int32), [9000, 500, 400, 100])
    share = np.array([9000, 500, 400, 100]) / 10_000
    bound = -(share * np.log2(share)).sum() * 10_000 / 8
    assert bound < len(coding.write(symbols, 4)) < bound + 20
