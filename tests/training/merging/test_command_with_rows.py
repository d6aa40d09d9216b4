"""``headwater merge --data``: what it writes, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import json

import pytest

import headwater
from headwater.adapters.predict import Predictor
from headwater.cli.main import main
from headwater.errors import ConfigError, DataError, ModelError
from headwater.merging.offline.rule import DataRule
from headwater.merging.offline.rules.table import RULES
from headwater.training.merging.network import RowsNetwork
from tests.training.merging import cases

SMALL = {
    "fisher": ("--examples", "4"),
    "regmean": (),
    "regmean_pp": (),
    "mats": ("--iterations", "20"),
    "lorahub": ("--evaluations", "2"),
    "fw": ("--iterations", "1"),
    "adamerging": ("--steps", "1"),
    "evolve": ("--population", "4", "--generations", "1", "--data", "{other}"),
}


def command(place, rule, out, *more, names=("a0", "a1"), data="rows.jsonl"):
    folders = [str(place / name) for name in names]
    base = ("--base", str(place / "bert"))
    return main(
        ["merge", *folders, "--rule", rule, "--data", str(place / data), *base, "-o", str(out), *more]
    )


def test_every_rule_that_looks_at_rows_has_its_case():
    assert set(SMALL) == {name for name, rule in RULES.items() if issubclass(rule, DataRule)}


@pytest.mark.parametrize("rule", SMALL)
def test_a_rule_says_what_it_is(rule):
    kind = RULES[rule]
    assert kind.line
    assert kind.source
    assert kind().passes_per_row(3) >= (1, 0)
    for name, field in kind.model_fields.items():
        assert field.description, name
        assert field.metadata, f"{name} has no bounds"


@pytest.mark.parametrize("rule", SMALL)
def test_the_result_is_an_adapter_that_answers(place, rule, tmp_path):
    data = "rows.jsonl" if RULES[rule].labelled else "texts.jsonl"
    more = [word.format(other=place / "other.jsonl") for word in SMALL[rule]]
    assert command(place, rule, tmp_path / "out", *more, data=data) == 0
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert record["rule"]["name"] == rule
    assert record["measured"]["rows"]
    assert (tmp_path / "out" / "pareto.svg").is_file() == (rule == "evolve")
    answers = Predictor.open(tmp_path / "out", base=str(place / "bert")).classify(["a row"])
    assert sum(answers[0]["scores"].values()) == pytest.approx(1)


def test_each_adapter_has_its_own_rows_in_the_order_in_which_they_are_named(place, tmp_path):
    def file(out, names, rows):
        headwater.merge(
            [place / name for name in names], tmp_path / out, rule="regmean", base=place / "bert",
            data=[place / name for name in rows],
        )  # fmt: skip
        return (tmp_path / out / "adapter_model.safetensors").read_bytes()

    one = file("one", ("a0", "a2"), ("rows.jsonl", "other.jsonl"))
    assert one == file("two", ("a2", "a0"), ("other.jsonl", "rows.jsonl"))
    assert one != file("three", ("a2", "a0"), ("rows.jsonl", "other.jsonl"))


@pytest.mark.parametrize(("rule", "settings"), [("fisher", {}), ("lorahub", {"evaluations": 2})])
def test_the_order_of_adapters_of_several_ranks_changes_no_bit(place, tmp_path, rule, settings):
    written = []
    for out, names in (("one", ("a0", "a1")), ("two", ("a1", "a0"))):
        headwater.merge(
            [place / name for name in names], tmp_path / out, rule=rule, base=place / "bert",
            data=[place / "rows.jsonl"], **settings,
        )  # fmt: skip
        written.append((tmp_path / out / "adapter_model.safetensors").read_bytes())
    assert written[0] == written[1]


def refused(place, tmp_path, kind, *said, rule="fw", data=("rows.jsonl",), names=("a0", "a1"), **more):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(kind) as caught:
        headwater.merge(
            [place / name for name in names], tmp_path / "out", rule=rule, base=place / "bert",
            data=[place / name for name in data], **more,
        )  # fmt: skip
    for text in said:
        assert text in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_rows_cannot_be_is_said(place, tmp_path):
    refused(place, tmp_path, ConfigError, "--data FILE", data=())
    refused(place, tmp_path, ConfigError, "--data", "--rule ties", rule="ties")
    three = ("rows.jsonl",) * 3
    refused(place, tmp_path, ConfigError, "one for each of 2 adapters", "3 files", rule="fisher", data=three)
    refused(place, tmp_path, ConfigError, "--space core with --rule fisher", rule="fisher", space="stack")
    refused(place, tmp_path, ConfigError, "no weights", rule="lorahub", weights=[1, 2])
    refused(place, tmp_path, ConfigError, "at least 2 adapters", names=("a0",))


def test_bad_rows_are_named_by_file_and_row(place, tmp_path):
    bad = tmp_path / "bad.jsonl"
    good = json.dumps({"text": "a row", "label": "neutral"})
    bad.write_text(f'{good}\n{{"text": "b", "label": "none"}}\n{good}\n{{"label": "neutral"}}\n')
    refused(place, tmp_path, DataError, "bad.jsonl:2", "bad.jsonl:4", data=(bad,))
    refused(place, tmp_path, DataError, "bad.jsonl:4", data=(bad,), rule="regmean")
    (tmp_path / "empty.jsonl").write_text("")
    refused(place, tmp_path, DataError, "empty.jsonl", data=(tmp_path / "empty.jsonl",))
    refused(place, tmp_path, DataError, "none.jsonl", data=(tmp_path / "none.jsonl",))


def test_entropy_is_for_classifiers(tmp_path):
    folders = cases.adapters(tmp_path, 2, base="llama", kind="causal-lm")
    with pytest.raises(ModelError, match="expected adapters of a classifier"):
        headwater.merge(
            folders, tmp_path / "out", rule="adamerging", base=tmp_path / "llama",
            data=[cases.rows(tmp_path / "r.jsonl")],
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_the_dry_run_says_the_cost_and_loads_no_base(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(RowsNetwork, "open", None)
    assert command(place, "regmean", tmp_path / "out", "--dry-run", data="none.jsonl") == 3
    assert "none.jsonl: expected a file or folder of rows" in capsys.readouterr().err
    assert command(place, "regmean", tmp_path / "out", "--dry-run") == 0
    columns = 4 * 32 * 32  # four layers of 32 inputs
    said = capsys.readouterr().out
    assert "a row costs at most 1 passes forward;" in said
    assert f"keeps {2 * columns * 8 / 1e6:.3g} MB" in said
    assert not (tmp_path / "out").exists()


def test_an_interrupt_leaves_nothing_behind(place, tmp_path, monkeypatch):
    def interrupted(self, values, examples):
        raise KeyboardInterrupt

    monkeypatch.setattr(RowsNetwork, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        headwater.merge(
            [place / "a0", place / "a1"], tmp_path / "out", rule="fw", base=place / "bert",
            data=str(place / "rows.jsonl"),
        )  # fmt: skip
    assert not any(tmp_path.iterdir())
