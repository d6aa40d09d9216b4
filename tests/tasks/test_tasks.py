"""Every task of the table keeps the laws; and what is special about each, against oracles."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import f1_score, r2_score

from headwater.config.data import BaseData, data_kind
from headwater.config.load import load_data
from headwater.data.table_row import TableRow
from headwater.errors import ConfigError, DataError
from headwater.tasks.multi_label import f1_scores
from headwater.tasks.regression import r_squared, spearman
from headwater.tasks.table import _TASKS, task_of
from tests.data.toys import table
from tests.laws.task_laws import TaskLaws

WORDS = {"kind": "token-classification", "path": "x", "partition": {"kind": "files"}}
CHAT = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}]


class TestClassification(TaskLaws):
    settings: ClassVar = {"kind": "classification", "labels": ["no", "yes", "maybe"], "max_tokens": 6}
    rows: ClassVar = [
        {"text": "a" * n, "label": name} for n, name in enumerate(["no", "yes", "maybe"] * 3, start=1)
    ]
    bad: ClassVar = [
        {"text": "a", "label": "perhaps"},
        {"text": " ", "label": "no"},
        {"text": "a", "label": None},
    ]
    exact: ClassVar = {"loss", "accuracy"}


class TestClassificationWithWeights(TestClassification):
    settings: ClassVar = {**TestClassification.settings, "class_weights": [0.5, 2, 0]}

    def test_the_losses_are_the_plain_ones_times_the_labels_weight(self):
        logits, targets = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
        plain, _ = TestClassification().task.losses(logits, targets)
        weighted, counts = self.task.losses(logits, targets)
        torch.testing.assert_close(weighted, plain * torch.tensor([0.5, 2.0, 0.0] * 2))
        assert counts.tolist() == [1] * 6
        words = task_of(load_data({**WORDS, "labels": ["a", "b", "c"], "class_weights": [0.5, 2, 0]}))
        (found,), (count,) = words.losses(logits[None], targets[None])
        torch.testing.assert_close(found, weighted.sum())
        assert int(count) == 6

    @pytest.mark.parametrize(
        "weights", [[], [1, 2], [0, 0, 0], [1, 1, -1], [1, 1, 1001], [1, 1, float("nan")]]
    )
    def test_weights_that_fit_no_labels_are_refused(self, weights):
        with pytest.raises(ConfigError, match="class_weights"):
            load_data({**WORDS, "labels": ["a", "b", "c"], "class_weights": weights})


class TestRegression(TaskLaws):
    settings: ClassVar = {"kind": "regression", "target_mean": 2.5, "target_scale": 1.5, "max_tokens": 6}
    rows: ClassVar = [{"text": "ab", "target": y} for y in (1, 2.25, -3.0, "4.5", "1e2", 0, 7)]
    bad: ClassVar = [
        {"text": "a", "target": value} for value in (None, True, "two", "nan", float("inf"), 1e13, [1], "1,5")
    ]
    exact: ClassVar = {"loss", "mse", "mae"}


class TestMultiLabel(TaskLaws):
    settings: ClassVar = {"kind": "multi-label", "label": "tags", "labels": ["x", "y", "z"], "separator": "|"}
    rows: ClassVar = [
        {"text": "ab", "tags": tags} for tags in (["x"], [], ["z", "x"], "x | y", "y", "", None, ["y"])
    ]
    bad: ClassVar = [{"text": "a", "tags": value} for value in (["w"], "x,y", 3, [["x"]], {"x": 1})]
    exact: ClassVar = {"loss", "exact_match"}


class TestMultiLabelLists(TestMultiLabel):
    settings: ClassVar = {"kind": "multi-label", "label": "tags", "labels": ["x", "y"]}
    rows: ClassVar = [
        {"text": "ab", "tags": tags} for tags in (["x"], [], ["y", "x"], ["y"], ["x", "x"], ["y"])
    ]
    bad: ClassVar = [{"text": "a", "tags": value} for value in ("x", None, ["w"], "x|y")]

    def test_a_target_comes_back_as_it_was(self):
        task = self.task
        for content in self.rows:
            target = task.encode(self.row(content))
            names = [name for name in task.decode(target).split(", ") if name]
            assert task.encode(self.row({**content, "tags": names})).tolist() == target.tolist()


class TestTokenClassification(TaskLaws):
    settings: ClassVar = {
        "kind": "token-classification",
        "labels": ["O", "B-X", "I-X", "B-Y"],
        "max_tokens": 9,
    }
    rows: ClassVar = [
        {"tokens": ["ab", "c", "d"], "tags": ["B-X", "I-X", "O"]},
        {"tokens": "a bc def ghijk", "tags": "O B-X B-Y O"},
        {"tokens": ["aaa", "b"], "tags": [0, 3]},
        {"tokens": ["abcdefghijkl", "b"], "tags": ["I-X", "O"]},
        {"tokens": ["a", "b", "c"], "tags": ["B-Y", "B-Y", "B-X"]},
        {"tokens": ["a"], "tags": ["O"]},
    ]
    bad: ClassVar = [
        {"tokens": ["a", "b"], "tags": ["O"]},
        {"tokens": [], "tags": []},
        {"tokens": ["a"], "tags": ["B-Z"]},
        {"tokens": ["a"], "tags": [4]},
        {"tokens": ["a"], "tags": [True]},
        {"tokens": ["a", 1], "tags": ["O", "O"]},
        {"tokens": " ", "tags": ""},
        {"tokens": ["a"], "tags": None},
        {"tokens": None, "tags": ["O"]},
    ]
    exact: ClassVar = {"loss", "accuracy"}


def asked(context, *answers):
    found = {"text": list(answers), "answer_start": [context.index(text) for text in answers]}
    return {"question": "q", "context": context, "answers": found}


class TestExtractiveQA(TaskLaws):
    settings: ClassVar = {"kind": "extractive-qa", "max_tokens": 9, "stride": 2, "unanswerable": True}
    rows: ClassVar = [
        asked("abc", "b"),
        asked("abcdefghijkl", "kl", "a"),
        asked("abcdef", "bcde"),
        asked("abcdefghijkl"),
        {"question": "qq", "context": "xyz", "answers": [{"text": "z", "answer_start": 2}]},
    ]
    bad: ClassVar = [
        {"question": "q", "context": "abc", "answers": value}
        for value in (
            None, "b", {"text": ["b"], "answer_start": [0]}, {"text": ["b"]},
            {"text": ["b"], "answer_start": []}, {"text": [""], "answer_start": [0]},
            {"text": ["b"], "answer_start": [True]}, ["b"],
            {"text": ["c"], "answer_start": [-1]}, {"text": [1], "answer_start": [1]}, 3,
        )
    ] + [{"question": q, "context": c, "answers": []} for q, c in ((" ", "abc"), ("q", None))]  # fmt: skip
    exact: ClassVar = {"loss"}


class TestRunningText(TaskLaws):
    settings: ClassVar = {"kind": "causal-lm", "max_tokens": 5}
    rows: ClassVar = [{"text": text} for text in ("abcdefgh", "ab", "c", "hello", "some more text")]
    bad: ClassVar = [{"text": ""}, {"text": 3}]
    exact: ClassVar = {"loss", "perplexity"}


class TestMaskedLanguageModel(TaskLaws):
    settings: ClassVar = {"kind": "masked-lm", "max_tokens": 7, "hidden": 0.3, "copies": 2}
    rows: ClassVar = [{"text": text} for text in ("abcdefgh", "ab", "c", "hello", "some more text")]
    bad: ClassVar = [{"text": ""}, {"text": 3}]
    exact: ClassVar = {"loss", "perplexity", "accuracy"}


class TestSeq2Seq(TaskLaws):
    settings: ClassVar = {"kind": "seq2seq", "max_tokens": 6, "max_target_tokens": 9, "prefix": "> "}
    rows: ClassVar = [{"text": "a" * n, "target": "b" * (8 - n)} for n in range(1, 7)]
    bad: ClassVar = [{"text": "a", "target": None}, {"text": "", "target": "b"}, {"text": "a", "target": 1}]
    exact: ClassVar = {"loss", "perplexity"}


class TestInstruction(TaskLaws):
    settings: ClassVar = {"kind": "instruction", "max_tokens": 90}
    rows: ClassVar = [{"prompt": "p" * n, "answer": "a" * (n + 1)} for n in range(1, 7)]
    bad: ClassVar = [{"prompt": "p", "answer": None}, {"prompt": "", "answer": "a"}]
    exact: ClassVar = {"loss", "perplexity"}


def test_the_laws_are_asked_of_every_task():
    asked = {type(of().task) for of in TaskLaws.__subclasses__() if of.__module__ == __name__}
    assert asked == set(_TASKS)


def test_a_metrics_name_means_one_direction():
    found: dict[str, set[bool]] = {}
    for task in _TASKS:
        for name, metric in task.settings_class.metrics.items():
            found.setdefault(name, set()).add(metric.lower)
    assert {name for name, directions in found.items() if len(directions) > 1} == set()


def test_a_kind_without_rows_has_no_task():
    with pytest.raises(ConfigError, match="learns from"):
        task_of(data_kind("none")(kind="none", clients=1))


numbers = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=30)


@given(pairs=numbers)
def test_rank_correlation_and_r_squared_are_those_of_scipy_and_scikit_learn(pairs):
    truth, found = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))
    assert r_squared(truth, found) == pytest.approx(r2_score(truth, found))
    if len(set(truth)) > 1 and len(set(found)) > 1:
        assert spearman(truth, found) == pytest.approx(spearmanr(truth, found).statistic, abs=1e-12)
    else:
        assert spearman(truth, found) == 0.0


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=12))
def test_f1_of_labels_is_that_of_scikit_learn(rows):
    wanted, found = np.array(rows)[:, :3], np.array(rows)[:, 3:]
    there = [k for k in range(3) if wanted[:, k].any() or found[:, k].any()]
    micro, macro = f1_scores(wanted, found)
    assert micro == pytest.approx(f1_score(wanted, found, average="micro", zero_division=0))
    if len(there) > 1:  # one column is a binary problem for it, of two classes
        assert macro == pytest.approx(
            f1_score(wanted[:, there], found[:, there], average="macro", zero_division=0)
        )


def test_the_binary_cross_entropy_is_torchs():
    logits = torch.tensor([[-90.0, 0.0, 3.0], [40.0, -2.0, 0.5]])
    targets = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    losses, _ = TestMultiLabel().task.losses(logits, targets)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
    torch.testing.assert_close(losses, expected)


def test_metrics_of_numbers_are_in_the_columns_own_units():
    task = TestRegression().task
    truth, outputs = np.array([0.0, 1.0], np.float32), np.array([1.0, 1.0], np.float32)
    metrics = task.score(0.5, truth, outputs)
    assert metrics["mse"] == pytest.approx(0.5 * 1.5**2)
    assert metrics["mae"] == pytest.approx(0.75)
    assert metrics["loss"] == 0.5
    assert task.answers(torch.tensor([[1.0]]))[0]["value"] == pytest.approx(4.0)


def test_the_constant_answers():
    truth = [np.array([v], np.float32) for v in (0.0, 2.0, 4.0)]
    assert TestRegression().task.constant(truth, truth)["r2"] == pytest.approx(0.0)
    sets = [np.array(v, np.float32) for v in ([1, 0, 0], [1, 0, 0], [0, 1, 1])]
    assert TestMultiLabel().task.constant(sets, sets)["exact_match"] == pytest.approx(2 / 3)


def test_a_drawn_number_has_the_variance_of_the_loss():
    """E over draws of (output − y)², the loss, is 1/2: the Gaussian whose −log density it is."""
    n = 4000
    uniforms = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    task = TestRegression().task
    drawn = task.draw(torch.full((n, 1), 3.0), torch.zeros(n), uniforms)
    assert drawn.mean().item() == pytest.approx(3.0, abs=0.05)
    assert task.losses(torch.full((n, 1), 3.0), drawn)[0].mean().item() == pytest.approx(0.5, abs=0.05)


def test_text_without_a_separator_says_what_to_set():
    settings: ClassVar = load_data(
        {"kind": "multi-label", "labels": ["x", "y"], "path": "x", "partition": {"kind": "files"}}
    )
    assert isinstance(settings, BaseData)
    row = TableRow(table([{"text": "a", "labels": "x,y"}]), 0, settings)
    with pytest.raises(DataError, match=r"a list of labels in column 'labels'.*data\.separator"):
        task_of(settings).check(row)
