"""Combinations, effects and the best one, against numpy and against laws that they must keep."""

from __future__ import annotations

import csv
import json
import math
from itertools import product
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.simulation.sweeps.files import write_tables
from headwater.simulation.sweeps.outcome import Outcome, Target
from headwater.simulation.sweeps.picture import level_name
from headwater.simulation.sweeps.plan import Factor, load_sweep
from headwater.simulation.sweeps.run import SweepResult
from headwater.simulation.sweeps.tables import Spread, tables_of
from tests.support.runs import bare_federation
from tests.support.sweeps import sweep_file

AXES = {
    "training.scale": [0.5, 0.6, 0.7],
    "data.clients": [2, 3],
    "cohort.min_clients": [1, 2],
    "federation.seed": [1, 2, 3],
}
SHAPE = tuple(len(levels) for levels in AXES.values())
VALUES = st.lists(
    st.floats(-1e3, 1e3).map(lambda x: round(x, 4)), min_size=math.prod(SHAPE), max_size=math.prod(SHAPE)
)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    federation = bare_federation(tmp_path_factory.mktemp("fed"))
    return load_sweep(sweep_file(federation, AXES, metric={"name": "loss", "target": 0.5}))


def outcome(point, value, reached=None):
    summary = {
        "rounds": 3, "seconds": 1.5, "seed": 1, "adapter_sha256": "ab" * 32,
        "bytes": {"up": 1000, "down": 2000}, "lost": {},
    }  # fmt: skip
    target = None if reached is None else Target(reached, 100 * reached)
    return Outcome(point.labels, f"p-{point.id}", value, "test", target, summary)


def outcomes(sweep, values):
    return [outcome(p, v) for p, v in zip(sweep.points, values, strict=True)]


@given(values=VALUES)
def test_a_whole_grid_is_what_numpy_makes_of_it(sweep, values):
    tables = tables_of(sweep, outcomes(sweep, values))
    grid = np.array(values).reshape(SHAPE)
    means, deviations = grid.mean(-1), grid.std(-1, ddof=1)
    assert [r.value.mean for r in tables.rows] == pytest.approx(means.ravel(), abs=1e-9)
    assert [r.value.deviation for r in tables.rows] == pytest.approx(deviations.ravel(), abs=1e-6)
    assert [tuple(r.labels.values()) for r in tables.rows] == list(
        product(*([str(x) for x in levels] for key, levels in AXES.items() if key != "federation.seed"))
    )
    for at, effects in enumerate(tables.effects.values()):
        by_level = np.moveaxis(means, at, 0).reshape(SHAPE[at], -1)
        assert [e.value.mean for e in effects] == pytest.approx(by_level.mean(1), abs=1e-9)
        assert [e.value.deviation for e in effects] == pytest.approx(by_level.std(1, ddof=1), abs=1e-6)
        apart = by_level - by_level[0]
        assert [e.difference.mean for e in effects] == pytest.approx(apart.mean(1), abs=1e-9)
        assert [e.difference.deviation for e in effects] == pytest.approx(apart.std(1, ddof=1), abs=1e-6)
    assert tables.best.value.mean == pytest.approx(means.min(), abs=1e-9)  # a loss


@given(
    parts=st.lists(st.integers(-50, 50), min_size=7, max_size=7),
    gone=st.sets(st.integers(0, math.prod(SHAPE) - 1), max_size=20),
)
def test_holes_never_bend_an_effect(sweep, parts, gone):
    """Where the metric is a sum of one part a level, an effect is the difference of two of them, whatever
    points are missing: a mean over whatever is there would mix the parts of the other axes in."""
    scale, clients, least = parts[:3], parts[3:5], parts[5:]
    values = [a + b + c for a, b, c, _ in product(scale, clients, least, range(3))]
    there = [o for i, o in enumerate(outcomes(sweep, values)) if i not in gone]
    tables = tables_of(sweep, there)
    for own, effects in zip((scale, clients, least), tables.effects.values(), strict=True):
        for part, effect in zip(own, effects, strict=True):
            if effect.difference.n:
                assert effect.difference.mean == pytest.approx(part - own[0], abs=1e-9)
                assert effect.difference.deviation in (None, pytest.approx(0.0, abs=1e-9))


def test_the_best_is_among_those_with_most_seeds(sweep):
    found = outcomes(sweep, range(math.prod(SHAPE)))
    tables = tables_of(sweep, found[2:])  # of the first combination, one lucky seed is left
    assert tables.best.value.mean == 4.0  # the second one's, 3 to 5
    assert tables.rows[0].value == Spread(1, 2.0, None)


def test_what_is_not_finite_is_no_value(sweep):
    tables = tables_of(sweep, outcomes(sweep, [math.nan] * math.prod(SHAPE)))
    assert tables.best is None
    assert all(row.value.n == 0 for row in tables.rows)
    assert Spread.of([math.nan, 1.0, math.inf]) == Spread(1, 1.0, None)


@pytest.fixture
def written(sweep, tmp_path):
    rng = np.random.default_rng(3)
    values = rng.normal(1.0, 0.2, math.prod(SHAPE))
    result = SweepResult(sweep, tmp_path)
    for number, (point, value) in enumerate(zip(sweep.points, values, strict=True)):
        result.outcomes[point.id] = outcome(point, float(value), 2 if number % 3 else None)
    write_tables(result)
    return result, values


def test_the_files_hold_the_same_numbers(written, tmp_path):
    _, values = written
    with (tmp_path / "points.csv").open() as file:
        points = list(csv.DictReader(file))
    assert [float(p["loss"]) for p in points] == pytest.approx(values)
    assert [p["rounds_to_target"] for p in points[:3]] == ["", "2", "2"]
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert [p["loss"] for p in content["done"]] == pytest.approx(values)
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["mean"]) for r in rows] == pytest.approx(values.reshape(-1, 3).mean(1))
    assert {r["reached_target"] for r in rows} == {"2"}
    assert {float(r["bytes_to_target"]) for r in rows} == {200.0}
    assert [r["mean"] for r in content["table"]] == pytest.approx([float(r["mean"]) for r in rows])
    assert content["best"]["mean"] == min(r["mean"] for r in content["table"])


def test_the_picture_is_xml_with_a_dot_for_every_combination(written, tmp_path):
    root = ElementTree.fromstring((tmp_path / "sweep.svg").read_text())
    dots = [e for e in root.iter() if e.tag.endswith("circle")]
    whiskers = [e for e in root.iter() if "whisker" in e.get("class", "")]
    assert len(dots) == len(whiskers) == math.prod(SHAPE[:3])
    texts = {e.text for e in root.iter() if e.tag.endswith("text")}
    assert {"0.5", "0.6", "0.7", "scale"} <= texts  # most levels: along x
    assert any("min_clients = 2" in (text or "") for text in texts)  # a panel


def test_a_level_of_zipped_axes_is_called_by_the_first_where_that_is_enough():
    apart = Factor(("adapter", "rate"), (("lora", "0.1"), ("ia3", "0.1")))
    alike = Factor(("adapter", "rate"), (("lora", "0.1"), ("lora", "0.2")))
    assert [level_name(apart, level) for level in apart.levels] == ["lora", "ia3"]
    assert [level_name(alike, level) for level in alike.levels] == ["lora + 0.1", "lora + 0.2"]
