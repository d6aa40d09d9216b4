"""Answers in a context: SQuAD's counts, windows and offsets, the best span, and a federation that learns."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import tomli_w
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.adapters.reading.tokenizer import TextTokenizer
from headwater.config.load import load_data, load_federation
from headwater.data.row_report import RowReport
from headwater.data.table_row import TableRow
from headwater.errors import ConfigError, DataError
from headwater.tasks import squad
from headwater.tasks.batches import IGNORED, Example
from headwater.tasks.extractive_qa import Asked
from headwater.tasks.table import task_of
from tests.data.toys import Letters, table
from tests.support.command import headwater
from tests.support.federations import adapter
from tests.support.readme_code import readme_code
from tests.support.runs import run, write_jsonl
from tests.support.tiny_models import byte_tokenizer, tiny_bert, word_tokenizer

WORDS = st.lists(st.sampled_from(["The", "a", "cat", "cats.", "dog", "An", "42", "it's", "Ünï"]), max_size=6)


def task(**more):
    data = {"kind": "extractive-qa", "path": "x", "partition": {"kind": "files"}, **more}
    return task_of(load_data(data))


def row(found, context, *answers, question="q"):
    starts = [context.index(text) for text in answers]
    content = {"question": question, "context": context}
    content["answers"] = {"text": list(answers), "answer_start": starts}
    return TableRow(table([content]), 0, found.settings)


@settings(max_examples=60, deadline=None)
@given(found=WORDS, truths=st.lists(WORDS.filter(bool), min_size=1, max_size=3))
def test_answers_count_as_squad_counts_them(found, truths):
    reason = "torchmetrics has SQuAD's own code: the oracle, and no dependency"
    oracle = pytest.importorskip("torchmetrics.functional.text.squad", reason=reason)
    said, true = " ".join(found), [" ".join(words) for words in truths]
    scores = oracle.squad(
        [{"prediction_text": said, "id": "1"}],
        [{"answers": {"answer_start": [0] * len(true), "text": true}, "id": "1"}],
    )
    assert 100 * squad.exact(said, tuple(true)) == pytest.approx(scores["exact_match"].item())
    if squad.plain(said) and all(map(squad.plain, true)):  # of nothing its F1 is 0, and SQuAD 2's is 1
        assert 100 * squad.f1(said, tuple(true)) == pytest.approx(scores["f1"].item(), rel=1e-5)


@pytest.mark.parametrize(
    ("found", "truth", "exact", "f1"),
    [
        ("The Cat.", "cat", 1.0, 1.0),
        ("a black cat", "the cat", 0.0, 2 / 3),
        ("", "", 1.0, 1.0),
        ("", "cat", 0.0, 0.0),
        ("cat cat", "cat dog", 0.0, 0.5),
        ("theatre", "atre", 0.0, 0.0),
    ],
)
def test_single_answers(found, truth, exact, f1):
    assert squad.exact(found, (truth,)) == exact
    assert squad.f1(found, ("zzz", truth)) == pytest.approx(f1)


@pytest.mark.parametrize("fast", [word_tokenizer(), byte_tokenizer(None)], ids=["pieces", "bytes"])
def test_a_target_is_the_answer_in_exactly_the_windows_that_have_all_of_it(fast):
    if fast.eos_token_id is None:  # pairs need something between them
        fast._tokenizer.post_processor = word_pairs()
    else:
        with pytest.raises(Exception, match="pairs of texts"):
            task().examples(row(task(), "the movie", "movie"), TextTokenizer(fast, "tiny"))
        return
    found, tokenizer = task(max_tokens=16, stride=4), TextTokenizer(fast, "tiny")
    context = "the good movie was not bad the [SEP] xyz movie was bad"
    whole = 0
    examples = found.examples(row(found, context, "xyz movie", "good"), tokenizer)
    assert len(examples) > 1
    for example in examples:
        asked, spans = example.note
        assert asked.context == context
        assert asked.truths == ("xyz movie", "good")
        inside = [i for i, span in enumerate(spans) if span is not None]
        assert np.flatnonzero(example.targets != IGNORED).tolist() == [0, *inside]
        (begin,), (end,) = (np.flatnonzero((example.targets > 0) & (example.targets & b > 0)) for b in (1, 2))
        if begin:
            assert context[spans[begin][0] : spans[end][1]] == "xyz movie"
            whole += 1
        else:
            start, stop = context.index("xyz"), context.index("xyz") + len("xyz movie")
            assert not (spans[inside[0]][0] <= start and stop <= spans[inside[-1]][1])
    assert whole
    covered = {k for e in examples for s in e.note[1] if s is not None for k in range(*s)}
    assert covered == {k for k, letter in enumerate(context) if letter != " "}


def places(found, context, text, start, report=None):
    """What of the context each window's target says is the answer; None for no answer."""
    fast = word_tokenizer()
    fast._tokenizer.post_processor = word_pairs()
    answers = {"text": [text], "answer_start": [start]}
    content = {"question": "q", "context": context, "answers": answers}
    read = TableRow(table([content]), 0, found.settings)
    said = []
    for example in found.examples(read, TextTokenizer(fast, "tiny"), report):
        (begin,), (end,) = (np.flatnonzero((example.targets > 0) & (example.targets & b > 0)) for b in (1, 2))
        spans = example.note[1]
        said.append(context[spans[begin][0] : spans[end][1]] if begin else None)
    return said


