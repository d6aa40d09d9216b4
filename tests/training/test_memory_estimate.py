"""Footprint: what a step would hold, of every method and part, without computing or changing anything."""

import functools

import pytest
from pydantic import TypeAdapter

from headwater.config.codec import DenseCodec
from headwater.config.training import Training
from headwater.errors import TrainingError
from headwater.merging.coverage import last_layers
from headwater.protocol.messages import ClientPlan
from headwater.training.memory_estimate import inference_bytes, step_bytes
from tests.support import federations

KINDS = ("backprop", "forward_gradient", "spry", "mezo", "kseed", "decomfl")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    table = federations.adapter("lora", "bert")
    return federations.adapted(federations.federation(tmp_path_factory.mktemp("b"), "encoder", "bert", table))


def bytes_of(model, kind, *, batch=8, tokens=32, **part):
    training = TypeAdapter(Training).validate_python({"kind": kind})
    return step_bytes(model, ClientPlan(training, DenseCodec(kind="dense"), **part), batch, tokens)


@pytest.fixture(scope="module")
def whole(bert):
    """Bytes of a method that trains all of the adapter, traced once for all tests."""
    return functools.cache(lambda kind: bytes_of(bert, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_and_part_is_foreseen_and_nothing_changes(bert, whole, kind):
    before = bert.read().sha256(), [p.requires_grad for _, p in bert.parameters()]
    assert whole(kind) > 0
    for part in ({"tensors": last_layers(bert.spec, 1)}, {"rank": 1}, {"tensors": ("head.bias",), "rank": 1}):
        assert 0 < bytes_of(bert, kind, **part) <= whole(kind)
    assert (bert.read().sha256(), [p.requires_grad for _, p in bert.parameters()]) == before


def test_backprop_of_the_last_layer_keeps_no_activations_below(bert, whole):
    assert bytes_of(bert, "backprop", tensors=last_layers(bert.spec, 1)) < 0.8 * whole("backprop")


def test_what_is_kept_grows_with_batch_and_tokens(bert, whole):
    for kind in KINDS:  # from 8 rows of 32 tokens
        assert bytes_of(bert, kind, batch=16) > 1.5 * whole(kind)
        assert bytes_of(bert, kind, tokens=64) > 1.5 * whole(kind)
    # a probe holds what an inference holds, and the adapter's values that it steps
    assert whole("mezo") < inference_bytes(bert, 8, 32) + 16 * 4 * bert.spec.numel


def test_a_part_of_nothing_is_refused(bert):
    with pytest.raises(TrainingError, match="covers none"):
        bytes_of(bert, "backprop", tensors=())
