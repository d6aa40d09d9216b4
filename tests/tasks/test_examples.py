from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from headwater.adapters.reading.tokenizer import TextTokenizer
from headwater.config.data import CausalLMData, ClassificationData, InstructionData
from headwater.config.partitions import IidPartition
from headwater.data.conversations import messages_of
from headwater.data.row_check import tokenise_rows
from headwater.data.row_report import RowReport
from headwater.data.table_row import TableRow
from headwater.errors import DataError, ModelError
from headwater.tasks.batches import IGNORED, by_row
from headwater.tasks.inputs import encode_texts
from tests.data.toys import Bare, Letters, Turns, table

IID = IidPartition(kind="iid", clients=1)


def encoded(rows, row, settings, tokenizer):
    return encode_texts(TableRow(rows, row, settings), settings.max_tokens, tokenizer)


def classification(**more):
    return ClassificationData(kind="classification", path="x", partition=IID, labels=("no", "yes"), **more)


def causal(max_tokens):
    return CausalLMData(kind="causal-lm", path="x", partition=IID, max_tokens=max_tokens)


def instruction(**more):
    return InstructionData(kind="instruction", path="x", partition=IID, **more)


def test_classification_gives_tokens_and_the_labels_index():
    rows = table([{"text": "abc", "label": "yes"}, {"text": "abcdefgh", "label": "no"}])
    first, second = tokenise_rows(rows, [0, 1], classification(max_tokens=5), Letters())
    assert first.tokens.tolist() == [1, 97, 98, 99, 2]
    assert (first.tokens.dtype, first.targets.dtype) == (np.int32, np.int64)
    assert first.targets.tolist() == [1]
    assert len(second.tokens) == 5
    assert second.targets.tolist() == [0]


def test_an_unknown_label_is_named_with_its_line_and_the_known_ones():
    rows = table([{"text": "a", "label": "yes"}, {"text": "b", "label": "Yes"}])
    with pytest.raises(DataError, match=r"rows.jsonl:2: expected one of the labels 'no', 'yes'.*got 'Yes'"):
        tokenise_rows(rows, [0, 1], classification(), Letters())


def test_labels_may_be_numbers():
    settings = classification().model_copy(update={"labels": ("0", "1")})
    rows = table([{"text": "a", "label": 1}, {"text": "b", "label": "0"}])
    found = tokenise_rows(rows, [0, 1], settings, Letters())
    assert [e.targets.tolist() for e in found] == [[1], [0]]


@given(
    texts=st.lists(st.text("abcdef", min_size=1, max_size=60), min_size=1, max_size=4),
    max_tokens=st.integers(2, 20),
    tokenizer=st.sampled_from([Letters(), Bare()]),
)
def test_windows_predict_every_token_but_a_documents_first_exactly_once(texts, max_tokens, tokenizer):
    wraps = [1] if tokenizer.bos else []
    for text in texts:
        document = [*wraps, *map(ord, text), *([2] if wraps else [])]
        windows = tokenise_rows(table([{"text": text}]), [0], causal(max_tokens), tokenizer)
        assert all(2 <= len(w.tokens) == len(w.targets) <= max_tokens for w in windows)
        assert all(w.targets[0] == IGNORED and (w.targets[1:] == w.tokens[1:]).all() for w in windows)
        predicted = [t for w in windows for t in w.targets[1:].tolist()]
        assert predicted == document[1:]
        assert not windows or windows[0].tokens[0] == document[0]
        assert all(left.tokens[-1] == right.tokens[0] for left, right in pairwise(windows))


def test_a_document_without_an_example_is_counted_with_the_first_line():
    report = RowReport()
    rows = table([{"text": "ab"}, {"text": "x"}, {"text": "y"}])
    assert len(tokenise_rows(rows, [0, 1, 2], causal(4), Bare(), report)) == 1
    assert report.sentences() == (
        "2 rows have fewer than two tokens, so that there is nothing to predict: they give no example "
        "(first rows.jsonl:2)",
    )
    whole = RowReport()
    tokenise_rows(rows, [0, 1, 2], causal(4), Letters(), whole)  # two tokens around each text
    assert not whole.counts


def test_documents_are_not_mixed():
    rows = table([{"text": "aaaa"}, {"text": "bbbb"}])
    windows = tokenise_rows(rows, [0, 1], causal(3), Bare())
    assert len(by_row(windows)) == 2 < len(windows)  # what privacy counts as one
    assert all(len(set(w.tokens.tolist())) == 1 for w in windows)


def test_instruction_has_loss_on_the_answer_only():
    rows = table([{"prompt": "hi", "answer": "yo"}])
    (example,) = tokenise_rows(rows, [0], instruction(), Letters())
    assert example.tokens.tolist() == [3, 104, 105, 2, 3, 121, 111, 2]
    assert example.targets.tolist() == [IGNORED] * 5 + [121, 111, 2]


def test_the_first_token_never_has_loss():
    class Blunt(Letters):
        def chat(self, messages, max_tokens, **settings):
            return [Turns([7, 8, 9], [True, True, True])]

    (example,) = tokenise_rows(table([{"prompt": "q", "answer": "a"}]), [0], instruction(), Blunt())
    assert example.targets.tolist() == [IGNORED, 8, 9]


