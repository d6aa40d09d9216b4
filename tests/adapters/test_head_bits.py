"""adapter.head_bits: a head's values are in units of 2^bits; the model and what is exported are not."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from headwater.adapters.export import export
from headwater.tasks.batches import collate
from tests.support import federations


def made(tmp_path, bits):
    table = federations.adapter("lora", "bert", head_bits=bits)
    return federations.adapted(federations.federation(tmp_path, "encoder", "bert", table))


def scaled(model, vector):
    """``vector`` of a model without units, in this model's."""
    units = [t.scaling if t.role == "head" else 1.0 for t in model.spec]
    parts = torch.split(vector, [t.numel for t in model.spec])
    return torch.cat([part / unit for part, unit in zip(parts, units, strict=True)])


def test_the_same_model_in_other_units(tmp_path):
    plain, model = made(tmp_path, 0), made(tmp_path, 5)
    assert plain.spec.fingerprint() != model.spec.fingerprint()
    assert {t.scaling for t in model.spec if t.role == "head"} == {32.0}
    assert torch.equal(scaled(model, plain.initial_state().vector()), model.initial_state().vector())
    generator = torch.Generator().manual_seed(1)
    vector = torch.randn(plain.spec.numel, generator=generator)
    plain.write(vector)
    model.write(scaled(model, vector))
    batch = collate(federations.examples(5, language_model=False), 0)
    with torch.no_grad():
        assert torch.equal(plain.losses(batch)[0], model.losses(batch)[0])
    assert torch.equal(model.read().vector(), scaled(model, vector))
    model.load(model.read())
    assert torch.equal(model.read().vector(), scaled(model, vector))
    direction = torch.randn(plain.spec.numel, generator=generator)
    _, slope = plain.slope(batch, direction)
    assert model.slope(batch, scaled(model, direction))[1] == pytest.approx(slope, rel=1e-5)


def test_what_is_exported_has_no_units(tmp_path):
    plain, model = made(tmp_path, 0), made(tmp_path, 5)
    vector = torch.randn(plain.spec.numel, generator=torch.Generator().manual_seed(2))
    plain.write(vector)
    model.write(scaled(model, vector))
    for name, one in (("plain", plain), ("model", model)):
        export(one, one.read(), tmp_path / name, card={})
    for file in ("adapter_model.safetensors", "head.safetensors"):
        left, right = (load_file(tmp_path / name / file) for name in ("plain", "model"))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)
