"""Rule ``mats`` against its equations written out, with Grams and gradients of PEFT's own models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headwater.adapters.predict import Predictor
from headwater.errors import ModelError
from headwater.merging.offline.rules.mats import Mats
from headwater.merging.offline.rules.regmean import RegMean
from headwater.tasks.batches import collate
from headwater.training.merging.mats import measure_mats
from tests.laws.offline_rule_laws import require_close
from tests.training.merging import cases


def mats(network, rows, rule=None):
    return measure_mats(network, rule or Mats(), rows, seed=0, progress=cases.quiet)


def kfac_oracle(place, network, rows):
    """Of each adapter, as PEFT loads it: E x·xᵀ and E g·gᵀ of each layer, row by row, so without padding."""
    found = []
    for folder, examples in zip(network.adapters.folders, rows, strict=True):
        predictor = Predictor.open(folder.path, base=str(place / "bert"))
        for name, parameter in predictor.network.named_parameters():
            parameter.requires_grad_("lora_" in name)
        seen: dict[str, list[torch.Tensor]] = {module: [] for module in network.adapters.modules}
        steep: dict[str, list[torch.Tensor]] = {module: [] for module in network.adapters.modules}
        for module in seen:
            layer = predictor.network.peft.get_submodule(module)
            layer.register_forward_pre_hook(lambda _, x, kept=seen[module]: kept.append(x[0][0].detach()))
            layer.register_full_backward_hook(lambda _m, _i, g, kept=steep[module]: kept.append(g[0][0]))
        for example in examples:
            predictor.forward(collate([example], 0)).losses.sum().backward()
        grams = {}
        for module in seen:
            x, g = (torch.cat(parts[module]).double().numpy() for parts in (seen, steep))
            grams[module] = x.T @ x / len(x), g.T @ g / len(g)
        found.append(grams)
    return found


@pytest.fixture(scope="module")
def grams(place, pair, rows):
    return kfac_oracle(place, pair, rows)


def shrunk(gram, kept):
    diagonal = np.diag(gram)
    return kept * gram + np.diag((1 - kept) * diagonal + 1e-6 * diagonal.mean())


def test_it_solves_the_equations_of_every_layer(pair, rows, grams):
    rule = Mats(off_diagonal=0.8, iterations=2000)
    found = mats(pair, rows, rule)
    got = cases.changes(pair, rule, found)
    assert found.facts["left"] < 1e-6
    for module, (basis, _) in found.changes.items():
        left, right = basis.left, basis.right
        matrix, goal = 0.0, 0.0
        for index in range(2):
            g, d = grams[index][module]
            d = shrunk(d if left is None else left.T @ d @ left, 0.8)
            g = shrunk(g if right is None else right.T @ g @ right, 0.8)
            core = basis.core(*pair.adapters.folders[index].factors(module))
            matrix, goal = matrix + np.kron(d, g), goal + (d @ core @ g).reshape(-1)
        core = np.linalg.solve(matrix, goal).reshape(core.shape)
        whole = core if left is None else left @ core
        whole = whole if right is None else whole @ right.T
        np.testing.assert_allclose(got[module], whole, rtol=0, atol=2e-3 * np.abs(whole).max())


def test_it_comes_closer_by_the_fishers_than_the_mean(pair, rows, grams):
    got, mean = cases.changes(pair, Mats(), mats(pair, rows)), cases.mean(pair)
    errors = dict.fromkeys(("found", "mean"), 0.0)
    for module in pair.adapters.modules:
        for index in range(2):
            g, d = grams[index][module]
            for which, change in (("found", got[module]), ("mean", mean[module])):
                off = change - cases.own(pair, index)[module]
                errors[which] += float(np.trace(d @ off @ g @ off.T))
    assert errors["found"] < 0.9 * errors["mean"]


def test_with_one_outer_gram_for_all_it_is_regmean():
    rng = np.random.default_rng(0)
    cores = [rng.normal(size=(4, 5)) for _ in range(3)]
    inner = [x.T @ x for x in (rng.normal(size=(9, 5)) for _ in range(3))]
    outer = rng.normal(size=(9, 4))
    shares = np.array([0.5, 0.3, 0.2])
    got, left = Mats().matched(cores, [outer.T @ outer] * 3, inner, shares)
    weighted = [p * g for p, g in zip(shares, inner, strict=True)]
    products = sum(core @ gram for core, gram in zip(cores, weighted, strict=True))
    np.testing.assert_allclose(got, RegMean.solve(products, sum(weighted)), atol=1e-6)
    assert left < 1e-8
    still, left = Mats(iterations=1).matched(cores, [outer.T @ outer] * 3, inner, shares)
    assert left > 1e-3
    assert not np.allclose(still, got, atol=1e-3)


def test_identical_adapters_come_back_and_few_steps_are_told(twins, pair, rows):
    require_close(cases.changes(twins, Mats(), mats(twins, rows)), cases.own(twins, 0), 1e-4)
    assert any("of the equations is left" in note for note in mats(pair, rows, Mats(iterations=1)).notes)
    assert not mats(pair, rows, Mats(iterations=2000)).notes


def test_it_refuses_dora(tmp_path, rows):
    folders = cases.adapters(tmp_path, dora=True)
    with pytest.raises(ModelError, match="for rule mats"):
        mats(cases.network(folders, tmp_path / "bert"), rows)
