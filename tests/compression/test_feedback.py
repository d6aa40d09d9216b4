import hashlib
import io
import json
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from headwater.compression.compeft import CompeftCodec
from headwater.compression.feedback import (
    FeedbackState,
    compensate,
    is_stale,
    repeat,
    sent,
    settle,
)
from headwater.compression.feedback_file import pending_round, read_state, to_pieces
from headwater.errors import SpecMismatch, StorageError
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec


def to_bytes(state):
    return b"".join(to_pieces(state))


def from_bytes(data, spec):
    return read_state(io.BytesIO(data), spec)


SPEC = StateSpec.of([TensorSpec("a", (5, 4), "lora_a"), TensorSpec("b", (7,), "vector")])
CODEC = CompeftCodec(0.2)


def delta(seed):
    values = torch.randn(SPEC.numel, generator=torch.Generator().manual_seed(seed))
    return AdapterState.from_vector(SPEC, values)


def answer(state, round):
    """One trained round: the new state and what the server would decode."""
    compensated = compensate(state, delta(round))
    payload = CODEC.encode(compensated, key=Key.root(round))
    decoded = CODEC.decode(payload, SPEC)
    envelope = b"envelope %d " % round + payload.body
    return sent(state, round, compensated, decoded, envelope, payload), decoded


def held_back(state):
    if state.pending is not None:
        return state.pending.residual_if_accepted + state.pending.sent
    return state.residual or AdapterState.zeros(SPEC)


FATES = st.lists(st.sampled_from(["accept", "refuse", "lose", "repeat", "crash"]), max_size=25)


@settings(max_examples=100)
@given(fates=FATES)
def test_nothing_is_lost_over_any_sequence(fates):
    state, accepted_round, round = FeedbackState(), 0, 0
    accepted, given_up = AdapterState.zeros(SPEC), AdapterState.zeros(SPEC)
    for fate in fates:
        if fate == "repeat":
            assert repeat(state, round) == (state.pending.envelope if round else None)
            continue
        if fate == "crash":
            state = from_bytes(to_bytes(state), SPEC)
            continue
        round += 1  # rounds in which the client is not asked count too
        assert repeat(state, round) is None
        state = settle(state, accepted_round)
        assert state.pending is None
        state, decoded = answer(state, round)
        given_up = given_up + delta(round)
        if fate == "accept":
            accepted, accepted_round = accepted + decoded, round
    pending_accepted = state.pending is not None and state.pending.round == accepted_round
    rest = state.pending.residual_if_accepted if pending_accepted else held_back(state)
    assert torch.allclose((accepted + rest).vector(), given_up.vector(), atol=1e-4)
    settled = settle(state, accepted_round)
    if settled.residual is not None:
        assert torch.equal(settled.residual.vector(), rest.vector())


def test_accepted_commits_and_refused_rolls_back():
    state, decoded = answer(FeedbackState(), 3)
    kept_back = delta(3) - decoded
    assert torch.equal(settle(state, 3).residual.vector(), kept_back.vector())
    assert torch.allclose(settle(state, 2).residual.vector(), delta(3).vector(), atol=1e-6)
    assert settle(state, 3).pending is None
    assert torch.equal(settle(state, 4).residual.vector(), kept_back.vector())  # store restored from older


def test_repeat_gives_the_same_bytes_and_only_for_its_round():
    state, _ = answer(FeedbackState(), 3)
    assert repeat(state, 3) is state.pending.envelope
    assert repeat(state, 2) is None
    assert repeat(state, 4) is None
    assert repeat(FeedbackState(), 3) is None


def test_stale_rounds_are_recognised():
    state, _ = answer(FeedbackState(), 3)
    assert is_stale(state, 2)
    assert not is_stale(state, 3)
    assert not is_stale(state, 4)
    assert not is_stale(FeedbackState(), 1)


def test_feedback_sends_what_was_dropped():
    # a constant delta at density 0.2: without feedback four of five coordinates never travel
    values = AdapterState(SPEC, {"a": torch.linspace(0.1, 0.2, 20).reshape(5, 4), "b": torch.full((7,), 0.3)})
    state, total = FeedbackState(), AdapterState.zeros(SPEC)
    for round in range(1, 41):
        state = settle(state, round - 1)
        compensated = compensate(state, values)
        decoded = CODEC.decode(CODEC.encode(compensated, key=Key.root(0)), SPEC)
        state, total = sent(state, round, compensated, decoded, b"x"), total + decoded
    assert float((total * (1 / 40) - values).max_abs()) < 0.05


