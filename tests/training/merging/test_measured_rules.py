"""Rules ``fisher`` and ``regmean`` against their formulas; by their own objectives they beat the mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headwater.adapters.predict import Predictor
from headwater.errors import ModelError
from headwater.merging.offline.low_rank import Basis
from headwater.merging.offline.rules.fisher import Fisher
from headwater.merging.offline.rules.regmean import RegMean, RegMeanPlusPlus, blocks_of
from headwater.seeds.keys import Key
from headwater.tasks.batches import collate
from headwater.training.fisher import fisher_by_loop
from headwater.training.merging.fisher import CoreModel, drawn_rows, measure_fisher
from headwater.training.merging.regmean import measure_regmean
from tests.laws.offline_rule_laws import require_close
from tests.training.merging import cases


def fisher(network, rows, **options):
    return measure_fisher(network, Fisher(), rows, progress=cases.quiet, **{"seed": 0, **options})


def regmean(network, rows, *, rule=None, whole=True):
    return measure_regmean(network, rule or RegMean(), rows, whole=whole, seed=0, progress=cases.quiet)


def test_fisher_is_the_mean_weighted_by_what_each_value_decides(pair, rows):
    adapters, found = pair.adapters, fisher(pair, rows)
    bases = {m: Basis.of_changes(adapters, m) for m in adapters.modules}
    values, fishers = [], []
    for index, folder in enumerate(adapters.folders):
        own = {m: bases[m].core(*folder.factors(m)) for m in adapters.modules}
        own |= {name: adapters.value(index, name) for name in adapters.plain}
        key = Key.root(0).child("merge", "fisher", folder.digest)
        model = CoreModel(pair, bases, own)
        torch.testing.assert_close(
            model.forward(collate(rows[0], pair.pad)).logits,
            pair.forward(pair.own(index), collate(rows[0], pair.pad)).logits,
            atol=1e-5,
            rtol=1e-5,
        )
        state = fisher_by_loop(model, rows[index], pad=pair.pad, key=key)
        mean = np.concatenate([v.numpy().reshape(-1) for v in state.values()]).astype(float).mean()
        fishers.append({name: v.double().numpy() / mean + 1e-8 for name, v in state.items()})
        values.append(own)
    objective = dict.fromkeys(("found", "mean"), 0.0)
    for name in values[0]:
        f, v = (np.stack([one[name] for one in all_]) for all_ in (fishers, values))
        merged = found.changes[name][1] if name in bases else found.values[name]
        np.testing.assert_allclose(merged, (f * v).sum(0) / f.sum(0), rtol=1e-4, atol=1e-7, err_msg=name)
        for which, point in (("found", merged), ("mean", v.mean(0))):
            objective[which] += float((f * (point - v) ** 2).sum())
    assert objective["found"] < 0.9 * objective["mean"]


def test_fisher_draws_by_the_seed_and_by_nothing_else(pair, rows):
    one, again, other = (fisher(pair, rows, seed=seed) for seed in (1, 1, 2))
    name = next(iter(one.changes))
    assert one.changes[name][1].tobytes() == again.changes[name][1].tobytes()
    assert one.changes[name][1].tobytes() != other.changes[name][1].tobytes()


def test_rows_beyond_what_a_rule_looks_at_are_drawn(rows):
    key = Key.root(3)
    few = drawn_rows(rows[0], 4, key)
    assert len(few) == 4
    assert drawn_rows(rows[0], 4, key) == few
    assert drawn_rows(rows[0], 99, key) == rows[0]


def gram_oracle(place, network, rows):
    """Of each adapter, as PEFT loads it, E x·xᵀ of each layer's inputs, row by row, so without padding."""
    found = []
    for folder, examples in zip(network.adapters.folders, rows, strict=True):
        predictor = Predictor.open(folder.path, base=str(place / "bert"))
        seen = {module: [] for module in network.adapters.modules}
        for module, inputs in seen.items():
            layer = predictor.network.peft.get_submodule(module)
            layer.register_forward_pre_hook(lambda _, given, kept=inputs: kept.append(given[0][0].double()))
        for example in examples:
            with torch.no_grad():
                predictor.forward(collate([example], 0))
        tokens = {module: torch.cat(inputs).numpy() for module, inputs in seen.items()}
        found.append({module: x.T @ x / len(x) for module, x in tokens.items()})
    return found


@pytest.fixture(scope="module")
def grams(place, pair, rows):
    return gram_oracle(place, pair, rows)


def test_regmean_solves_the_normal_equations_of_every_layer(pair, rows, grams):
    rule = RegMean(off_diagonal=0.7)
    got = cases.changes(pair, rule, regmean(pair, rows, rule=rule))
    for module in pair.adapters.modules:
        top = bottom = 0.0
        for index in range(2):
            gram = grams[index][module]
            part = 0.7 * gram + 0.3 * np.diag(np.diag(gram)) + 1e-6 * np.diag(gram).mean() * np.eye(len(gram))
            top, bottom = top + cases.own(pair, index)[module] @ part, bottom + part
        np.testing.assert_allclose(got[module], top @ np.linalg.inv(bottom), rtol=0, atol=1e-4)