def test_an_answer_of_several_sequences_gives_several_examples():
    class Rewriting(Letters):
        def chat(self, messages, max_tokens, **settings):
            return [
                Turns([7, 8], [False, True]),
                Turns([7, 9], [False, False]),
                Turns([5, 6, 8], [False, True, True], remarks=("control-text",)),
            ]

    report = RowReport()
    rows = table([{"prompt": "q", "answer": "a"}])
    found = tokenise_rows(rows, [0], instruction(), Rewriting(), report)
    assert [e.tokens.tolist() for e in found] == [[7, 8], [5, 6, 8]]
    assert report.counts == {"control-text": 1}


def test_cuts_are_counted_with_the_first_line():
    rows = table([{"prompt": "q", "answer": "a"}, *[{"prompt": "q", "answer": "long answer"}] * 2])
    report = RowReport()
    tokenise_rows(rows, [0, 1, 2], instruction(max_tokens=6), Letters(), report)
    assert report.counts == {"cut": 2, "cut-answer": 2}
    assert report.first == {"cut": "rows.jsonl:2", "cut-answer": "rows.jsonl:2"}
    assert report.sentences()[1] == (
        "2 rows have an answer whose end was cut off: they teach no end (first rows.jsonl:2)"
    )


def test_messages_keep_every_key():
    said = [
        {"role": "user", "content": "q", "name": "ann"},
        {"role": "assistant", "content": "a", "weight": 1, "reasoning_content": "because"},
    ]
    assert messages_of(table([{"m": said}]), 0, instruction(messages="m")) == said


def test_an_answer_beyond_max_tokens_is_refused_by_line():
    rows = table([{"prompt": "hello", "answer": "yo"}])
    with pytest.raises(DataError, match=r"rows.jsonl:1: expected an answer.*max_tokens = 6"):
        tokenise_rows(rows, [0], instruction(max_tokens=6), Letters())


def test_messages_keep_their_system_message_or_get_ours():
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    own = [{"role": "system", "content": "theirs"}, *said]
    rows = table([{"m": said}, {"m": own}])
    settings = instruction(messages="m", system="ours")
    assert messages_of(rows, 0, settings) == [{"role": "system", "content": "ours"}, *said]
    assert messages_of(rows, 1, settings) == own


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("text", "a list.*got str.*CSV cannot hold lists"),
        ([], "a list"),
        (["text"], "an answer of the assistant"),
        ([{"role": "robot", "content": "a"}], "role one of"),
        ([{"role": "user", "content": ""}], "role one of"),
        ([{"role": "user", "content": 3}], "role one of"),
        ([{"role": "user", "content": "q"}], "an answer of the assistant"),
    ],
)
def test_messages_that_are_none(value, message):
    with pytest.raises(DataError, match=f"rows.jsonl:1: .*{message}"):
        messages_of(table([{"m": value}]), 0, instruction(messages="m"))


@pytest.fixture(scope="module")
def bert():
    """As BERT: it drops control characters, and puts tokens around a text and between two."""
    vocabulary = {t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "movie", "a"])}
    own = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    own.normalizer = normalizers.BertNormalizer()
    own.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    own.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=own, **special), "bert")


@pytest.mark.parametrize("nothing", ["\u200b", "\ufeff\u200d", "\x01\x02", "\u200b" * 40], ids=range(4))
def test_a_text_that_leaves_only_what_stands_around_every_text_is_refused(bert, nothing):
    rows = table([{"text": "good", "label": "no"}, {"text": nothing, "label": "yes"}])
    assert len(encoded(rows, 0, classification(max_tokens=32), bert)) == 3
    with pytest.raises(DataError, match=r"rows.jsonl:2: expected a text of at least one token"):
        encoded(rows, 1, classification(max_tokens=32), bert)
    pairs = table([{"text": x, "pair": y, "label": "no"} for x, y in [(nothing, "good"), ("good", nothing)]])
    for row in (0, 1):
        with pytest.raises(DataError, match=rf"rows.jsonl:{row + 1}: expected texts of at least one token"):
            encoded(pairs, row, classification(max_tokens=32, text_pair="pair"), bert)


@pytest.mark.parametrize("pair", [False, True])
def test_a_cut_that_leaves_nothing_of_a_text_is_refused(bert, pair):
    rows = table([{"text": "good", "pair": "movie", "label": "no"}])
    least = 5 if pair else 3
    more = {"text_pair": "pair"} if pair else {}
    for most in range(2, least):
        with pytest.raises(
            DataError, match=rf"rows.jsonl:1: expected some of .* within data.max_tokens = {most}"
        ):
            encoded(rows, 0, classification(max_tokens=most, **more), bert)
    assert len(encoded(rows, 0, classification(max_tokens=least, **more), bert)) == least


def test_a_text_of_no_tokens_is_refused():
    class Deaf(Letters):
        def encode(self, text, max_tokens, pair=None):
            return []

    with pytest.raises(DataError, match=r"at least one token"):
        tokenise_rows(table([{"text": "a", "label": "no"}]), [0], classification(), Deaf())


def test_a_template_whose_flags_do_not_fit_is_the_models_fault():
    class Wrong(Letters):
        def chat(self, messages, max_tokens, **settings):
            return [Turns([1, 2], [True])]

    with pytest.raises(ModelError, match=r"2 loss flags, got 1"):
        tokenise_rows(table([{"prompt": "q", "answer": "a"}]), [0], instruction(), Wrong())
