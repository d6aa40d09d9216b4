"""Rows of data with an exported adapter: :func:`score`, :func:`classified`, :func:`prompts`.

The same functions read, cut and end rows here as in training and in the federation's own evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from headwater.adapters.predict import Predictor
from headwater.adapters.reading.settings import Reading
from headwater.config.data import InstructionData
from headwater.data.conversations import conversation_of
from headwater.data.files.layouts import layout_of
from headwater.data.files.problems import Problems
from headwater.data.files.table import Table
from headwater.data.opened import check_values
from headwater.data.row_check import tokenise_rows
from headwater.data.split import sample_examples
from headwater.data.table_row import TableRow
from headwater.errors import DataError, ModelError
from headwater.tasks.batches import Example
from headwater.tasks.inputs import encode_texts
from headwater.training.evaluate import measure


@dataclass(frozen=True, slots=True)
class Score:
    """What an adapter reaches on rows.

    Args:
        metrics: as the federation's summary has them.
        examples: how many were measured: rows, or windows and answers of a causal model.
        of: how many there are; more where ``data.max_test_examples`` draws some.
        targets: what the metrics are means over: rows, or tokens of a causal model.
    """

    metrics: dict[str, float]
    examples: int
    of: int
    targets: int


def score(predictor: Predictor, table: Table) -> Score:
    """Measure an adapter on labelled rows, as the federation measured it on its test file.

    Raises:
        ModelError: an adapter that does not say how training read rows.
        DataError: rows that cannot be used, all at once.
    """
    reading, examples = reading_of(predictor), labelled_examples(predictor, table)
    chosen = sample_examples(examples, reading.data.max_test_examples, reading.test_key)
    targets, metrics = measure(
        predictor.forward,
        predictor.task,
        [examples[i] for i in chosen],
        batch_size=reading.batch_size,
        pad=predictor.base.tokenizer.pad,
    )
    return Score(metrics, len(chosen), len(examples), targets)


def labelled_examples(predictor: Predictor, table: Table) -> list[Example]:
    """The rows' examples, in their order.

    Raises:
        ModelError: an adapter that does not say how training read rows.
        DataError: rows that cannot be used, all at once.
    """
    data, tokenizer = reading_of(predictor).data, predictor.base.tokenizer
    problems, examples = Problems(), list[Example]()
    if len(table):
        problems.attempt(partial(check_values, table, data, problems))
        problems.raise_any()
    for row in range(len(table)):
        examples += problems.attempt(partial(tokenise_rows, table, [row], data, tokenizer)) or []
    problems.raise_any()
    return examples


def classified(predictor: Predictor, table: Table) -> Iterator[tuple[str, dict[str, object]]]:
    """Each row's text and what :meth:`Predictor.classify_tokens` says of it. A label is not needed.

    Raises:
        ModelError: an adapter that does not say how training read rows.
        DataError: rows without a text, all at once.
    """
    if predictor.writes:
        raise ModelError("classify", expected="a classifier", got="a causal model", hint="Use generate.")
    data = reading_of(predictor).data
    if data.needs == "row":
        answers = predictor.classify_tokens(text_tokens(predictor, table))
    else:
        answers = predictor.replies(_asked(predictor, table))
    for row, found in enumerate(answers):
        yield TableRow(table, row, data).texts()[0], found


def as_rows(predictor: Predictor, texts: Sequence[str]) -> Table:
    """Texts as a table of rows that a task can be asked by.

    Raises:
        DataError: a row is more than one text.
    """
    inputs = reading_of(predictor).data.inputs
    if inputs is None or len(inputs[1]) != 1:
        raise DataError(
            "texts",
            expected="rows of several texts, which the adapter was trained on",
            got="texts alone",
            hint="Give a file of rows: --file.",
        )
    count = len(texts)
    return Table({inputs[1][0]: list(texts)}, (Path("text"),), [0] * count, list(range(1, count + 1)), [""])


def _asked(predictor: Predictor, table: Table) -> list[list[Example]]:
    """Each row's examples without targets; all rows that cannot be used are said at once."""
    data, tokenizer, problems = reading_of(predictor).data, predictor.base.tokenizer, Problems()
    for file in sorted(set(table.file)):  # what is wrong with a file is said once
        problems.attempt(partial(layout_of, table, table.file.index(file), data))
    problems.raise_any()
    read = [TableRow(table, row, data) for row in range(len(table))]
    rows = [problems.attempt(partial(predictor.task.ask, row, tokenizer)) for row in read]
    problems.raise_any()
    return [examples or [] for examples in rows]


def text_tokens(predictor: Predictor, table: Table) -> list[list[int]]:
    """The ids of each row's text or pair. A label is not needed.

    Raises:
        ModelError: an adapter that does not say how training read rows.
        DataError: rows without a text, all at once.
    """
    data, tokenizer, problems = reading_of(predictor).data, predictor.base.tokenizer, Problems()
    for file in sorted(set(table.file)):  # what is wrong with a file is said once
        problems.attempt(partial(layout_of, table, table.file.index(file), data))
    problems.raise_any()
    read = [TableRow(table, row, data) for row in range(len(table))]
    rows = [problems.attempt(partial(encode_texts, row, data.max_tokens, tokenizer)) for row in read]
    problems.raise_any()
    return [tokens or [] for tokens in rows]


def prompts(predictor: Predictor, table: Table) -> Iterator[tuple[str, list[int]]]:
    """Each row's question, and the tokens that a causal model is asked with.

    Of a conversation that is all of it, without the answer that it ends with; of running text the whole.

    Raises:
        ModelError: an adapter that does not say how training read rows.
        DataError: a row without a question.
    """
    data = reading_of(predictor).data
    for row in range(len(table)):
        if data.inputs is not None:
            text = TableRow(table, row, data).texts()[0]
            yield text, predictor.prompt(text)
        elif isinstance(data, InstructionData):
            said = conversation_of(table, row, data, answered=False)
            messages = said.messages
            if messages[-1]["role"] == "assistant":  # what is asked for
                messages = messages[:-1]
            if not messages:
                raise DataError(table.where(row), expected="a question before the last answer", got="none")
            yield str(messages[-1]["content"]), predictor.chat_prompt(messages, said.tools)


def reading_of(predictor: Predictor) -> Reading:
    """How training read rows.

    Raises:
        ModelError: the adapter does not say.
    """
    if predictor.reading is None:
        raise ModelError(
            "the adapter",
            expected="a headwater.json that says how training read rows",
            got="none: an earlier version wrote it",
            hint="Give plain texts, or export it again with this version.",
        )
    return predictor.reading