@pytest.mark.parametrize("whole", [True, False])
def test_regmean_comes_closer_to_the_adapters_outputs_than_the_mean(pair, rows, grams, whole):
    rule = RegMean(off_diagonal=1)
    recipe = {} if whole else {"space": "core"}
    got = cases.changes(pair, rule, regmean(pair, rows, rule=rule, whole=whole), **recipe)
    for module in pair.adapters.modules:
        errors = dict.fromkeys(("found", "mean"), 0.0)
        for index in range(2):
            gram = grams[index][module]
            for which, change in (("found", got[module]), ("mean", cases.mean(pair)[module])):
                off = change - cases.own(pair, index)[module]
                errors[which] += float(np.trace(off @ gram @ off.T))
        assert errors["found"] < (0.95 if whole else 1.0) * errors["mean"], module


def test_of_adapters_that_share_a_the_small_form_is_the_formula_in_their_rank(place, twins, rows):
    """B = (Σ B_i·H_i)·(Σ H_i)⁻¹ with H_i = A·G_i·Aᵀ; here A is shared since the adapters are twins."""
    rule, own = RegMean(off_diagonal=1), gram_oracle(place, twins, rows)
    got = cases.changes(twins, rule, regmean(twins, rows, rule=rule, whole=False), space="core")
    for module in twins.adapters.modules:
        top = bottom = 0.0
        for index, folder in enumerate(twins.adapters.folders):
            b, a = folder.factors(module)
            h = a @ own[index][module] @ a.T
            top, bottom = top + b @ h, bottom + h
        np.testing.assert_allclose(got[module], top @ np.linalg.inv(bottom) @ a, rtol=0, atol=1e-4)


def test_the_second_layer_of_regmean_pp_is_given_what_the_merged_first_one_makes(place, pair, rows):
    """The first layer is RegMean's; the second's Grams are those behind the merged first one."""
    rule = RegMeanPlusPlus(off_diagonal=0.7)
    got = cases.changes(pair, rule, regmean(pair, rows, rule=rule))
    plain = cases.changes(pair, rule, regmean(pair, rows, rule=RegMean(off_diagonal=0.7)))
    first, second = blocks_of(pair.adapters.modules)
    for module in first:
        np.testing.assert_allclose(got[module], plain[module], rtol=0, atol=1e-6)
    module = second[0]
    top = bottom = 0.0
    for index in range(2):
        mixed = pair.own(index)
        for below in first:
            u, s, vt = np.linalg.svd(got[below])
            mixed |= pair.lora(below, pair.tensor(u * s), pair.tensor(vt))
        seen = []
        layer = pair.predictor.network.peft.get_submodule(module)
        handle = layer.register_forward_pre_hook(
            lambda _, given, kept=seen: kept.append(given[0][0].double())
        )
        for example in rows[index]:
            with torch.no_grad():
                pair.forward(mixed, collate([example], pair.pad))
        handle.remove()
        x = torch.cat(seen).numpy()
        h = x.T @ x / len(x)
        h = 0.7 * h + 0.3 * np.diag(np.diag(h)) + 1e-6 * np.diag(h).mean() * np.eye(len(h))
        top, bottom = top + cases.own(pair, index)[module] @ h, bottom + h
    np.testing.assert_allclose(got[module], top @ np.linalg.inv(bottom), rtol=0, atol=1e-4)
    assert np.abs(got[module] - plain[module]).max() > 1e-2


def test_layers_are_told_by_the_first_number_in_a_name():
    names = ["m.layers.10.q", "m.layers.2.k", "head.weight", "m.layers.2.experts.0.v"]
    assert blocks_of(names) == [
        ["m.layers.2.k", "m.layers.2.experts.0.v"],
        ["m.layers.10.q"],
        ["head.weight"],
    ]


def test_identical_adapters_come_back(twins, rows):
    expected = cases.own(twins, 0)
    require_close(cases.changes(twins, Fisher(), fisher(twins, rows)), expected, 1e-5)
    require_close(cases.changes(twins, RegMean(), regmean(twins, rows)), expected, 1e-5)
    stepwise = regmean(twins, rows, rule=RegMeanPlusPlus())
    require_close(cases.changes(twins, RegMeanPlusPlus(), stepwise), expected, 1e-5)
    small = regmean(twins, rows, whole=False)
    require_close(cases.changes(twins, RegMean(), small, space="core"), expected, 1e-5)


def test_regmean_refuses_dora(tmp_path, rows):
    folders = cases.adapters(tmp_path, 2, dora=True)
    with pytest.raises(ModelError, match="DoRA"):
        regmean(cases.network(folders, tmp_path / "bert"), rows)
