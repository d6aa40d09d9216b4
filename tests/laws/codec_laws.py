"""The laws that every codec inherits: subclass :class:`CodecLaws`, set ``codec`` and ``values``.

Hostile bytes are the point of half of them: random bytes, and mutations of valid bodies, which get
much deeper into a decoder.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from headwater.compression.codec import Codec
from headwater.errors import DecodeError, TrainingError
from headwater.protocol.messages import Payload
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec

KEY = Key.root(7)

# inherited @given tests run once per subclass, which is exactly what this check warns about
LAW = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)

shapes = st.one_of(
    st.just((1,)),
    st.tuples(st.integers(1, 40)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 3), st.integers(700, 1100)),
)
specs = st.lists(shapes, min_size=1, max_size=4).map(
    lambda all: StateSpec.of([TensorSpec(f"t{i}", shape, "vector") for i, shape in enumerate(all)])
)

# zeros, signed zeros, ties, subnormals and five hundred octaves; below bf16's largest value
signed = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-8, -(2.0**-149), 3e-39, -1e-42]),
    st.floats(-(2.0**120), 2.0**120, width=32),
)


@st.composite
def states(draw, values, specs=specs):
    """A state: a few drawn values and, where the tensor is larger, Gaussian ones that share their scale."""
    spec = draw(specs)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tensors = {}
    for t in spec:
        some = torch.tensor(draw(st.lists(values, min_size=1, max_size=12)), dtype=torch.float32)
        flat = some[torch.randint(len(some), (t.numel,), generator=generator)]
        if draw(st.booleans()) and t.numel > 1:
            flat = flat * torch.rand(t.numel, generator=generator)
        tensors[t.name] = flat.reshape(t.shape)
    return AdapterState(spec, tensors)


@st.composite
def mutations(draw, body: bytes):
    """``body`` with a byte changed, cut, added, doubled or moved; sometimes several."""
    out = bytearray(body)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(out)))
        kind = draw(st.sampled_from(["flip", "set", "cut", "insert", "drop", "swap"]))
        if kind == "flip" and at < len(out):
            out[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and at < len(out):
            out[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == "cut":
            del out[at:]
        elif kind == "insert":
            out[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "drop" and at < len(out):
            del out[at]
        elif kind == "swap" and at + 1 < len(out):
            out[at], out[at + 1] = out[at + 1], out[at]
    return bytes(out)


def same(left: AdapterState, right: AdapterState) -> bool:
    """Equal specs and equal bits (so −0 is not 0)."""
    return left.sha256() == right.sha256()


class CodecLaws:
    """Inherit, and set what differs."""

    codec: Codec
    values: st.SearchStrategy[float] = signed
    lossy = True
    """Whether decode(encode(x)) can differ from x."""
    canonical = True
    """Whether each decodable body is the only one for its state (given the codec's own settings)."""
    projects = True
    """Whether encode(decode(encode(x))) decodes to the same values. An unbiased codec cannot."""
    contracts = True
    """Whether ‖decode(encode(x)) − x‖ ≤ ‖x‖ for every x, which error feedback needs."""
    keeps_zeros = True
    """Whether a value 0 arrives as one, whatever stands beside it."""

    def decode(self, body: bytes, spec: StateSpec) -> AdapterState:
        return self.codec.decode(Payload(self.codec.id, body), spec)

    @LAW
    @given(data=st.data())
    def test_decode_of_encode_has_the_spec_and_is_bounded(self, data):
        state = data.draw(states(self.values))
        payload = self.codec.encode(state, key=KEY)
        decoded = self.codec.decode(payload, state.spec)
        assert payload.codec == self.codec.id
        assert decoded.spec == state.spec
        assert decoded.isfinite()
        assert len(payload.body) <= self.codec.max_bytes(state.spec)
        assert len(payload.body) <= self.codec.most_encoded(state.spec)
        if not self.lossy:
            assert same(decoded, state)

    @LAW
    @given(data=st.data())
    def test_encode_is_a_function_of_state_and_key(self, data):
        state = data.draw(states(self.values))
        before = state.sha256()
        again = AdapterState(state.spec, {name: value.clone() for name, value in state.items()})
        assert self.codec.encode(state, key=KEY) == self.codec.encode(again, key=KEY)
        assert state.sha256() == before

    @LAW
    @given(data=st.data())
    def test_encode_is_a_projection(self, data):
        if not self.projects:
            return
        state = data.draw(states(self.values))
        once = self.codec.encode(state, key=KEY)
        decoded = self.codec.decode(once, state.spec)
        twice = self.codec.encode(decoded, key=KEY)
        assert same(self.codec.decode(twice, state.spec), decoded)
        if self.canonical:
            assert twice == once

    @LAW
    @given(data=st.data())
    def test_what_is_lost_is_not_longer_than_what_was_there(self, data):
        state = data.draw(states(self.values))
        decoded = self.codec.decode(self.codec.encode(state, key=KEY), state.spec).vector().double()
        true = state.vector().double()
        assert not (self.keeps_zeros and decoded[true == 0].any()), "masks rely on zeros"
        if self.contracts:
            assert float((decoded - true).square().sum()) <= float(true.square().sum()) * (1 + 1e-6)

    @LAW
    @given(data=st.data())
    def test_round_trip_is_encode_and_decode(self, data):
        state = data.draw(states(self.values))
        payload, values = self.codec.round_trip(state, key=KEY)
        assert payload == self.codec.encode(state, key=KEY)
        assert same(values, self.codec.decode(payload, state.spec))

    @LAW
    @given(body=st.binary(max_size=64), spec=specs)
    def test_random_bytes_decode_or_raise(self, body, spec):
        self._decode_or_raise(body, spec)

    @LAW
    @given(data=st.data())
    def test_mutated_bytes_decode_or_raise(self, data):
        state = data.draw(states(self.values))
        body = self.codec.encode(state, key=KEY).body
        self._decode_or_raise(data.draw(mutations(body)), state.spec)

    def _decode_or_raise(self, body, spec):
        try:
            state = self.decode(body, spec)
        except DecodeError:
            return
        assert state.spec == spec
        assert state.isfinite()

    @LAW
    @given(data=st.data())
    def test_the_receivers_spec_rules(self, data):
        state = data.draw(states(self.values))
        other = data.draw(specs)
        assume(other.numel != state.spec.numel)
        body = self.codec.encode(state, key=KEY).body
        self._decode_or_raise(body, other)

    @LAW
    @given(data=st.data())
    def test_a_body_with_trailing_bytes_is_refused_or_another_states(self, data):
        """Another's where a coder drops zeros at the end: no two bodies are of one state."""
        state = data.draw(states(self.values))
        body = self.codec.encode(state, key=KEY).body
        for extra in (b"\0", b"\1", b"\0\0\0\0", b"\xff" * 8):
            try:
                other = self.decode(body + extra, state.spec)
            except DecodeError:
                continue
            assert other.sha256() != self.decode(body, state.spec).sha256()

    @LAW
    @given(data=st.data())
    def test_truncation_is_refused(self, data):
        state = data.draw(states(self.values))
        body = self.codec.encode(state, key=KEY).body
        with pytest.raises(DecodeError):
            self.decode(body[: data.draw(st.integers(0, len(body) - 1))], state.spec)

    def test_a_body_beyond_max_bytes_is_refused_unread(self):
        spec = StateSpec.of([TensorSpec("t", (10,), "vector")])
        limit = self.codec.max_bytes(spec)
        with pytest.raises(DecodeError, match=f"at most {limit} bytes"):
            self.decode(bytes(limit + 1), spec)

    def test_another_codecs_payload_is_refused(self):
        spec = StateSpec.of([TensorSpec("t", (10,), "vector")])
        body = self.codec.encode(AdapterState.zeros(spec), key=KEY).body
        with pytest.raises(DecodeError, match=r"other\.v1"):
            self.codec.decode(Payload("other.v1", body), spec)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_non_finite_values_are_a_training_error(self, bad):
        spec = StateSpec.of([TensorSpec("a", (2,), "vector"), TensorSpec("b", (3, 2), "vector")])
        state = AdapterState(spec, {"a": torch.ones(2), "b": torch.tensor([[1.0, 2], [3, bad], [5, 6]])})
        with pytest.raises(TrainingError, match="tensor b"):
            self.codec.encode(state, key=KEY)

    def test_values_that_are_not_contiguous_encode_alike(self):
        spec = StateSpec.of([TensorSpec("t", (3, 4), "vector")])
        turned = torch.arange(12.0).reshape(4, 3).T
        assert not turned.is_contiguous()
        left = self.codec.encode(AdapterState(spec, {"t": turned}), key=KEY)
        right = self.codec.encode(AdapterState(spec, {"t": turned.contiguous()}), key=KEY)
        assert left == right
