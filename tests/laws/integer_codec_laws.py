"""The laws of codecs of integers (``scalars.v1``, ``seeds.v1``): one encoding a value, any bytes are safe.

Subclass :class:`IntegerCodecLaws`. Hostile bytes are mutations of valid bodies, which get much deeper into
a decoder than random ones; what decodes must encode to exactly the bytes it came from.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.errors import DecodeError
from headwater.protocol.messages import Payload
from tests.laws.codec_laws import mutations

LAW = settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)


@st.composite
def vectors(draw, length, largest):
    """int64 [length] within ±largest: of one scale, with outliers, mostly zero, all alike."""
    generator = np.random.default_rng(draw(st.integers(0, 2**31)))
    scale = largest * 2.0 ** -draw(st.integers(0, largest.bit_length()))
    kind = draw(st.sampled_from(["normal", "laplace", "sparse", "constant", "listed"]))
    if kind == "normal":
        values = generator.normal(0, scale, length)
    elif kind == "laplace":
        values = generator.laplace(0, scale, length)
    elif kind == "sparse":
        values = generator.normal(0, scale, length) * (generator.random(length) < 0.1)
    elif kind == "constant":
        values = np.full(length, float(draw(st.integers(-largest, largest))))
    else:
        some = draw(st.lists(st.integers(-largest, largest), min_size=1, max_size=9))
        values = np.array(some, np.float64)[generator.integers(0, len(some), length)]
    return np.clip(values.round(), -largest, largest).astype(np.int64)


class IntegerCodecLaws:
    """Inherit, and say how to draw, encode and decode a case."""

    id: str

    def cases(self):
        """A strategy of cases: whatever encode and decode take."""
        raise NotImplementedError

    def encode(self, case) -> Payload:
        """The payload of a case."""
        raise NotImplementedError

    def decode(self, payload, case):
        """The case's value in ``payload``, by a receiver that knows what the case's receiver knows."""
        raise NotImplementedError

    def value(self, case):
        """What decode must give: a tuple of arrays."""
        raise NotImplementedError

    def encode_value(self, value, case) -> Payload:
        """The payload of a decoded value."""
        raise NotImplementedError

    def max_bytes(self, case) -> int:
        """No body of the case's receiver is longer."""
        raise NotImplementedError

    def require_bounds(self, value, case):
        """Fail unless a decoded value is within what its receiver expects."""
        raise NotImplementedError

    @LAW
    @given(data=st.data())
    def test_round_trip_is_exact_and_bounded(self, data):
        case = data.draw(self.cases())
        payload = self.encode(case)
        assert payload.codec == self.id
        assert len(payload.body) <= self.max_bytes(case)
        for found, wanted in zip(self.decode(payload, case), self.value(case), strict=True):
            assert found.dtype == np.int64
            np.testing.assert_array_equal(found, wanted)
        assert self.encode(case) == payload

    @LAW
    @given(data=st.data())
    def test_mutated_bytes_are_another_value_or_refused(self, data):
        case = data.draw(self.cases())
        body = data.draw(mutations(self.encode(case).body))
        self._decode_or_raise(body, case)

    @LAW
    @given(data=st.data(), body=st.binary(max_size=64))
    def test_random_bytes_decode_or_raise(self, data, body):
        self._decode_or_raise(body, data.draw(self.cases()))

    def _decode_or_raise(self, body, case):
        payload = Payload(self.id, body)
        try:
            value = self.decode(payload, case)
        except DecodeError:
            return
        self.require_bounds(value, case)
        assert self.encode_value(value, case).body == body

    @LAW
    @given(data=st.data())
    def test_a_longer_or_shorter_body_is_no_second_encoding(self, data):
        case = data.draw(self.cases())
        body = self.encode(case).body
        extra = data.draw(st.sampled_from([b"\0", b"\1", b"\0\0\0\0", b"\xff" * 8]))
        self._decode_or_raise(body + extra, case)
        self._decode_or_raise(body[: data.draw(st.integers(0, len(body) - 1))], case)

    @LAW
    @given(data=st.data())
    def test_others_payloads_and_longer_ones_are_refused_unread(self, data):
        case = data.draw(self.cases())
        with pytest.raises(DecodeError, match=r"other\.v1"):
            self.decode(Payload("other.v1", self.encode(case).body), case)
        limit = self.max_bytes(case)
        with pytest.raises(DecodeError, match=f"at most {limit} bytes"):
            self.decode(Payload(self.id, bytes(limit + 1)), case)
