"""What is remembered of the last payload: only that payload, by all of its bytes, and only for its spec."""

import pytest
import torch

from headwater.compression.compeft_gaps import CompeftGapsCodec
from headwater.compression.dense import DenseCodec
from headwater.compression.just_made import decode_once, remember
from headwater.errors import DecodeError
from headwater.protocol.messages import Payload
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec

SPEC = StateSpec.of([TensorSpec("a", (40,), "vector"), TensorSpec("b", (8, 5), "linear.A")])
STATE = AdapterState.from_vector(SPEC, torch.linspace(-1, 2, 80))


class Counting(CompeftGapsCodec):
    """Counts what it decodes."""

    decoded = 0

    def decode(self, payload, spec):
        self.decoded += 1
        return super().decode(payload, spec)


def test_it_is_decoded_once_and_to_the_same_bits():
    codec = Counting(0.05)
    payload, values = codec.round_trip(STATE, key=Key.root(0))
    remember(payload, values)
    again = Payload(payload.codec, bytes(bytearray(payload.body)))  # as it comes from an envelope
    assert decode_once(codec, again, SPEC) is values
    assert codec.decoded == 0
    assert values.sha256() == codec.decode(payload, SPEC).sha256()


def test_every_other_payload_spec_and_codec_is_decoded():
    codec = Counting(0.05)
    payload, values = codec.round_trip(STATE, key=Key.root(0))
    remember(payload, values)
    other = codec.encode(STATE * -1.0, key=Key.root(0))
    assert decode_once(codec, other, SPEC) is not values
    assert codec.decoded == 1
    renamed = StateSpec.of([TensorSpec("a", (40,), "vector"), TensorSpec("c", (8, 5), "linear.A")])
    assert decode_once(codec, payload, renamed).spec == renamed
    assert codec.decoded == 2
    with pytest.raises(DecodeError):
        decode_once(codec, Payload(payload.codec, payload.body + b"\0"), SPEC)
    with pytest.raises(DecodeError):
        decode_once(DenseCodec("fp32"), payload, SPEC)


def test_dense_values_and_unknown_codecs_are_not_kept():
    codec = Counting(0.05)
    payload, values = codec.round_trip(STATE, key=Key.root(0))
    remember(payload, values)
    remember(Payload("stranger.v1", b"x"), values)
    dense = Counting(1.0)
    whole, all_values = dense.round_trip(STATE, key=Key.root(0))
    remember(whole, all_values)
    assert decode_once(dense, whole, SPEC) is not all_values
    assert dense.decoded == 1
    assert decode_once(codec, payload, SPEC) is values
