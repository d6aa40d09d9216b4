"""Footprint: what a step would hold, of every method and part, without computing or changing anything."""

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


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_and_part_is_foreseen_and_nothing_changes(bert, kind):
    before = bert.read().sha256(), [p.requires_grad for _, p in bert.parameters()]
    whole = bytes_of(bert, kind)
    assert whole > 0
    for part in ({"tensors": last_layers(bert.spec, 1)}, {"rank": 1}, {"tensors": ("head.bias",), "rank": 1}):
        assert 0 < bytes_of(bert, kind, **part) <= whole
    assert (bert.read().sha256(), [p.requires_grad for _, p in bert.parameters()]) == before


def test_backprop_of_the_last_layer_keeps_no_activations_below(bert):
    assert bytes_of(bert, "backprop", tensors=last_layers(bert.spec, 1)) < 0.8 * bytes_of(bert, "backprop")


def test_what_is_kept_grows_with_batch_and_tokens(bert):
    for kind in KINDS:
        assert bytes_of(bert, kind, batch=16) > 1.5 * bytes_of(bert, kind, batch=8)
        assert bytes_of(bert, kind, tokens=64) > 1.5 * bytes_of(bert, kind, tokens=32)
    # a probe holds what an inference holds, and the adapter's values that it steps
    assert bytes_of(bert, "mezo") < inference_bytes(bert, 8, 32) + 16 * 4 * bert.spec.numel


def test_a_part_of_nothing_is_refused(bert):
    with pytest.raises(TrainingError, match="covers none"):
        bytes_of(bert, "backprop", tensors=())
