"""Conversations beyond the cut, and how an answer ends."""

import pytest
from tokenizers import Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from headwater.adapters.reading.chat_answer import Answers
from headwater.adapters.reading.tokenizer import TextTokenizer
from headwater.data.row_report import RowReport
from headwater.errors import DataError
from tests.adapters.reading.chats import MANY, ONE, TOKENIZERS, TWO, assistant, user
from tests.support.chat_templates import TEMPLATES, chat_tokenizer


def test_an_answer_that_no_token_ends_is_named():
    tokenizer = TextTokenizer(chat_tokenizer(TEMPLATES["words"], eos=None), "endless")
    (sequence,) = tokenizer.chat(ONE, MANY)
    assert sequence.remarks == ("no-end",)
    assert tokenizer.chat_ends() == []


@pytest.mark.parametrize("style", TEMPLATES)
@pytest.mark.parametrize("thought", [None, "since that is so"])
def test_a_cut_takes_nothing_that_is_within(style, thought):
    """Reading stops at an answer whose prompt is beyond the cut: the result is that of cutting the whole."""
    tokenizer = TOKENIZERS[style]
    more = {} if thought is None else {"reasoning_content": thought}
    row = [m for n in range(4) for m in (user(f"{n}?"), assistant(f"no {n}", **more))]
    try:
        whole = tokenizer.chat(row, MANY)
    except DataError:
        return  # a template that takes no thoughts
    for most in range(10, sum(len(s.tokens) for s in whole), 7):
        found = [(s.tokens, s.loss) for s in tokenizer.chat(row, most) if any(s.loss)]
        assert found == [(s.tokens[:most], s.loss[:most]) for s in whole if any(s.loss[:most])]
        cut = [s for s in tokenizer.chat(row, most) if s.cut or "cut" in s.remarks]
        assert bool(cut) == any(len(s.tokens) > most for s in whole)


def test_answers_beyond_the_cut_are_not_read(monkeypatch):
    asked = []
    real = Answers.last
    monkeypatch.setattr(Answers, "last", lambda self, said: asked.append(len(said)) or real(self, said))
    for style in ("chatml", "thoughts-of-the-last", "channels"):
        asked.clear()
        row = [m for n in range(50) for m in (user(f"{n}?"), assistant(f"no {n}"))]
        found = TOKENIZERS[style].chat(row, 100)
        assert any("cut" in s.remarks for s in found)
        assert max(asked) < 20
        odd = "{% if messages | length > 99 %}{{ raise_exception('no such role') }}{% endif %}"
        refusing = TextTokenizer(chat_tokenizer(odd + TEMPLATES[style]), "odd")
        with pytest.raises(DataError, match="no such role"):
            refusing.chat(row, 100)


@pytest.mark.parametrize("style", TEMPLATES)
def test_what_training_puts_after_a_call_is_among_the_ends(style):
    tokenizer = TOKENIZERS[style]
    call = {"type": "function", "id": "abcdefghi", "function": {"name": "f", "arguments": {"id": 7}}}
    try:
        (sequence,) = tokenizer.chat([user("q"), assistant("", tool_calls=[call])], MANY)
    except DataError:
        return  # a template that refuses calls
    last = [t for t, on in zip(sequence.tokens, sequence.loss, strict=True) if on][-1]
    assert last in tokenizer.chat_ends()
    assert len(tokenizer.chat_ends()) == (2 if style == "calls" else 1)


def test_marks_of_a_template_that_are_no_tokens_are_named():
    fast = chat_tokenizer(None)
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(fast.backend_tokenizer.model), eos_token="<|eos|>", unk_token="<|eos|>"
    )
    bare.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.chat_template = TEMPLATES["chatml"]
    (sequence,) = TextTokenizer(bare, "bare").chat([user("<|x|>"), assistant("a")], MANY)
    assert sequence.remarks[:2] == ("frame-text:<|im_end|>", "frame-text:<|im_start|>")
    report = RowReport()
    report.note(sequence.remarks[:1], "a.jsonl:1")
    assert "no token of the model's tokenizer" in report.sentences()[0]
    assert "'<|im_end|>'" in report.sentences()[0]
    (sequence,) = TOKENIZERS["chatml"].chat([user("<|x|>"), assistant("a")], MANY)
    assert sequence.remarks == ()


def test_a_cut_is_told_and_whether_it_took_an_end():
    tokenizer = TOKENIZERS["chatml"]
    (whole,) = tokenizer.chat(TWO, MANY)
    ends = [n for n, t in enumerate(whole.tokens) if whole.loss[n] and t in tokenizer.chat_ends()]
    (kept,) = tokenizer.chat(TWO, ends[0] + 1)
    assert (kept.cut, kept.cut_answer) == (True, False)
    (kept,) = tokenizer.chat(TWO, ends[0])
    assert (kept.cut, kept.cut_answer) == (True, True)
    assert (whole.cut, whole.cut_answer) == (False, False)
