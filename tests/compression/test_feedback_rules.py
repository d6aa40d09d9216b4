"""What error feedback promises: decay, clients that come back late, and EF21 against its paper."""

from __future__ import annotations

import io
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.compression.compeft import CompeftCodec
from headwater.compression.feedback import FeedbackState, compensate, faded, sent, settle
from headwater.compression.feedback_file import read_state, to_pieces
from headwater.compression.table import codec_by_id, codec_for
from headwater.config.codec import TopkCodec
from headwater.config.feedback import Contractive
from headwater.merging import MeanAggregator
from headwater.merging.plan import MergePlan, Update
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.strategies.error_shift import ShiftPlan

KEY = Key.root(0)
SPEC = StateSpec.of([TensorSpec("v", (12,), "vector")])


def state_of(values, spec=SPEC):
    return AdapterState.from_vector(spec, torch.tensor(np.asarray(values), dtype=torch.float32))


def step(state, round, delta, codec):
    whole = compensate(state, delta)
    payload, decoded = codec.round_trip(whole, key=KEY)
    return sent(state, round, whole, decoded, payload.body, payload), decoded


# --- decay ---


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=9), st.sampled_from([1.0, 0.5])
)
def test_what_is_held_back_is_the_sum_of_what_was_dropped_decayed_by_rounds(game, decay):
    """e_T = Σ β^(T − t)·(Δ_t − D_t), D_t = 0 where the update was not accepted; in exact fractions."""
    codec, state, accepted, number = CompeftCodec(0.25), FeedbackState(), 0, 0
    expected = [Fraction(0)] * 12
    for gap, taken in game:
        before, number = number, number + gap
        state = faded(settle(state, accepted), number, decay)
        delta = state_of(np.random.default_rng(number).integers(-8, 9, 12) / 8)
        state, decoded = step(state, number, delta, codec)
        accepted = number if taken else accepted
        factor = Fraction(decay) ** (number - before)
        gone = decoded.vector().tolist() if taken else [0.0] * 12
        expected = [
            factor * e + Fraction(d) - Fraction(s)
            for e, d, s in zip(expected, delta.vector().tolist(), gone, strict=True)
        ]
    held = settle(state, accepted).residual
    assert np.abs(held.vector().numpy() - np.array([float(e) for e in expected])).max() < 1e-5


def test_a_client_that_comes_back_late_has_forgotten_what_the_file_says():
    state, _ = step(FeedbackState(), 3, state_of(np.arange(12)), CompeftCodec(0.25))
    held = settle(state, 3)
    assert faded(held, 9, 1.0) is held
    assert faded(held, 9, 0.5).residual == held.residual * 0.5**6
    assert faded(held, 9, 1.0, keep_rounds=6) is held
    assert faded(held, 10, 1.0, keep_rounds=6) == FeedbackState()
    later = settle(state, 2)  # refused: all of it is held back, and as old
    assert faded(later, 10, 0.5, keep_rounds=6) == FeedbackState()


# --- EF21 ---


def test_ef21_golden():
    """Top-1 of three values, g = 0 (algorithms F11)."""
    spec = StateSpec.of([TensorSpec("v", (3,), "vector")])
    codec, state = codec_for(TopkCodec(kind="topk", density=1 / 3, bits=16)), FeedbackState(shifts=True)
    messages, shifts = [], []
    for round, gradient in enumerate([[3, -1, 2], [2.5, -1, 2], [2.5, -1, 2]], 1):
        state, decoded = step(settle(state, round - 1), round, state_of(gradient, spec), codec)
        messages.append(decoded.vector().tolist())
        shifts.append(settle(state, round).residual.vector().tolist())
    assert messages == [[3, 0, 0], [0, 0, 2], [0, -1, 0]]
    assert shifts == [[3, 0, 0], [3, 0, 2], [3, -1, 2]]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["accepted", "refused", "away"]), min_size=3, max_size=3), max_size=8)
)
def test_the_server_has_the_sum_of_the_clients_shifts_whoever_takes_part(rounds):
    codec = CompeftCodec(0.25)
    clients, accepted = [FeedbackState(shifts=True)] * 3, [0] * 3
    total, rule = AdapterState.zeros(SPEC), MeanAggregator()
    for number, fates in enumerate(rounds, 1):
        acc = rule.init(MergePlan(SPEC, {f"c{i}": 1 for i in range(3)}, 64.0))
        for i, fate in enumerate(fates):
            if fate == "away":
                continue
            state = read_state(io.BytesIO(b"".join(to_pieces(clients[i]))), SPEC)  # a crash in between
            delta = state_of(np.random.default_rng([number, i]).integers(-8, 9, 12) / 8)
            clients[i], decoded = step(settle(state, accepted[i]), number, delta, codec)
            if fate == "accepted":
                rule.add(acc, Update(f"c{i}", number, decoded, 1, 1))
                accepted[i] = number
        if "accepted" in fates:
            merged = ShiftPlan(total, 3).after(rule.finalize(acc))
            total = merged.shift
            assert torch.equal(merged.delta.vector(), (total * (1 / 3)).vector())
    settled = [settle(state, done) for state, done in zip(clients, accepted, strict=True)]
    assert [state.made for state in settled] == accepted
    sums = sum(
        (s.residual.vector().double() for s in settled if s.residual is not None), torch.zeros(12).double()
    )
    assert torch.allclose(total.vector().double(), sums, atol=1e-5)


