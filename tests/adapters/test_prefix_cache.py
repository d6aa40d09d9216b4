"""The frozen prefix: left out of every pass but the first, and no bit of a loss changes."""

from __future__ import annotations

import pytest
import torch

from headwater.adapters.model import AdaptedModel
from headwater.adapters.prefix_cache import FrozenPrefix, PrefixCache
from headwater.merging.coverage import last_layers
from headwater.seeds.keys import Key
from headwater.tasks.batches import collate
from tests.support import federations

CASES = [
    ("encoder", "bert", "lora"),
    ("encoder", "bert", "ia3"),
    ("encoder", "roberta", "lora"),
    ("causal-lm", "llama", "lora"),
    ("causal-lm", "gpt2", "lora"),
    ("sequence-classification", "llama", "lora"),
]


def upper(tmp_path, kind, base, adapter):
    """A model whose adapter sits in its last layer only, away from its initial state, and two batches."""
    table = federations.adapter(adapter, base)
    loaded = federations.federation(tmp_path, kind, base, table)
    model = federations.adapted(loaded)
    rows = federations.examples(8, language_model=model.language_model)
    batches = [collate(part, 0) for part in (rows[:4], rows[4:])]
    generator = torch.Generator().manual_seed(3)
    model.write(model.read().vector() + 0.1 * torch.randn(model.spec.numel, generator=generator))
    return model, last_layers(model.spec, 1), batches


def count(model):
    """How often each layer is passed, in a list that grows."""
    passed = []
    stack = next(m for m in model.network.modules() if isinstance(m, torch.nn.ModuleList))
    assert len(stack) == 2
    for number, layer in enumerate(stack):
        inner = next(m for m in layer.modules() if isinstance(m, torch.nn.LayerNorm | torch.nn.Linear))
        inner.register_forward_hook(lambda *_, number=number: passed.append(number))
    return passed


@pytest.mark.parametrize(("kind", "base", "adapter"), CASES)
def test_losses_are_the_same_bits_and_the_frozen_prefix_is_passed_once(tmp_path, kind, base, adapter):
    model, tensors, batches = upper(tmp_path, kind, base, adapter)
    generator = torch.Generator().manual_seed(4)
    direction = torch.randn(model.spec.numel, generator=generator)
    start = 0
    for spec in model.spec:  # what is not trained must not move
        if spec.name not in tensors:
            direction[start : start + spec.numel] = 0
        start += spec.numel
    with torch.no_grad():
        plain = [model.losses(batch)[0] for batch in batches]
        slopes = [model.slope(batch, direction) for batch in batches]
    passed = count(model)
    with model.caching_prefix(tensors), torch.inference_mode():
        for batch, losses in zip(batches, plain, strict=True):
            for _ in range(3):
                assert torch.equal(model.losses(batch)[0], losses)
    assert passed.count(1) >= 6
    assert passed.count(0) == 2
    with model.caching_prefix(tensors):
        for batch, slope in zip(batches, slopes, strict=True):  # a slope's own attention is another kernel
            assert model.slope(batch, direction) == pytest.approx(slope, rel=1e-4, abs=1e-5)
    passed.clear()
    with torch.no_grad():
        assert torch.equal(model.losses(batches[0])[0], plain[0])  # and nothing is left behind
    assert passed.count(0) == 1


def test_examples_that_come_again_are_not_passed_again_within_the_budget(tmp_path):
    model, tensors, batches = upper(tmp_path, "encoder", "bert", "lora")
    with torch.no_grad():
        plain = [model.losses(batch)[0] for batch in batches]
    passed = count(model)
    with model.caching_prefix(tensors, budget_bytes=2**20), torch.inference_mode():
        for _ in range(3):
            for batch, losses in zip(batches, plain, strict=True):
                assert torch.allclose(model.losses(batch)[0], losses, atol=1e-6)
    assert passed.count(0) == 8
    passed.clear()
    with model.caching_prefix(tensors, budget_bytes=100), torch.inference_mode():  # not one example fits
        for _ in range(3):
            for batch in batches:
                model.losses(batch)
    assert passed.count(0) == 24


@pytest.mark.parametrize(("kind", "base", "adapter"), CASES)
def test_what_is_kept_is_a_function_of_the_example(tmp_path, kind, base, adapter):
    """Neither what else is in its batch, nor what was kept before, nor a restart changes a bit."""
    model, tensors, (batch, _) = upper(tmp_path, kind, base, adapter)
    rows = federations.examples(8, language_model=model.language_model)
    mixed = collate([*rows[4:], *rows[:4]], 0)
    with torch.inference_mode():
        with model.caching_prefix(tensors, budget_bytes=2**20):
            fresh = model.losses(batch)[0]
        with model.caching_prefix(tensors, budget_bytes=2**20):
            model.losses(mixed)
            again = model.losses(batch)[0]
        with model.caching_prefix(tensors, budget_bytes=1):
            without = model.losses(batch)[0]
    assert torch.equal(fresh, again)
    assert torch.equal(fresh, without)


def lowest(tmp_path):
    """A model whose adapter has no tensor below its last layer, and two batches."""
    table = federations.adapter("lora", "bert", layers=(1,))
    model = federations.adapted(federations.federation(tmp_path, "encoder", "bert", table))
    rows = federations.examples(8, language_model=False)
    return model, [collate(part, 0) for part in (rows[:4], rows[4:])]


