"""A sweep file becomes the federations that ``--set`` makes; what is wrong is said of all points at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from headwater.config import load_federation
from headwater.errors import ConfigError
from headwater.simulation.sweeps.plan import load_sweep, short_names
from tests.support.federation_text import federation_text
from tests.support.runs import bare_federation
from tests.support.sweeps import sweep_file

ROOT = Path(__file__).parents[3]
CODECS = [
    {"name": "all", "kind": "dense"},
    {"name": "few", "kind": "compeft", "density": 0.1},
]


@pytest.fixture
def federation(tmp_path):
    return bare_federation(tmp_path)


def names(sweep):
    return [p.name for p in sweep.points]


@given(data=st.data())
def test_a_point_is_the_federation_that_set_makes(tmp_path_factory, data):
    federation = bare_federation(tmp_path_factory.mktemp("fed"))
    values = {
        "federation.seed": st.integers(0, 2**40),
        "federation.rounds": st.integers(1, 100),
        "training.scale": st.floats(0.1, 2.0).map(lambda x: round(x, 3)),
        "codec.up.density": st.sampled_from([0.1, 0.25, 0.5]),
        "cohort.clients_per_round": st.integers(1, 3),
    }
    axes = data.draw(
        st.dictionaries(st.sampled_from(sorted(values)), st.none(), min_size=1, max_size=3).flatmap(
            lambda keys: st.fixed_dictionaries(
                {k: st.lists(values[k], min_size=1, max_size=3, unique=True) for k in keys}
            )
        )
    )
    sweep = load_sweep(sweep_file(federation, axes))
    found = {
        tuple(p.labels.items()): (p.loaded.sha256(), p.loaded.settings.federation.seed) for p in sweep.points
    }
    combinations = [()]
    for key, levels in axes.items():
        combinations = [(*c, (key, str(level))) for c in combinations for level in levels]
    assert list(found) == combinations
    for labels, settings in found.items():
        alone = load_federation(federation, [f"{key}={value}" for key, value in labels])
        assert settings == (alone.sha256(), alone.settings.federation.seed)


def test_tables_replace_tables_and_are_called_by_their_names(federation):
    sweep = load_sweep(sweep_file(federation, {"codec.up": CODECS, "federation.seed": [1, 2]}))
    assert names(sweep) == [
        "up = all, seed = 1", "up = all, seed = 2", "up = few, seed = 1", "up = few, seed = 2",
    ]  # fmt: skip
    kinds = [p.loaded.settings.codec.up.kind for p in sweep.points]
    assert kinds == ["dense", "dense", "compeft", "compeft"]
    assert sweep.points[2].loaded.settings.codec.up.density == 0.1


def test_keys_with_dots_are_the_same_quoted_or_not(federation):
    quoted = sweep_file(federation, {"federation.seed": [1, 2], "codec.up.density": [0.1]})
    bare = federation.with_name("bare.toml")
    bare.write_text(
        'federation = "federation.toml"\n[axes]\nfederation.seed = [1, 2]\ncodec.up.density = [0.1]\n'
    )
    assert [p.id for p in load_sweep(quoted).points] == [p.id for p in load_sweep(bare).points]


def test_zipped_axes_go_together_and_exclude_leaves_points_out(federation):
    axes = {
        "training.scale": [0.5, 1.0],
        "federation.rounds": [4, 2],
        "codec.up": CODECS,
        "federation.seed": [1, 2, 3],
    }
    zipped = [["training.scale", "federation.rounds"]]
    exclude = [
        {"codec.up": "few", "training.scale": 0.5},
        {"federation": {"seed": [2, 3]}, "codec.up": "all"},
    ]
    sweep = load_sweep(sweep_file(federation, axes, zip=zipped, exclude=exclude))
    found = [tuple(p.labels.values()) for p in sweep.points]
    whole = [(s, r, c, n) for s, r in (("0.5", "4"), ("1.0", "2")) for c in ("all", "few") for n in "123"]
    left = [x for x in whole if x[2:] not in {("all", "2"), ("all", "3")} and (x[0], x[2]) != ("0.5", "few")]
    assert sorted(found) == sorted(left)
    assert sweep.factors[0].axes == ("training.scale", "federation.rounds")


def test_overrides_hold_for_every_point(federation):
    sweep = load_sweep(sweep_file(federation, {"federation.seed": [1, 2]}), ["federation.rounds=9"])
    assert {p.loaded.settings.federation.rounds for p in sweep.points} == {9}


@pytest.mark.parametrize(
    ("axes", "more", "said"),
    [
        ({}, {}, "axes"),
        ({"federation.seed": 1}, {}, r"axes\.federation\.seed: expected a list of values, got 1"),
        ({"federation.seed": []}, {}, "a list of values"),
        ({"federation.seed": [1, 1]}, {}, "expected values that differ, got 1 twice"),
        ({"codec.up": [{"kind": "compeft"}, {"kind": "compeft", "density": 0.5}]}, {}, "two called compeft"),
        ({"codec.up": [{"density": 0.5}]}, {}, "a name or a kind in every table"),
        (
            {"federation.seed": [1]},
            {"zip": [["seed"]]},
            "expected names of axes: federation.seed, got 'seed'",
        ),
        (
            {"federation.seed": [1], "training.scale": [0.5, 1.0]},
            {"zip": [["federation.seed", "training.scale"]]},
            "as many values, got 1 of federation.seed, 2 of training.scale",
        ),
        ({"federation.seed": [1]}, {"exclude": [{"seed": 1}]}, "exclude 1: expected names of axes"),
        (
            {"federation.seed": [1]},
            {"exclude": [{"federation.seed": 2}]},
            "values of federation.seed: 1, got 2",
        ),
        ({"federation.seed": [1]}, {"exclude": [{"federation.seed": 1}]}, "a point that is not excluded"),
        ({"federation.seed": [1]}, {"metric": {"name": "accuracy"}}, "metric.name: expected one of loss"),
        ({"federation.seed": [1]}, {"axis": 1}, "axis: expected no such key"),
        ({"training.scale": [float("nan")]}, {}, "training.scale: expected a finite number, got nan"),
        (
            {"training.scale": [0.5], "training": [{"kind": "noop", "scale": 0.2}]},
            {},
            r"axes\.training\.scale: expected it after training, which sets the whole table",
        ),
        ({"federation.name.x": [1]}, {}, "expected 'name' to be a table, got 'bare'"),
        (
            {"federation.seed": list(range(400)), "federation.rounds": list(range(1, 400))},
            {},
            "100,000 points",
        ),
    ],
)
def test_a_file_that_is_wrong_is_told_by_its_key(federation, axes, more, said):
    with pytest.raises(ConfigError, match=said):
        load_sweep(sweep_file(federation, axes, **more))


def test_every_broken_point_is_told_at_once_and_each_thing_once(federation):
    axes = {"codec.up.density": [0.1, 2.0], "federation.rounds": [1, 0], "federation.seed": [1, 2, 3]}
    with pytest.raises(ConfigError) as raised:
        load_sweep(sweep_file(federation, axes))
    said = str(raised.value)
    assert "2 problems" in said
    assert "6 of 12 points with codec.up.density" not in said
    assert said.count("6 of 12 points with federation.rounds = 0: ") == 1
    assert said.count("3 of 12 points with codec.up.density = 2.0, federation.rounds = 1: ") == 1
    assert said.count("federation.toml: federation.rounds: ") == 1
    assert raised.value.exit_code == 2


def test_one_broken_thing_is_told_as_simulate_tells_it(federation):
    with pytest.raises(ConfigError) as alone:
        load_federation(federation, ["codec.up.density=2.0"])
    with pytest.raises(ConfigError) as swept:
        load_sweep(sweep_file(federation, {"codec.up.density": [2.0, 0.5], "federation.seed": [1, 2]}))
    assert str(swept.value).endswith(f"2 of 4 points with codec.up.density = 2.0: {alone.value}")


def test_two_points_with_the_same_settings_are_refused(federation):
    axes = {"codec.up": [{"name": "a", "kind": "dense"}, {"name": "b", "kind": "dense"}]}
    with pytest.raises(ConfigError, match="the same settings at up = a and at up = b"):
        load_sweep(sweep_file(federation, axes))


@pytest.mark.parametrize("text", ["codec.up.density=0.5", "codec.up={ kind = 'dense' }", "codec={}"])
def test_an_override_of_an_axis_is_refused(federation, text):
    axes = {"codec.up.density": [0.1]} if text != "codec.up.density=0.5" else {"codec.up": CODECS}
    with pytest.raises(ConfigError, match="expected a key that is no axis"):
        load_sweep(sweep_file(federation, axes), [text])


KEYS = st.lists(
    st.lists(st.sampled_from(["up", "kind", "seed", "data", "x"]), min_size=1, max_size=4).map(".".join),
    unique=True, min_size=1,
)  # fmt: skip


@given(keys=KEYS)
def test_short_names_are_ends_that_tell_keys_apart(keys):
    found = short_names(keys)
    assert len(set(found.values())) == len(keys)
    assert all(key == name or key.endswith(f".{name}") for key, name in found.items())


def test_a_file_that_is_no_toml_or_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match="expected a file, got nothing there"):
        load_sweep(tmp_path / "sweep.toml")
    (tmp_path / "sweep.toml").write_text(tomli_w.dumps({"federation": "no.toml", "axes": {"a": [1]}}))
    with pytest.raises(ConfigError, match=r"no\.toml: expected a file"):
        load_sweep(tmp_path / "sweep.toml")


def test_the_pages_file_is_right(tmp_path):
    page = (ROOT / "docs" / "how-to" / "run-a-sweep.md").read_text(encoding="utf-8")
    (text,) = re.findall(r'```toml title="sweep\.toml"\n(.*?)```', page, re.DOTALL)
    (tmp_path / "sweep.toml").write_text(text)
    (tmp_path / "federation.toml").write_text(federation_text(training="backprop"))
    sweep = load_sweep(tmp_path / "sweep.toml")
    assert len(sweep.points) == 2 * 3 - 1
    assert {(p.labels["adapter"], p.loaded.settings.adapter.rank) for p in sweep.points} == {
        ("narrow", 2), ("wide", 32),
    }  # fmt: skip


def test_the_examples_file_is_right():
    sweep = load_sweep(ROOT / "examples" / "peft-kinds-non-iid" / "sweep.toml")
    assert [len(factor.levels) for factor in sweep.factors] == [4, 3, 2, 3]
    assert sweep.metric == "accuracy"
