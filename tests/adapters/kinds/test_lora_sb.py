"""LoRA-SB: what stands still, what is trained, and that the mean of cores is the mean of products."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from headwater.adapters.export import export
from headwater.adapters.kinds.lora_sb import leading
from headwater.errors import ModelError
from headwater.state import AdapterState
from tests.laws.adapter_kind_laws import elsewhere
from tests.support import federations


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    loaded = federations.federation(folder, "encoder", "bert", federations.adapter("lora-sb", "bert"))
    return federations.adapted(loaded)


def cores(model):
    return [t for t in model.spec if t.role == "lora_core"]


def change(model, state, name):
    """B·R·A of one layer, float64, from what stands still and the state."""
    path = name.removesuffix(".lora_core")
    b, a = (model.frozen[f"{path}.{side}.weight"].double() for side in ("lora_B", "lora_A"))
    return b @ state[name].double() @ a


def test_the_factors_are_the_first_singular_vectors_of_the_base_and_stand_still(model):
    modules = dict(model.base.model.named_modules())
    for spec in cores(model):
        path = spec.name.removesuffix(".lora_core")
        weight = modules[path.removeprefix("base_model.model.")].get_base_layer().weight.detach().double()
        b, a = (model.frozen[f"{path}.{side}.weight"].double() for side in ("lora_B", "lora_A"))
        u, s, vt = torch.linalg.svd(weight)
        assert spec.shape == (4, 4)
        assert (b @ b.T - u[:, :4] @ u[:, :4].T).abs().max() < 1e-2
        assert (a.T @ a - vt[:4].T @ vt[:4]).abs().max() < 1e-2
        assert torch.equal(a * 4096, (a * 4096).round())
        assert (b.T @ weight @ a.T - torch.diag(s[:4])).abs().max() < 1e-2 * s[0]
    assert {t.role for t in model.frozen.spec} == {"sb_a", "sb_b"}


def test_the_mean_of_cores_is_the_mean_of_products_exactly(model):
    rng = torch.Generator().manual_seed(1)
    states = []
    for _ in range(3):
        values = torch.randint(-64, 65, (model.spec.numel,), generator=rng) / 64
        states.append(AdapterState.from_vector(model.spec, values))
    mean = AdapterState.from_vector(
        model.spec, (torch.stack([s.vector().double() for s in states]).mean(0)).float()
    )
    for spec in cores(model):
        products = torch.stack([change(model, state, spec.name) for state in states]).mean(0)
        assert (change(model, mean, spec.name) - products).abs().max() < 1e-7


def test_the_export_is_plain_lora_of_the_same_change(model, tmp_path):
    state = elsewhere(model)
    export(model, state, tmp_path / "out", card={})
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in saved)
    for spec in cores(model):
        path = spec.name.removesuffix(".lora_core")
        product = saved[f"{path}.lora_B.weight"].double() @ saved[f"{path}.lora_A.weight"].double()
        torch.testing.assert_close(product, change(model, state, spec.name), rtol=0, atol=1e-6)


def test_the_leading_directions_of_a_large_weight_are_nearly_those_of_its_decomposition():
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(700, 30)) @ np.diag(2.0 ** -np.arange(30)) @ rng.normal(size=(30, 400))
    left, right = leading(weight, 6)
    _, s, vt = np.linalg.svd(weight)
    assert np.abs(left.T @ weight @ right.T - np.diag(s[:6])).max() < 5e-3 * s[0]
    assert np.abs(left.T @ left - np.eye(6)).max() < 5e-3
    assert np.square(vt[:6] @ right.T).sum() > 6 * 0.99
    again = leading(np.ascontiguousarray(weight.T).T, 6)
    assert np.array_equal(left, again[0])
    assert np.array_equal(right, again[1])


def test_a_rank_above_a_side_and_layers_that_are_not_linear_are_refused(tmp_path):
    for changes, message in (
        ({"rank": 999}, "a rank of at most"),
        ({"target_modules": ("word_embeddings",)}, "linear"),
    ):
        table = federations.adapter("lora-sb", "bert", **changes)
        with pytest.raises(ModelError, match=message):
            federations.adapted(federations.federation(tmp_path, "encoder", "bert", table))