WIDE = StateSpec.of([TensorSpec("w", (300, 1000), "vector")])


@pytest.mark.parametrize("density", [0.01, 0.05, 0.2, 1.0])
def test_a_pending_update_needs_little_more_than_one_dense_state(density):
    """What was sent stands in the update's own bytes."""
    codec = CompeftCodec(density)
    values = torch.randn(WIDE.numel, generator=torch.Generator().manual_seed(1))
    whole = AdapterState.from_vector(WIDE, values)
    payload, decoded = codec.round_trip(whole, key=Key.root(0))
    state = sent(FeedbackState(), 1, whole, decoded, b"before" + payload.body + b"behind", payload)
    assert len(to_bytes(state)) <= WIDE.nbytes + len(payload.body) + 8192 < 1.2 * WIDE.nbytes
    again = from_bytes(to_bytes(state), WIDE)
    for accepted in (0, 1):
        assert settle(again, accepted).residual.sha256() == settle(state, accepted).residual.sha256()


def test_one_clients_files_have_one_size():
    """Then a database overwrites them in place."""
    assert {len(to_bytes(answer(FeedbackState(), round)[0])) for round in (1, 2, 30)} == {4096}


def test_forgetting_to_settle_is_refused():
    state, decoded = answer(FeedbackState(), 1)
    with pytest.raises(StorageError, match="round 1 still pending"):
        compensate(state, delta(2))
    with pytest.raises(StorageError, match="round 1 still pending"):
        sent(state, 2, decoded, decoded, b"")


def test_another_adapters_residual_is_refused():
    state, _ = answer(FeedbackState(), 1)
    other = AdapterState.zeros(StateSpec.of([TensorSpec("a", (5, 4), "lora_a")]))
    with pytest.raises(SpecMismatch):
        compensate(settle(state, 1), other)


# --- bytes --------------------------------------------------------------------------------------------


def full_state():
    state, _ = answer(FeedbackState(), 1)
    return answer(settle(state, 1), 2)[0]


@pytest.mark.parametrize(
    "state", [FeedbackState(), FeedbackState(delta(1)), answer(FeedbackState(), 1)[0], full_state()]
)
def test_bytes_round_trip(state):
    data = to_bytes(state)
    again = from_bytes(data, SPEC)
    assert to_bytes(again) == data
    assert (again.residual is None) == (state.residual is None)
    if state.residual is not None:
        assert again.residual.sha256() == state.residual.sha256()
    if state.pending is None:
        assert again.pending is None
    else:
        assert again.pending.round == state.pending.round
        assert again.pending.envelope == state.pending.envelope
        assert again.pending.sent.sha256() == state.pending.sent.sha256()
        assert again.pending.residual_if_accepted.sha256() == state.pending.residual_if_accepted.sha256()


def pending_with(values):
    """A pending update that sent ``values`` of tensor b, and nothing of a."""
    some = AdapterState(SPEC, {"a": torch.zeros(5, 4), "b": torch.tensor(values)})
    return sent(FeedbackState(), 3, delta(1), some, b"e")


@pytest.mark.parametrize(
    ("values", "few"),
    [
        ([0.0, 0, 0, 0, 0, 0, 0], True),
        ([0.0, -0.0, 0, 2, 0, 0, 1e-45], True),
        ([1.0, 2, 3, 4, 5, 6, 7], False),
    ],
)
def test_what_a_codec_of_others_sent_is_stored_in_the_shorter_way_bit_for_bit(values, few):
    state = pending_with(values)
    data = to_bytes(state)
    assert (b'"places":' in data) == few
    assert from_bytes(data, SPEC).pending.sent.sha256() == state.pending.sent.sha256()


def test_a_file_of_the_first_layout_is_read():
    """A device that was updated between two rounds has one: both outcomes in full."""
    state = full_state()
    pending = state.pending
    arrays = {f"residual_if_accepted/{n}": v.numpy() for n, v in pending.residual_if_accepted.items()}
    arrays |= {f"sent/{name}": value.numpy() for name, value in pending.sent.items()}
    arrays["envelope"] = np.frombuffer(pending.envelope, np.uint8)
    entry = json.dumps({"spec": SPEC.fingerprint(), "round": 2, "residual": False})
    content = save(arrays, metadata={"headwater": entry})
    data = b"HWFB1\n" + hashlib.sha256(content).digest() + content
    again = from_bytes(data, SPEC)
    for accepted in (1, 2):
        assert settle(again, accepted).residual.sha256() == settle(state, accepted).residual.sha256()
    assert repeat(again, 2) == repeat(state, 2)
    assert pending_round(io.BytesIO(data), SPEC) == 2


