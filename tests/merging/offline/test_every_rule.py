"""Every rule of the table on the command line, with the settings that it comes with."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from headwater.cli.main import main
from headwater.errors import ConfigError
from headwater.merging.offline.adapters import Adapters
from headwater.merging.offline.merge import Merge
from headwater.merging.offline.recipe import Recipe
from headwater.merging.offline.rule import DataRule, LinearRule, ValueRule
from headwater.merging.offline.rules.table import RULES
from tests.laws.offline_rule_laws import Bench, require_close

WITHOUT_ROWS = [name for name, rule in RULES.items() if not issubclass(rule, DataRule)]
BY_VALUE = [name for name, rule in RULES.items() if issubclass(rule, ValueRule)]
LINEAR = [name for name, rule in RULES.items() if issubclass(rule, LinearRule)]


def folders(on: Bench, name: str) -> list[Path]:
    return on.random(3, RULES[name].most or 5)


@pytest.mark.parametrize("name", WITHOUT_ROWS)
def test_the_command_writes_an_adapter_whatever_the_order(name: str, tmp_path: Path) -> None:
    made = folders(Bench(tmp_path), name)
    for out, order in (("one", made), ("two", made[::-1])):
        assert main(["merge", *map(str, order), "-o", str(tmp_path / out), "--rule", name]) == 0
    one, two = (tmp_path / out / "adapter_model.safetensors" for out in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    tensors = load_file(one)
    assert all(np.isfinite(values).all() for values in tensors.values())
    assert any(values.any() for values in tensors.values())


@pytest.mark.parametrize("name", LINEAR)
def test_a_rule_that_adds_gives_the_same_in_every_space(name: str, tmp_path: Path) -> None:
    on = Bench(tmp_path)
    made, rule = folders(on, name), RULES[name]()
    product = on.merge(rule, made)
    require_close(on.merge(rule, made, space="core"), product)
    require_close(on.merge(rule, made, space="stack"), product)


def test_a_mean_that_is_drawn_to_the_base_is_refused_for_factors(tmp_path: Path) -> None:
    """Both factors would be drawn: their product twice."""
    on = Bench(tmp_path)
    with pytest.raises(ConfigError, match="--space factors"):
        on.merge(RULES["model_stock"](), on.random(3, 3), space="factors")


def test_the_list_of_rules_names_each_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", "--rules"]) == 0
    text = capsys.readouterr().out
    for name, rule in RULES.items():
        assert f"{name}: {rule.line}" in text
        assert rule.source in text
        for setting in rule.model_fields:
            assert f"--{setting.replace('_', '-')} " in text
    assert text.count("needs the base model and --data") == len(RULES) - len(WITHOUT_ROWS)


@pytest.mark.parametrize("name", BY_VALUE)
def test_four_times_as_many_adapters_take_no_more_memory(name: str, tmp_path: Path) -> None:
    on, rng, (rows, columns) = Bench(tmp_path), np.random.default_rng(0), (160, 120)
    made = [
        on.adapter({"m.q": (rng.normal(size=(rows, 32)), rng.normal(size=(32, columns)))}) for _ in range(24)
    ]
    peaks = []
    for count in (6, 24):
        merge = Merge(Adapters.open(made[:count], None), Recipe(RULES[name]()))
        tracemalloc.start()
        assert len(list(merge.modules())) == 1
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0]
    assert peaks[1] < 20 * rows * columns * 8