def quadratics(feedback, rounds=300, rate=0.1, away=0):
    """Three clients with their own ½‖x − t‖²·h, Top-1 of 12; how far x is from the optimum in the end."""
    rng = np.random.default_rng(7)
    targets, curves = rng.normal(size=(3, 12)) * 3, 1 + rng.random((3, 12))
    best = (targets * curves).sum(0) / curves.sum(0)
    codec = codec_for(TopkCodec(kind="topk", density=1 / 12, bits=16))
    x, total, clients = np.zeros(12), AdapterState.zeros(SPEC), [FeedbackState(shifts=feedback == "ef21")] * 3
    accepted = [0, 0, 0]
    for number in range(1, rounds + 1):
        change = AdapterState.zeros(SPEC)
        for i in range(3):
            if away and (number + i) % away:
                continue
            delta = state_of(-rate * curves[i] * (x - targets[i]))
            before = settle(clients[i], accepted[i])
            if not feedback:
                before = FeedbackState()
            clients[i], decoded = step(before, number, delta, codec)
            change, accepted[i] = change + decoded, number
        total = total + change
        moved = total if feedback == "ef21" else change
        x += moved.vector().double().numpy() / 3
    return float(np.abs(x - best).max())


def test_ef21_reaches_the_optimum_of_quadratics_that_plain_top_k_misses():
    """EF14's sum is right on average; EF21's message vanishes at the optimum, so x stands still there."""
    plain, ef14, ef21 = (quadratics(feedback) for feedback in ("", "ef14", "ef21"))
    assert ef21 < 1e-3 < ef14 < plain


def test_ef21_reaches_it_with_partial_participation_too():
    assert quadratics("ef21", rounds=1500, rate=0.02, away=3) < 1e-2


def test_an_ef21_file_that_is_read_is_the_one_written():
    state, _ = step(FeedbackState(shifts=True), 1, state_of(np.arange(12)), CompeftCodec(0.25))
    state, _ = step(settle(state, 1), 4, state_of(np.arange(12)), CompeftCodec(0.25))
    again = read_state(io.BytesIO(b"".join(to_pieces(state))), SPEC)
    assert (again.shifts, again.made) == (True, 1)
    for accepted, made in ((1, 1), (4, 4)):
        assert settle(again, accepted) == settle(state, accepted)
        assert settle(again, accepted).made == made


# --- codecs ---


@pytest.mark.parametrize("settings_of", Contractive.__subclasses__(), ids=lambda c: c.__name__)
def test_the_id_alone_decodes_what_any_settings_have_sent(settings_of):
    """A client rolls an update back when the plan may have other settings already."""
    wide = StateSpec.of([TensorSpec("w", (3, 500), "vector"), TensorSpec("x", (70,), "vector")])
    whole = state_of(np.random.default_rng(3).normal(size=wide.numel), wide)
    others = {"density": 0.1, "chunk": 64, "block": 32, "bits": 2, "alpha": 1.5}
    kinds = settings_of.model_fields["kind"].annotation.__args__
    fields = {name: value for name, value in others.items() if name in settings_of.model_fields}
    for kind in kinds:
        payload, decoded = codec_for(settings_of(kind=kind, **fields)).round_trip(whole, key=KEY)
        assert codec_by_id(payload.codec).decode(payload, wide) == decoded


def test_plans_read_as_before_where_nothing_of_it_is_asked():
    """A client of an earlier version refuses keys that it does not know."""
    plain = TopkCodec(kind="topk")
    assert set(plain.model_dump()) == {"error_feedback", "kind", "density", "bits"}
    asked = TopkCodec(kind="topk", decay=0.9, keep_rounds=5)
    assert TopkCodec.model_validate_json(asked.model_dump_json()) == asked
    with pytest.raises(ValueError, match="without decay and keep_rounds"):
        TopkCodec(kind="topk", error_feedback="ef21", decay=0.9)
