"""Update transforms: every order of the four, what each guarantees, and that what they say holds."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.client.execution.update_pipeline import (
    Clip,
    Cover,
    Encode,
    EncodeCoefficients,
    ErrorFeedback,
    Guarantees,
    OutgoingUpdate,
    UpdatePipeline,
    UpdateTransform,
    pipeline_for,
)
from headwater.compression.feedback import FeedbackState, sent, settle
from headwater.compression.seed_update import decode_scalars
from headwater.compression.table import codec_for
from headwater.config.codec import CompeftCodec, DenseCodec
from headwater.config.training import BackpropTraining
from headwater.errors import ConfigError, TrainingError, UpdateRejected
from headwater.merging.coverage import covered
from headwater.privacy.clip import clip_l2
from headwater.privacy.sensitivity import ROUNDING, Bounded, Unbounded
from headwater.protocol.messages import ClientPlan
from headwater.seeds.coefficients import SeedCoefficients
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from tests.laws.aggregator_laws import SEEDS, SPEC, bits, state_of

KEY = Key.root(7)
BOUND = 0.5
SPARSE, BF16 = CompeftCodec(kind="compeft", density=0.3), DenseCodec(kind="dense", dtype="bf16")
LONGER = CompeftCodec(kind="compeft", density=0.3, alpha=4.0)
PART = covered(SPEC, ("q.lora_B",), None)
ALL = Guarantees(Bounded(BOUND * ROUNDING), covered=True, encoded=True)


def residual():
    return state_of(SPEC, np.linspace(-3, 4, SPEC.numel))


def steps(codec=BF16):
    return {
        "feedback": ErrorFeedback(FeedbackState(residual())),
        "cover": Cover(PART),
        "clip": Clip(BOUND),
        "encode": Encode(codec, KEY),
    }


SOUND = {("feedback", "cover", "clip", "encode"), ("feedback", "clip", "cover", "encode")}


@pytest.mark.parametrize("order", list(permutations(["feedback", "cover", "clip", "encode"])), ids=" > ".join)
def test_every_order_is_sound_or_refused_when_it_is_made(order):
    if order in SOUND:
        assert UpdatePipeline([steps()[name] for name in order], ALL).guarantees == ALL
        return
    with pytest.raises(ConfigError, match="update pipeline"):
        UpdatePipeline([steps()[name] for name in order], ALL)


@pytest.mark.parametrize(
    "order", [o for o in permutations(["feedback", "cover", "clip"]) if o[0] != "feedback"]
)
def test_a_refused_order_would_have_broken_its_promise(order):
    """The orders that end in encoding and are refused: what leaves is too long, or has values outside."""
    update = OutgoingUpdate(state_of(SPEC, np.linspace(1, 2, SPEC.numel)))
    for name in (*order, "encode"):
        update = steps(DenseCodec())[name].apply(update)
    outside = update.values.vector()[~PART]
    assert update.values.norm() > BOUND * ROUNDING or bool((outside != 0).any())


class Noise(UpdateTransform):
    """What asks for a bound: noise scaled by it, as the next transform will."""

    def guarantees(self, before):
        if not isinstance(before.sensitivity, Bounded) or before.encoded:
            raise ConfigError("noise", expected="a bounded update before it is encoded", got=str(before))
        return before

    def apply(self, update):
        return update


@pytest.mark.parametrize("place", range(5))
def test_noise_finds_its_bound_between_clip_and_encode_only(place):
    order = list(steps().values())
    order.insert(place, Noise())
    if place == 3:
        assert UpdatePipeline(order, ALL).guarantees == ALL
        return
    with pytest.raises(ConfigError, match="noise"):
        UpdatePipeline(order, ALL)


def test_each_transform_says_what_it_keeps_of_a_bound():
    before = Guarantees(Bounded(2.0), covered=True)
    made = steps()
    assert made["feedback"].guarantees(before) == Guarantees()
    assert made["cover"].guarantees(replace(before, covered=False)) == before
    assert made["clip"].guarantees(Guarantees()) == Guarantees(Bounded(BOUND))
    assert made["encode"].guarantees(before) == Guarantees(Bounded(2.0 * ROUNDING), True, True)
    assert Encode(LONGER, KEY).guarantees(before) == Guarantees(Unbounded(), True, True)
    assert EncodeCoefficients(SEEDS, "client a").guarantees(before) == Guarantees(encoded=True)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=SPEC.numel, max_size=SPEC.numel),
    st.sampled_from([SPARSE, BF16, DenseCodec()]),
    st.booleans(),
)
def test_what_is_guaranteed_holds_of_what_arrives(values, codec, fed_back):
    feedback = FeedbackState(residual()) if fed_back else None
    plan = ClientPlan(BackpropTraining(kind="backprop"), codec, clip_l2=BOUND, tensors=("q.lora_B",))
    pipeline = pipeline_for(plan, SPEC, feedback, key=KEY, who="client a")
    update = pipeline.apply(OutgoingUpdate.of(state_of(SPEC, values), SPEC))
    arrives = codec_for(codec).decode(update.payload, SPEC)
    assert arrives.norm() <= pipeline.guarantees.sensitivity.l2
    assert not bool((arrives.vector()[~PART] != 0).any())
    if fed_back:
        assert bits(update.values) == bits(arrives)
        assert bits(update.held) == bits(state_of(SPEC, values) + residual())


def test_what_does_not_arrive_is_the_next_residual():
    """The clipped, the uncovered and the rounded part together, and the next update has them again."""
    plan = ClientPlan(BackpropTraining(kind="backprop"), SPARSE, clip_l2=BOUND, tensors=("q.lora_B",))
    learned = state_of(SPEC, np.linspace(-1, 2, SPEC.numel))
    first = pipeline_for(plan, SPEC, FeedbackState(), key=KEY, who="a").apply(
        OutgoingUpdate.of(learned, SPEC)
    )
    kept = settle(sent(FeedbackState(), 1, first.held, first.values, b"sent"), accepted_round=1)
    assert (kept.residual + first.values - learned).max_abs() < 1e-6
    again = pipeline_for(plan, SPEC, kept, key=KEY, who="a").apply(
        OutgoingUpdate.of(AdapterState.zeros(SPEC), SPEC)
    )
    assert bits(again.held) == bits(kept.residual)


def test_noise_shrinks_with_the_update():
    learned = state_of(SPEC, np.full(SPEC.numel, 2.0))
    clipped, norm = clip_l2(learned, BOUND)
    update = Clip(BOUND).apply(OutgoingUpdate.of(learned, SPEC, noise=3.0))
    assert bits(update.values) == bits(clipped)
    assert update.noise == pytest.approx(3.0 * (BOUND / norm) ** 2)
    assert Cover(PART).apply(update).noise == update.noise


def test_coefficients_are_sent_exactly_and_leave_a_residual_alone():
    learned = SeedCoefficients.of(SEEDS, [(0, 3), (2, -5)])
    plan = ClientPlan(BackpropTraining(kind="backprop"), SPARSE, seeds=SEEDS)
    for feedback in (None, FeedbackState(residual())):
        pipeline = pipeline_for(plan, SPEC, feedback, key=KEY, who="client a")
        update = pipeline.apply(OutgoingUpdate.of(learned, SPEC))
        assert bits(decode_scalars(update.payload, SEEDS).sums) == bits(learned.sums)
        assert update.values.max_abs() == 0
        assert update.held is None if feedback is None else bits(update.held) == bits(residual())


def test_a_bound_of_coefficients_is_refused_not_ignored():
    plan = ClientPlan(BackpropTraining(kind="backprop"), SPARSE, seeds=SEEDS, clip_l2=1.0)
    with pytest.raises(ConfigError, match="EncodeCoefficients"):
        pipeline_for(plan, SPEC, None, key=KEY, who="client a")


def test_a_codec_that_may_lengthen_breaks_the_promise_of_a_bound():
    plan = ClientPlan(BackpropTraining(kind="backprop"), LONGER, clip_l2=1.0)
    with pytest.raises(ConfigError, match="Unbounded"):
        pipeline_for(plan, SPEC, None, key=KEY, who="client a")


def test_values_that_are_not_finite_are_the_clients_failure():
    plan = ClientPlan(BackpropTraining(kind="backprop"), BF16, clip_l2=1.0)
    bad = state_of(SPEC, [float("nan")] * SPEC.numel)
    with pytest.raises(TrainingError, match="finite"):
        pipeline_for(plan, SPEC, None, key=KEY, who="a").apply(OutgoingUpdate.of(bad, SPEC))


def test_coefficients_of_other_seeds_are_refused():
    other = replace(SEEDS, entries=1)
    update = OutgoingUpdate.of(SeedCoefficients.of(SEEDS, [(0, 1), (1, 1)]), SPEC)
    with pytest.raises((UpdateRejected, TrainingError), match="client a"):
        EncodeCoefficients(other, "client a").apply(update)
    assert torch.equal(update.values.vector(), torch.zeros(SPEC.numel))