def test_kept_from_task_to_task_where_nothing_below_is_ever_trained(tmp_path):
    model, batches = lowest(tmp_path)
    passed = count(model)
    for _ in range(2):
        with model.caching_prefix(budget_bytes=2**20), torch.inference_mode():
            for batch in batches:
                model.losses(batch)
        model.write(model.read().vector() * 2)
    assert passed.count(0) == 8
    with model.caching_prefix(budget_bytes=2**20, purpose="evaluation"), torch.inference_mode():
        model.losses(batches[0])
    assert passed.count(0) == 12
    # kept in an inference, used by a method with gradients
    with model.caching_prefix(budget_bytes=2**20), model.training():
        model.forward(batches[0]).loss.backward()
        model.slope(batches[1], torch.ones(model.spec.numel))
    assert passed.count(0) == 12


def test_the_next_adapter_on_a_base_has_what_an_earlier_one_kept(tmp_path):
    earlier, batches = lowest(tmp_path)
    with earlier.caching_prefix(budget_bytes=2**20), torch.inference_mode():
        earlier.losses(batches[0])

    def following(model, layers):
        table = federations.adapter("lora", "bert", layers=layers, rank=3)
        loaded = federations.federation(tmp_path, "encoder", "bert", table)
        found = AdaptedModel.build(loaded, model.release(), key=Key.root(1))
        found.inherit_prefix(model)
        passed = count(found)
        with found.caching_prefix(budget_bytes=2**20), torch.inference_mode():
            losses = [found.losses(batch)[0] for batch in batches]
        fresh = federations.adapted(loaded, seed=1)
        with fresh.caching_prefix(budget_bytes=2**20), torch.inference_mode():
            assert all(torch.equal(a, fresh.losses(b)[0]) for a, b in zip(losses, batches, strict=True))
        return found, passed.count(0)

    same, passed = following(earlier, (1,))
    assert passed == 4  # the other batch's rows
    whole, passed = following(same, (0, 1))
    assert passed == 2  # a batch at a time: there is no prefix
    _, passed = following(whole, (1,))
    assert passed == 0  # still known


def test_other_weights_below_are_not_taken_for_the_same(tmp_path):
    """Between two trainings the layers below may change: then nothing is kept from one to the next."""
    model, tensors, (batch, _) = upper(tmp_path, "encoder", "bert", "lora")
    with torch.inference_mode():
        with model.caching_prefix(tensors, budget_bytes=2**20):
            before = model.losses(batch)[0]
        model.write(model.read().vector() * 2)
        with model.caching_prefix(tensors, budget_bytes=2**20):
            after = model.losses(batch)[0]
        assert torch.allclose(after, model.losses(batch)[0], atol=1e-6)
        assert not torch.allclose(after, before, atol=1e-6)


def test_what_another_task_left_makes_way_and_what_this_one_met_does_not():
    kept, row = PrefixCache(3 * 40), torch.zeros(2, 5)
    kept.begin()
    for name in (b"a", b"b", b"c", b"d"):
        kept.put(name, row)
    assert [kept.get(name) is not None for name in (b"a", b"b", b"c", b"d")] == [True, True, True, False]
    kept.begin()
    kept.get(b"a")
    for name in (b"e", b"f", b"g"):
        kept.put(name, row)
    assert [kept.get(name) is not None for name in (b"a", b"b", b"c", b"e", b"f", b"g")] == [
        True, False, False, True, True, False,
    ]  # fmt: skip
    assert kept.used_bytes == 120
    kept.begin()
    kept.put(b"long", torch.zeros(31))  # never fits: nothing goes for it
    assert kept.used_bytes == 120


@pytest.mark.parametrize("adapter", ["lora", "prompt", "prefix"])
def test_there_is_none_where_the_first_layer_or_the_input_is_trained(tmp_path, adapter):
    loaded = federations.federation(tmp_path, "encoder", "bert", federations.adapter(adapter, "bert"))
    model = federations.adapted(loaded)
    batch = collate(federations.examples(3, language_model=False), 0)
    with torch.inference_mode():
        plain = model.losses(batch)[0]
        passed = count(model)
        with model.caching_prefix():
            assert torch.equal(model.losses(batch)[0], plain)
            assert torch.equal(model.losses(batch)[0], plain)
    assert passed.count(0) == 2


@pytest.mark.parametrize("base", ["bert", "electra"])
def test_losses_follow_every_tensor_that_is_trained_with_the_last_layer(tmp_path, base):
    """ELECTRA's projection of embeddings is in no layer, and comes before them: no frozen prefix there."""
    table = {"kind": "lora", "rank": 2, "alpha": 4.0, "target_modules": ("all-linear",)}
    model = federations.adapted(federations.federation(tmp_path, "encoder", base, table))
    tensors = last_layers(model.spec, 1)
    assert any("embeddings_project" in name for name in tensors) == (base == "electra")
    batch = collate(federations.examples(4, language_model=False), 0)
    generator = torch.Generator().manual_seed(3)
    start = model.read().vector() + 0.1 * torch.randn(model.spec.numel, generator=generator)

    def losses():
        generator, at = torch.Generator().manual_seed(4), 0
        found = [model.losses(batch)[0]]
        for spec in model.spec:
            if spec.name in tensors:
                moved = start.clone()
                moved[at : at + spec.numel] += 0.1 * torch.randn(spec.numel, generator=generator)
                model.write(moved)
                found.append(model.losses(batch)[0])
            at += spec.numel
        model.write(start)
        return torch.stack(found)

    model.write(start)
    with torch.no_grad():
        plain = losses()
        for name, row in zip(tensors, plain[1:], strict=True):
            assert torch.equal(row, plain[0]) == ("pooler" in name)  # which mean pooling passes by
        with model.caching_prefix(tensors):
            assert torch.equal(losses(), plain)
    assert model.has_prefix(tensors) == (base == "bert")


def test_a_network_without_a_stack_has_none():
    assert FrozenPrefix.below(torch.nn.Linear(2, 2), ["weight"], lambda *_: True) is None