@pytest.mark.parametrize(
    ("text", "start", "said"),
    [(" movie", 8, "movie"), ("movie ", 9, "movie"), (" good movie ", 3, "good movie"), ("ood", 5, "good")],
)
def test_spaces_around_an_answer_do_not_make_it_none(text, start, said):
    assert places(task(), "the good movie was not bad", text, start) == [said]


def test_an_answer_that_the_tokenizer_drops_is_refused_by_line():
    with pytest.raises(DataError, match=r"rows.jsonl:1.*an answer with a token"):
        places(task(), "the \u200b movie", "\u200b", 4)


def test_an_answer_that_no_window_has_is_told_of():
    context, report = "the good movie was not bad the movie was bad", RowReport()
    assert set(places(task(max_tokens=10, stride=2), context, context[4:36], 4, report)) == {None}
    assert report.counts == {"no-window": 1}
    report = RowReport()
    assert "good" in places(task(max_tokens=10, stride=2), context, "good", 4, report)
    assert not report.counts


def test_where_an_answer_starts_is_its_own_first_character():
    """DeBERTa's pieces begin with the space before a word."""
    found, context = task(), "the movie"
    example = Example(np.arange(4), np.array([3, IGNORED, 0, 0]), by_token=True)
    example = replace(example, note=(Asked(context, ()), [None, None, (0, 3), (3, 9)]))
    answer = found.reply([example], [logits_of(example, {(3, 0): 1.0, (3, 1): 1.0})])
    assert answer["answer"] == context[answer["start"] :] == "movie"


def test_a_context_without_a_token_has_no_answer():
    found = task()
    fast = word_tokenizer()
    fast._tokenizer.post_processor = word_pairs()
    content = {"question": "q", "context": "\u200b"}
    examples = found.ask(TableRow(table([content]), 0, found.settings), TextTokenizer(fast, "tiny"))
    answer = found.reply(examples, [torch.ones(len(e.tokens), 2) for e in examples])
    assert answer == {"answer": "", "start": None, "score": 2.0}
    json.dumps(answer, allow_nan=False)


def word_pairs():
    from tokenizers import processors

    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    return processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=ends)


def logits_of(example, places):
    """Logits of a window that are high at these places, by (token, output)."""
    found = torch.zeros(len(example.tokens), 2, dtype=torch.float64)
    for place, value in places.items():
        found[place] = value
    return found


def test_the_best_span_is_the_one_that_brute_force_finds():
    found = task(max_tokens=20, stride=2, max_answer_tokens=3)
    examples = found.ask(row(found, "abcdefghijklmnopqrstuvwxyz", "a"), Letters())
    assert len(examples) > 1
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        logits = [torch.randn(len(e.tokens), 2, generator=generator, dtype=torch.float64) for e in examples]
        best = max(
            (float(own[i, 0] + own[j, 1]), e.note[1][i][0], e.note[1][j][1])
            for own, e in zip(logits, examples, strict=True)
            for i in range(len(own))
            for j in range(i, min(i + 3, len(own)))
            if e.note[1][i] is not None and e.note[1][j] is not None
        )
        answer = found.reply(examples, logits)
        assert answer["score"] == pytest.approx(best[0])
        assert answer["answer"] == "abcdefghijklmnopqrstuvwxyz"[best[1] : best[2]]


def test_none_is_an_answer_only_where_rows_may_have_none():
    for allowed in (False, True):
        found = task(unanswerable=allowed)
        (example,) = found.ask(row(found, "abc", "b"), Letters())
        sure = logits_of(example, {(0, 0): 9.0, (0, 1): 9.0, (4, 0): 1.0, (4, 1): 1.0})
        answer = found.reply([example], [sure])
        assert answer["answer"] == ("" if allowed else "b")
        assert found.line(answer) == ("(none)" if allowed else "b")


