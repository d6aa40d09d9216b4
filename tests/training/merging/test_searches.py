"""Rules that search: none is worse than the mean by its own objective, and all are their seed's."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from headwater.merging.offline.rules.searched import AdaMerging, Evolve, FrankWolfe, LoraHub
from headwater.training.merging import searches
from headwater.training.merging.coefficients import Sums
from headwater.training.merging.evolve import search_evolve
from headwater.training.merging.pareto import crowding, front, fronts, knee, nsga2
from headwater.training.merging.searches import (
    _slopes,
    entropies,
    search_adamerging,
    search_frank_wolfe,
    search_lorahub,
)
from tests.laws.offline_rule_laws import require_close
from tests.training.merging import cases


def common(measured):
    """The one c of all weights."""
    first, *others = measured.coefficients.values()
    assert all(np.array_equal(first, other) for other in others)
    return first


def test_lorahub_finds_what_it_says_within_its_bounds(pair, rows):
    rule = LoraHub(evaluations=8, bound=0.8)
    found, again, other = (
        search_lorahub(pair, rule, rows[0], seed=seed, progress=cases.quiet) for seed in (1, 1, 2)
    )
    c = common(found)
    assert np.array_equal(c, common(again))
    assert not np.array_equal(c, common(other))
    assert np.abs(c).max() <= 0.8
    assert found.facts["candidates"] == 10
    assert found.facts["objective"] <= found.facts["objective_of_mean"]
    mean = np.full(2, 0.5)
    for point, said in ((c, "objective"), (mean, "objective_of_mean")):
        exact = Sums(pair).loss(point, rows[0]) + 0.05 * np.abs(point).mean()
        assert found.facts[said] == pytest.approx(exact, rel=1e-6)


def test_slopes_are_derivatives_of_the_loss(pair, rows):
    sums, at, step = Sums(pair), np.array([0.4, 0.6]), 1e-2
    got = _slopes(sums, at, rows[0]) / len(rows[0])
    for k in range(2):
        ahead, behind = at + step * np.eye(2)[k], at - step * np.eye(2)[k]
        expected = (sums.loss(ahead, rows[0]) - sums.loss(behind, rows[0])) / (2 * step)
        assert got[k] == pytest.approx(expected, abs=2e-3)


def test_frank_wolfe_gives_a_mean_that_is_no_worse(pair, rows):
    found = search_frank_wolfe(pair, FrankWolfe(iterations=3), rows[0], progress=cases.quiet)
    c = common(found)
    assert c.min() >= 0
    assert c.sum() == pytest.approx(1)
    assert found.facts["objective"] == pytest.approx(Sums(pair).loss(c, rows[0]), rel=1e-6)
    assert found.facts["objective"] <= found.facts["objective_of_mean"]


def test_of_identical_adapters_frank_wolfe_gives_the_adapter_back(twins, rows):
    rule = FrankWolfe(iterations=2)
    found = search_frank_wolfe(twins, rule, rows[0], progress=cases.quiet)
    require_close(cases.changes(twins, rule, found), cases.own(twins, 0), 1e-5)


def test_entropy_is_that_of_the_answers():
    got = entropies(torch.log(torch.tensor([[0.5, 0.25, 0.25], [1.0, 1.0, 1.0]])))
    assert got.tolist() == pytest.approx([1.5 * np.log(2), np.log(3)])


def test_adamerging_makes_answers_surer_layer_by_layer(pair, rows):
    rule = AdaMerging(steps=4, learning_rate=0.05, batch_size=5)
    found, again = (search_adamerging(pair, rule, rows[0], seed=3, progress=cases.quiet) for _ in range(2))
    assert found.facts["objective"] < found.facts["objective_of_mean"]
    table = np.stack(list(found.coefficients.values()))
    assert table.shape == (len(pair.adapters.modules), 2)
    assert len(np.unique(table)) > 2  # each layer has its own
    assert all(np.array_equal(found.coefficients[k], again.coefficients[k]) for k in found.coefficients)


@pytest.mark.parametrize("last", [2.0, float("nan")])
def test_a_search_that_finds_nothing_surer_keeps_the_mean(pair, rows, monkeypatch, last):
    measured = iter([1.0, last])
    monkeypatch.setattr(searches, "_entropy", lambda *_: next(measured))
    found = search_adamerging(pair, AdaMerging(steps=1), rows[0], seed=0, progress=cases.quiet)
    assert np.array_equal(np.stack(list(found.coefficients.values())), np.full((4, 2), 0.5))
    assert found.facts["objective"] == 1.0
    assert "this is the mean" in found.notes[0]


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_evolution_takes_the_knee_of_what_nothing_beats(pair, rows, method):
    rule = Evolve(method=method, population=4, generations=1)
    found, again = (
        search_evolve(pair, rule, rows, ["one", "<two>"], seed=5, progress=cases.quiet) for _ in range(2)
    )
    assert found.files == again.files
    record = json.loads(found.files["pareto.json"])
    losses = np.array([one["losses"] for one in record["front"]])
    assert front(losses) == list(range(len(losses)))
    assert record["taken"] == knee(losses)
    assert found.facts["candidates"] == 8
    assert "&lt;two&gt;" in found.files["pareto.svg"]
    if method == "task_arithmetic":  # the mean is the first candidate
        mean = np.array(record["mean"])
        assert any((one <= mean + 1e-6).all() for one in losses)
        told = record["front"][record["taken"]]["coefficients"]
        assert told == {
            str(f.path): c for f, c in zip(pair.adapters.folders, found.shares.tolist(), strict=True)
        }


def test_fronts_knee_and_crowding_of_points_on_paper():
    losses = np.array([[1.0, 4], [2, 2], [4, 1], [3, 3], [2, 2], [5, 5]])
    assert front(losses) == [0, 1, 2]
    assert [sorted(part.tolist()) for part in fronts(losses)] == [[0, 1, 2, 4], [3], [5]]
    assert knee(losses[:3]) == 1
    assert crowding(losses[:3]).tolist() == [np.inf, 2.0, np.inf]


def test_the_search_approaches_a_front_that_is_known():
    """f = (Σx², Σ(x − 1)²): the front is the diagonal of the cube."""

    def evaluate(x):
        return [float(x @ x), float((x - 1) @ (x - 1))]

    def run(seed):
        draw = np.random.default_rng(seed)
        return nsga2(evaluate, [np.array([0.9, 0.1, 0.5])], population=16, generations=25, generator=draw)

    points, losses = run(0)
    assert np.array_equal(points, run(0)[0])
    assert points.min() >= 0
    assert points.max() <= 1
    assert np.ptp(points[front(losses)], axis=1).mean() < 0.5 * np.ptp(points[:16], axis=1).mean()
