"""The laws that every task inherits: subclass :class:`TaskLaws`, set ``settings`` and ``rows``.

A task is a function of ``[data]`` and of the rows it is given: nothing here knows which one it is.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.adapters.reading.settings import read_data
from headwater.config.data import BaseData
from headwater.config.load import load_data
from headwater.config.model import MODELS
from headwater.data.table_row import TableRow
from headwater.errors import DataError
from headwater.tasks.batches import IGNORED, Batch, Example, collate
from headwater.tasks.table import AnyTask, task_of
from headwater.tasks.task import RowTask
from tests.data.toys import Letters, table

# inherited @given tests run once per subclass, which is exactly what this check warns about
LAW = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)
OVER_WORDS = ("next token", "masked token", "answer")
"""What has probabilities over a vocabulary, not over outputs with names."""
VOCABULARY = 300
"""More than :class:`Letters` has ids."""


class TaskLaws:
    """What must hold of any task.

    Attributes:
        settings: ``[data]`` without path and partition.
        rows: at least five good rows of at least two different targets.
        bad: rows of which none can be used.
        exact: the metrics that merge over clients as over the union of their rows; the task says of the
            others what they become.
    """

    settings: ClassVar[dict[str, Any]]
    rows: ClassVar[list[dict[str, Any]]]
    bad: ClassVar[list[dict[str, Any]]] = []
    exact: ClassVar[set[str]] = {"loss"}

    @property
    def data(self) -> BaseData:
        """``[data]``."""
        found = load_data({"path": "x", "partition": {"kind": "files"}, **self.settings})
        assert isinstance(found, BaseData)
        return found

    @property
    def task(self) -> AnyTask:
        """The task under test."""
        return task_of(self.data)

    def row(self, content: dict[str, Any]) -> TableRow:
        """A row of a file with every column that any of the rows has."""
        return TableRow(table([content, *self.rows]), 0, self.data)

    def examples(self) -> list[Example]:
        """Those of all rows."""
        return [e for content in self.rows for e in self.task.examples(self.row(content), Letters())]

    def logits(self, examples: list[Example], seed: int) -> list[torch.Tensor]:
        """For each example [outputs], or by token [t, outputs] or [t, vocabulary]: any numbers."""
        generator = torch.Generator().manual_seed(seed)
        outputs = VOCABULARY if self.task.outputs is None else len(self.task.outputs)
        by_token = self.data.by_token
        shapes = [(len(e.targets), outputs) if by_token else (outputs,) for e in examples]
        return [3 * torch.randn(shape, generator=generator) for shape in shapes]

    def measured(
        self, examples: list[Example], logits: list[torch.Tensor], size: int = 3
    ) -> tuple[int, dict[str, float]]:
        """Count and metrics, as an evaluation in batches of ``size`` gets them."""
        total, count, truths, decided = 0.0, 0, [], []
        for i in range(0, len(examples), size):
            batch, out = collate(examples[i : i + size], 0), padded(logits[i : i + size])
            losses, counts = self.task.losses(out, batch.targets)
            total, count = total + losses.double().sum().item(), count + int(counts.sum())
            if (found := self.task.judge(out, examples[i : i + size])) is not None:
                assert len(found) == len(batch)
                truths.append(batch.targets.numpy())
                decided.append(found)
        truth = np.concatenate(truths) if truths and not self.data.by_token else None
        return count, self.task.score(total / count, truth, np.concatenate(decided) if decided else None)

    # settings

    def test_it_is_the_task_of_its_settings(self):
        assert type(self.task).settings_class is type(self.data)
        assert (self.task.outputs is None) == (self.data.needs in OVER_WORDS)
        assert any(self.data.needs in model.gives for model in MODELS.values())
        assert self.data.by_token == (self.data.needs != "row")

    def test_its_metrics_are_those_that_it_declares(self):
        examples = self.examples()
        _, metrics = self.measured(examples, self.logits(examples, 0))
        assert metrics.keys() == self.data.metrics.keys()
        assert "loss" in metrics
        for name, value in metrics.items():
            assert self.data.metrics[name].least <= value <= self.data.metrics[name].most

    def test_a_reader_of_the_export_gets_the_same_task(self):
        noted = json.loads(self.data.model_dump_json(exclude={"path", "partition", "test"}))
        assert read_data({k: v for k, v in noted.items() if v is not None}).model_dump(
            exclude={"path", "partition"}
        ) == self.data.model_dump(exclude={"path", "partition"})

    # rows

    def test_good_rows_pass_and_give_examples(self):
        for content in self.rows:
            self.task.check(self.row(content))
        examples = self.examples()
        assert examples
        assert all(0 < len(e.tokens) <= self.data.max_tokens for e in examples)
        assert all(e.by_token == self.data.by_token for e in examples)
        assert len({e.targets.tobytes() for e in examples}) > 1

    def test_bad_rows_are_refused_by_line_before_any_token(self):
        assert self.bad or self.data.by_token
        for content in self.bad:
            with pytest.raises(DataError, match=r"rows.jsonl:1"):
                self.task.check(self.row(content))

    def test_a_target_comes_back_as_it_was(self):
        task = self.task
        if not isinstance(task, RowTask):
            pytest.skip("its target is the text")
        for content in self.rows:
            target = task.encode(self.row(content))
            written = {**content, self.data.target_columns[0]: task.decode(target)}
            assert task.encode(self.row(written)) == pytest.approx(target, rel=1e-6, abs=1e-6)
            assert target.shape == task.encode(self.row(self.rows[0])).shape

    # loss

    @LAW
    @given(seed=st.integers(0, 2**31), pad=st.integers(0, 9), more=st.integers(0, 4))
    def test_a_rows_loss_depends_on_nothing_but_the_row(self, seed, pad, more):
        """Not on its batch, on what fills it up, or on logits where it has no tokens."""
        examples = self.examples()
        logits = self.logits(examples, seed)
        losses, counts = self.task.losses(padded(logits), collate(examples, pad).targets)
        assert losses.shape == counts.shape == (len(examples),)
        assert counts.tolist() == [self.task.target_count(example) for example in examples]
        assert bool((losses >= 0).all())
        for i, example in enumerate(examples):
            neighbours = [examples[(i + k) % len(examples)] for k in range(1, more + 1)]
            beside = [logits[(i + k) % len(examples)] for k in range(1, more + 1)]
            alone, count = self.task.losses(
                padded([logits[i], *beside], fill=float(pad)), collate([example, *neighbours], 0).targets
            )
            torch.testing.assert_close(alone[0], losses[i], rtol=1e-5, atol=1e-6)
            assert count[0] == counts[i]

    @LAW
    @given(seed=st.integers(0, 2**31), size=st.integers(1, 7))
    def test_the_size_of_batches_changes_no_metric(self, seed, size):
        examples = self.examples()
        logits = self.logits(examples, seed)
        (count, one), (other_count, other) = (
            self.measured(examples, logits, n) for n in (len(examples), size)
        )
        assert count == other_count
        assert other == pytest.approx(one, rel=1e-5, abs=1e-6)

    def test_the_loss_falls_along_its_gradient(self):
        examples = self.examples()
        batch = collate(examples, 0)
        logits = padded(self.logits(examples, 1)).requires_grad_()
        losses, counts = self.task.losses(logits, batch.targets)
        (losses.sum() / counts.sum()).backward()
        assert logits.grad is not None
        assert bool(logits.grad.isfinite().all())
        assert float(logits.grad.abs().max()) > 0
        stepped, _ = self.task.losses((logits - 1e-2 * logits.grad).detach(), batch.targets)
        assert stepped.sum() < losses.sum()

    def test_forward_mode_gives_the_same_derivative(self):
        """Methods without backprop ask for it."""
        batch = collate(self.examples(), 0)
        logits = padded(self.logits(self.examples(), 2))
        direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))

        def loss(x: torch.Tensor) -> torch.Tensor:
            return self.task.losses(x, batch.targets)[0].sum()

        _, slope = torch.func.jvp(loss, (logits,), (direction,))
        gradient = torch.func.grad(loss)(logits)
        torch.testing.assert_close(slope, (gradient * direction).sum(), rtol=1e-4, atol=1e-4)

    def test_any_targets_can_be_tried(self):
        examples = self.examples()
        batch = collate(examples, 0)
        tried = self.task.any_targets(batch.tokens, batch.mask)
        logits = padded(self.logits(examples, 4))
        if self.data.needs == "answer":  # it is as long as the text, whatever the true one is
            batch, logits = batch_of(batch.tokens), torch.zeros(*batch.tokens.shape, VOCABULARY)
        assert (tried.shape, tried.dtype) == (batch.targets.shape, batch.targets.dtype)
        losses, counts = self.task.losses(logits, tried)
        assert bool(losses.isfinite().all())
        assert int(counts.sum()) > 0

    # metrics of many clients

    @LAW
    @given(seed=st.integers(0, 2**31), cut=st.integers(1, 4))
    def test_merged_metrics_are_those_of_the_union_where_the_task_says_so(self, seed, cut):
        examples = self.examples()
        logits = self.logits(examples, seed)
        parts = [self.measured(examples[:cut], logits[:cut]), self.measured(examples[cut:], logits[cut:])]
        _, union = self.measured(examples, logits)
        merged = self.task.merge(
            {name: [metrics[name] for _, metrics in parts] for name in union}, [count for count, _ in parts]
        )
        assert merged.keys() == union.keys()
        for name in self.exact:
            assert merged[name] == pytest.approx(union[name], rel=1e-4, abs=1e-6)
        for name, value in merged.items():
            least, most = sorted(metrics[name] for _, metrics in parts)
            assert least - 1e-9 <= value <= most + 1e-9

    def test_one_client_merges_to_itself(self):
        examples = self.examples()
        count, metrics = self.measured(examples, self.logits(examples, 5))
        assert self.task.merge({k: [v] for k, v in metrics.items()}, [count]) == pytest.approx(metrics)

    def test_the_constant_answer_has_the_metrics_that_it_says(self):
        targets = [e.targets for e in self.examples()]
        found = self.task.constant(targets, targets)
        assert set(self.data.constant_metrics) <= found.keys()

    # drawn labels

    def test_drawn_targets_have_the_places_of_the_true_ones(self):
        if not self.data.has_likelihood:
            pytest.skip("it draws none")
        examples = self.examples()
        batch, logits = collate(examples, 0), padded(self.logits(examples, 6))
        uniforms = torch.rand(
            batch.targets.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )
        drawn = self.task.draw(logits, batch.targets, uniforms)
        assert (drawn.shape, drawn.dtype) == (batch.targets.shape, batch.targets.dtype)
        assert torch.equal(drawn, self.task.draw(logits, batch.targets, uniforms))
        if self.data.by_token:
            assert torch.equal(drawn[:, 1:] == IGNORED, batch.targets[:, 1:] == IGNORED)
        assert bool(self.task.losses(logits, drawn)[0].isfinite().all())

    # answers

    def test_the_exports_code_says_what_predict_says(self, capsys):
        if self.data.by_token:
            pytest.skip("its answer needs the tokens")
        for logits in self.logits(self.examples(), 7):
            (answer,) = self.task.answers(logits.double()[None])
            json.dumps(answer)
            assert self.task.line(answer)
            exec("\n".join(self.task.code()), {"logits": logits[None]})
            said = capsys.readouterr().out.strip()
            (first,) = [value for key, value in answer.items() if key in ("label", "labels", "value")][:1]
            if isinstance(first, float):
                assert float(said) == pytest.approx(first, rel=1e-5)
            else:
                assert said == str(first)


def batch_of(tokens: torch.Tensor) -> Batch:
    """A batch whose answers are its rows."""
    return Batch(tokens, torch.ones_like(tokens), tokens)


def padded(logits: list[torch.Tensor], fill: float = 0.0) -> torch.Tensor:
    """One tensor: rows of tokens filled up to the longest."""
    if logits[0].ndim == 1:
        return torch.stack(logits)
    return torch.nn.utils.rnn.pad_sequence(logits, batch_first=True, padding_value=fill)