def second_layout(state):
    """As the version before wrote it: places and values of what was sent."""
    pending = state.pending
    arrays = {f"residual_if_accepted/{n}": v.numpy() for n, v in pending.residual_if_accepted.items()}
    for name, value in pending.sent.items():
        flat = value.reshape(-1).numpy()
        places = np.flatnonzero(flat)
        arrays |= {f"sent/{name}/at": places.astype(np.int32), f"sent/{name}/values": flat[places]}
    arrays["envelope"] = np.frombuffer(pending.envelope, np.uint8)
    entry = json.dumps({"spec": SPEC.fingerprint(), "round": 2, "residual": False})
    content = save(arrays, metadata={"headwater": entry})
    return b"HWFB2\n" + hashlib.sha256(content).digest() + content


def test_a_file_of_the_second_layout_is_read():
    state, data = full_state(), second_layout(full_state())
    again = from_bytes(data, SPEC)
    for accepted in (1, 2):
        assert settle(again, accepted).residual.sha256() == settle(state, accepted).residual.sha256()
    assert repeat(again, 2) == repeat(state, 2)
    assert pending_round(io.BytesIO(data), SPEC) == 2
    other = StateSpec.of([TensorSpec("a", (5, 4), "lora_a")])
    for read in (read_state, pending_round):
        with pytest.raises(SpecMismatch):
            read(io.BytesIO(data), other)
    with pytest.raises(StorageError, match="SHA-256"):
        from_bytes(data[:-1], SPEC)


def test_the_pending_round_is_read_from_the_head_alone():
    data = to_bytes(full_state())
    head = 14 + int.from_bytes(data[10:14], "little")
    assert pending_round(io.BytesIO(data[:head]), SPEC) == 2
    assert pending_round(io.BytesIO(to_bytes(FeedbackState(delta(1)))), SPEC) is None
    with pytest.raises(SpecMismatch, match="error feedback"):
        pending_round(io.BytesIO(data), StateSpec.of([TensorSpec("a", (5, 4), "lora_a")]))


@pytest.mark.parametrize("cut", [0, 5, 13, 14, 60])
def test_a_head_that_is_torn_is_a_storage_error(cut):
    with pytest.raises(StorageError):
        pending_round(io.BytesIO(DATA[:cut]), SPEC)


DATA = to_bytes(full_state())


@settings(max_examples=150)
@given(cut=st.integers(0, len(DATA) - 1))
def test_torn_file(cut):
    with pytest.raises(StorageError, match="CRC-32"):
        from_bytes(DATA[:cut], SPEC)


@settings(max_examples=150)
@given(at=st.integers(0, len(DATA) - 1), bit=st.integers(0, 7))
def test_one_flipped_bit(at, bit):
    data = bytearray(DATA)
    data[at] ^= 1 << bit
    with pytest.raises(StorageError):
        from_bytes(bytes(data), SPEC)


def foreign(head, rest=b""):
    content = len(head).to_bytes(4, "little") + head + rest
    return b"HWFB3\n" + zlib.crc32(content).to_bytes(4, "little") + content


@pytest.mark.parametrize(
    "data",
    [
        foreign(b""),
        foreign(b"x"),
        foreign(b"{}"),
        foreign(b"[]"),
        foreign(b'{"spec":"%s","round":1}' % SPEC.fingerprint().encode(), b"x"),
        foreign(b'{"spec":"%s","round":1,"sent":{"places":9}}' % SPEC.fingerprint().encode(), bytes(108)),
        b"HWFB2\n" + hashlib.sha256(b"x").digest() + b"x",
    ],
)
def test_intact_checksum_over_foreign_content(data):
    with pytest.raises(StorageError, match="of this version"):
        from_bytes(data, SPEC)


def test_intact_file_of_another_adapter():
    with pytest.raises(SpecMismatch, match="error feedback"):
        from_bytes(DATA, StateSpec.of([TensorSpec("a", (5, 4), "lora_a")]))
