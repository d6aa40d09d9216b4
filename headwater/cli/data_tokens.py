"""The part of ``headwater data check`` that needs a model's tokenizer, and so torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from headwater.adapters.reading.tokenizer import TextTokenizer
from headwater.cli.data_view import Checked
from headwater.config.load import LoadedFederation
from headwater.data.federated import FederatedData
from headwater.data.files.layouts import RowData
from headwater.data.files.problems import Problems
from headwater.data.files.table import Table
from headwater.data.row_check import RowCheck
from headwater.data.survey import Owner, Spans
from headwater.seeds.keys import Key
from headwater.tasks.batches import IGNORED, Example


def count_federation(checked: Checked, loaded: LoadedFederation, tokenizer: TextTokenizer) -> None:
    """Tokenise what the clients of a federation have, exactly as a run does before its first round.

    Raises:
        DataError: rows that cannot be used.
        ModelError: the chat template cannot.
    """
    data = FederatedData.open(loaded, tokenizer, Key.root(loaded.settings.federation.seed))
    for name in data.clients:
        own = data.client(name)
        for example in (*own.train, *own.validation):
            _count(checked.survey.owners[name], example)
    if checked.test is not None:
        for example in data.test() or ():
            _count(checked.test.owners["test"], example)
    checked.warnings = list(data.warnings)
    _render(checked, checked.settings, tokenizer)


def count_rows(
    checked: Checked,
    settings: RowData,
    tokenizer: TextTokenizer,
    rows: Iterable[tuple[str, Table, list[int]]],
    unread: Problems,
) -> None:
    """Tokenise rows that stream by. What is wrong with any becomes the problems of ``checked``.

    Raises:
        ModelError: the chat template cannot.
    """
    check = RowCheck(settings, tokenizer)
    for name, table, chosen in rows:
        for example in check.examples(table, chosen):
            _count(checked.survey.owners.setdefault(name, Owner()), example)
    check.settle()
    unread.extend(check.problems)
    checked.problems = unread
    checked.warnings += check.report.sentences()
    _render(checked, settings, tokenizer)


def _count(owner: Owner, example: Example) -> None:
    owner.tokens.append(len(example.tokens))
    owner.loss_tokens += int((example.targets != IGNORED).sum()) if example.by_token else 1


def _render(checked: Checked, settings: RowData | None, tokenizer: TextTokenizer) -> None:
    """Show the sample rows as the model gets them."""
    if settings is None:
        return
    shown = []
    for sample in checked.samples:
        examples = RowCheck(settings, tokenizer).examples(sample.table, [sample.row])
        spans: Spans = []
        for example in examples[:4]:
            spans += [*([("\n--\n", False)] if spans else []), *_spans(example, tokenizer)]
        if spans:
            shown.append(replace(sample, spans=spans))
        else:  # a row that gives no example: nothing of it is learnt
            shown.append(replace(sample, spans=[(text, False) for text, _ in sample.spans], label=None))
    checked.samples = shown


def _spans(example: Example, tokenizer: TextTokenizer) -> Iterator[tuple[str, bool]]:
    tokens = example.tokens.tolist()
    if not example.by_token:
        yield tokenizer.spell(tokens), False
        return
    loss = (example.targets != IGNORED).tolist()
    start = 0
    for end in range(1, len(tokens) + 1):
        if end == len(tokens) or loss[end] != loss[start]:
            yield tokenizer.spell(tokens[start:end]), loss[start]
            start = end