def test_none_must_beat_the_best_answer_in_the_window_that_believes_in_it_least():
    """SQuAD 2's rule of several windows (arXiv 1810.04805, run_squad.py: min_null_feature)."""
    found = task(max_tokens=9, stride=1, unanswerable=True)
    examples = found.ask(row(found, "abcdefgh", "h"), Letters())
    assert len(examples) > 1
    for none, said in ((2.0, "b"), (5.0, "")):
        first = {(0, 0): none, (4, 0): 4.0}
        rest = {(0, 0): 9.0}  # the answer is not in these
        logits = [logits_of(e, rest if k else first) for k, e in enumerate(examples)]
        assert found.reply(examples, logits)["answer"][:1] == said


def test_windows_of_a_row_are_judged_together():
    found = task(max_tokens=9, stride=1)
    examples = found.examples(row(found, "abcdefgh", "h"), Letters())
    logits = [logits_of(e, {(4, 0): 1.0, (4, 1): 1.0}) for e in examples]
    last = [i for i, span in enumerate(examples[-1].note[1]) if span is not None][-1]
    logits[-1] = logits_of(examples[-1], {(last, 0): 5.0, (last, 1): 5.0})
    padded = torch.nn.utils.rnn.pad_sequence(logits, batch_first=True)
    metrics = found.score(0.5, None, found.judge(padded, examples))
    assert metrics == {"f1": 1.0, "exact_match": 1.0, "loss": 0.5}


def test_a_question_that_fills_a_window_is_refused_by_line():
    found = task(max_tokens=9, stride=3)
    with pytest.raises(DataError, match=r"rows.jsonl:1: expected room for more than 3"):
        found.examples(row(found, "abc", "b", question="long question"), Letters())


def federation(folder, **changes):
    folder.mkdir()
    fast = word_tokenizer()
    fast._tokenizer.post_processor = word_pairs()
    tiny_bert(folder / "bert")
    fast.save_pretrained(folder / "bert")
    rows = []
    for i in range(24):
        name, mood = "abcd"[i % 4], ("good", "bad")[i % 2]
        context = f"the movie {name} was {mood}"
        answers = {"text": [mood], "answer_start": [context.index(mood)]}
        rows.append(
            {"question": f"was {name} good", "context": context, "answers": answers, "who": f"c{i % 3}"}
        )
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "test.jsonl", rows[:8])
    content = {
        "federation": {"name": "t", "rounds": 4, "seed": 1},
        "model": {"kind": "encoder", "path": "bert"},
        "adapter": adapter("lora", "bert"),
        "data": {
            "kind": "extractive-qa", "path": "train.jsonl", "test": "test.jsonl", "stride": 2,
            "max_tokens": 16, "partition": {"kind": "column", "column": "who"},
        },
        "training": {"kind": "backprop", "learning_rate": 0.05, "batch_size": 4},
        "evaluation": {"min_client_examples": 1},
        **changes,
    }  # fmt: skip
    (folder / "federation.toml").write_text(tomli_w.dumps(content))
    return folder / "federation.toml"


def test_a_federation_learns_where_answers_are_and_predict_says_the_same(tmp_path, monkeypatch, capsys):
    summary, _ = run(federation(tmp_path / "fed"), tmp_path / "run", "simulation.cohort=3")
    assert summary["metric"]["name"] == "f1"
    assert summary["metric"]["best"] > max(0.6, summary["metric"]["start"])
    folder, test = tmp_path / "run/adapter", tmp_path / "fed/test.jsonl"
    found = json.loads(headwater("predict", folder, "--file", test, "--metric", "--json").out)
    assert found["f1"] == pytest.approx(summary["metric"]["best"], rel=1e-6)
    first = json.loads(headwater("predict", folder, "--file", test, "--json").out.splitlines()[0])
    assert first["answer"] in "the movie a was good"
    assert "--file" in headwater("predict", folder, "was a good").err
    monkeypatch.chdir(folder)
    code = readme_code(folder).replace('"a text"', '"was a good"')
    code = code.replace('"and its pair"', '"the movie a was good"')
    exec(code.replace('"bert"', repr(str(tmp_path / "fed/bert"))), {})
    assert capsys.readouterr().out.splitlines()[-1] == first["answer"]


def test_a_baseline_that_it_has_not_is_refused(tmp_path):
    path = federation(tmp_path / "fed")
    for baseline in ("majority", "probe"):
        with pytest.raises(ConfigError, match=rf"baselines\.{baseline}"):
            load_federation(path, [f"baselines.{baseline}=true"])
