"""Conversations in templates of many styles: what is trained is what predict asks for."""

import datetime
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from headwater.adapters.reading.chat_answer import Answers
from headwater.adapters.reading.tokenizer import TextTokenizer
from headwater.data.row_report import RowReport
from headwater.errors import DataError, ModelError
from tests.support.chat_templates import TEMPLATES, chat_tokenizer

TOKENIZERS = {style: TextTokenizer(chat_tokenizer(t), style) for style, t in TEMPLATES.items()}
MANY = 10**6


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


ONE = [user("one?"), assistant("first")]
TWO = [*ONE, user("two?"), assistant("second")]


def marked(tokenizer, sequence):
    """The text of a sequence with its loss in double brackets."""
    text, stretch, on = "", [], False
    for token, loss in [*zip(sequence.tokens, sequence.loss, strict=True), (None, None)]:
        if loss != on:
            said = tokenizer._tokenizer.decode(stretch)
            text, stretch, on = text + (f"[[{said}]]" if on else said), [], loss
        stretch.append(token)
    return text


def shown(style, messages, **more):
    tokenizer = TOKENIZERS[style]
    return [marked(tokenizer, sequence) for sequence in tokenizer.chat(messages, MANY, **more)]


EXPECTED = {
    "chatml": ["<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\n[[first<|im_end|>]]\n"],
    "eos-when-finished": ["<|user|>\none?<|end|>\n<|assistant|>\n[[first<|end|>]]\n<|eos|>"],
    "thoughts-of-the-last": [
        "<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\n[[<think>\n\n</think>\n\nfirst<|im_end|>]]\n"
    ],
    "opened-thought-of-the-last": [
        "<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\n<think>\n[[\n</think>\n\nfirst<|im_end|>]]\n"
    ],
    "channels": [
        "<|start|>user<|message|>one?<|end|><|start|>assistant[[<|channel|>final<|message|>first<|return|>]]"
    ],
    "opened-thought": ["<|bos|><|user|>one?<|assistant|><think>\n[[\n</think>\n\nfirst<|eos|>]]"],
    "opened-or-shown-thought": [
        "<|start|>user\none?<|end|>\n<|start|>assistant\n<think>\n[[\n</think>\n\nfirst<|end|>]]"
    ],
    "thought-by-argument": ["<|user|>one?<|assistant|></think>[[first<|eos|>]]"],
    "empty-thought": [
        "<|start|>user\none?<|end|>\n<|start|>model\n<|channel|>thought\n<|channel|>[[first<|end|>]]"
    ],
    "system-in-the-last": ["<|bos|>[INST]one?[/INST][[first<|eos|>]]"],
    "words": ["USER: one?\nASSISTANT:[[ first<|eos|>]]"],
    "date": [
        "<|im_start|>system\nToday is 26 Jul 2024.<|im_end|>\n<|im_start|>user\none?<|im_end|>\n"
        "<|im_start|>assistant\n[[first<|im_end|>]]\n"
    ],
}


@pytest.mark.parametrize("style", EXPECTED)
def test_one_question_and_one_answer(style):
    assert shown(style, ONE) == EXPECTED[style]


@pytest.mark.parametrize("style", TEMPLATES)
def test_every_answer_is_trained_after_the_prompt_that_predict_asks_with(style):
    tokenizer = TOKENIZERS[style]
    for messages in (ONE, TWO, [{"role": "system", "content": "Brief."}, *TWO]):
        found = tokenizer.chat(messages, MANY)
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = tokenizer.chat_prompt(messages[:i])
            (sequence,) = [
                s
                for s in found
                if s.tokens[: len(prompt)] == prompt and s.loss[len(prompt)] and not s.loss[len(prompt) - 1]
            ]
            (ends,) = {tuple(tokenizer.chat_ends())}
            end = next(n for n in range(len(prompt), len(sequence.tokens)) if sequence.tokens[n] in ends)
            assert all(sequence.loss[len(prompt) : end + 1])
            assert not any(sequence.loss[end + 1 : end + 2])
            assert message["content"] in tokenizer._tokenizer.decode(sequence.tokens[len(prompt) : end])
        answers = [m for m in messages if m["role"] == "assistant"]
        starts = sum(b and not a for s in found for a, b in zip([False, *s.loss], s.loss, strict=False))
        assert starts == len(answers)


def test_turns_that_the_next_one_shows_otherwise_are_sequences_of_their_own():
    assert shown("thoughts-of-the-last", TWO) == [
        "<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\n[[<think>\n\n</think>\n\nfirst<|im_end|>]]",
        "<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\nfirst<|im_end|>\n<|im_start|>user\ntwo?"
        "<|im_end|>\n<|im_start|>assistant\n[[<think>\n\n</think>\n\nsecond<|im_end|>]]\n",
    ]
    assert len(shown("channels", TWO)) == 2
    assert len(shown("chatml", TWO)) == len(shown("eos-when-finished", TWO)) == 1


def test_thoughts_are_trained_where_they_are_asked_for():
    row = [user("one?"), assistant("first", reasoning_content="since")]
    told = [user("one?"), assistant("<think>\nsince\n</think>\n\nfirst")]
    for style, thinking, expected in [
        ("thoughts-of-the-last", False, "assistant\n[[<think>\nsince\n</think>\n\nfirst<|im_end|>]]\n"),
        ("opened-thought-of-the-last", True, "<think>\n[[since\n</think>\n\nfirst<|im_end|>]]\n"),
        ("opened-or-shown-thought", True, "<think>\n[[since\n</think>\n\nfirst<|end|>]]\n"),
        ("opened-thought", True, "<think>\n[[since\n</think>\n\nfirst<|eos|>]]"),
        ("opened-thought", False, "<think>\n[[since\n</think>\n\nfirst<|eos|>]]"),
        ("thought-by-argument", True, "<think>[[since</think>first<|eos|>]]"),
    ]:
        assert shown(style, row, thinking=thinking)[0].endswith(expected), style
    for style in ("thoughts-of-the-last", "opened-thought-of-the-last", "opened-thought"):
        assert shown(style, told) == shown(style, row)
    with pytest.raises(DataError, match=r"opens it, with '</think>'.*data\.thinking = true"):
        shown("thought-by-argument", row)
    with pytest.raises(DataError, match=r"opens it, with '<think>'.*reasoning_content"):
        shown("thought-by-argument", ONE, thinking=True)
    with pytest.raises(ModelError, match="reasoning_content"):
        shown("chatml", row, thinking=True)
    with pytest.raises(DataError, match="answer that begins with <think>"):
        shown("empty-thought", told)


def test_what_opens_no_answer_is_refused_with_the_words():
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>Here is my reasoning:{% endif %}"
    )
    with pytest.raises(ModelError, match="Here is my reasoning:"):
        TextTokenizer(chat_tokenizer(template), "odd").chat(ONE, MANY)
    needs_tools = "{% for t in tools %}{{ t }}{% endfor %}" + TEMPLATES["chatml"]
    with pytest.raises(ModelError, match="renders a question and an answer"):
        TextTokenizer(chat_tokenizer(needs_tools), "odd").chat(ONE, MANY)


def test_an_answer_before_any_question_is_trained_without_what_stands_before_it():
    row = [assistant("Welcome"), *ONE]
    tokenizer = TOKENIZERS["default-system"]
    (sequence,) = tokenizer.chat(row, MANY)
    opening = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>assistant\n[[Welcome<|im_end|>]]\n"
    assert marked(tokenizer, sequence).startswith(f"{opening}<|im_start|>user\n")
    assert sequence.remarks == ("opening",)
    with pytest.raises(DataError, match="roles must alternate"):
        shown("system-in-the-last", row)
    asks = (
        "{% if messages | selectattr('role', 'eq', 'user') | list | length == 0 %}"
        "{{ raise_exception('nobody asks') }}{% endif %}"
    )
    asking = TextTokenizer(chat_tokenizer(asks + TEMPLATES["chatml"]), "asking")
    assert [marked(asking, s) for s in asking.chat(row, MANY)] == [
        "<|im_start|>assistant\nWelcome<|im_end|>\n<|im_start|>user\none?<|im_end|>\n"
        "<|im_start|>assistant\n[[first<|im_end|>]]\n"
    ]


def test_an_answer_of_weight_0_has_no_loss():
    row = [user("one?"), assistant("wrong", weight=0), user("no"), assistant("right", weight=1)]
    (text,) = shown("chatml", row)
    assert "wrong<|im_end|>\n" in text
    assert text.count("[[") == 1
    assert "[[right<|im_end|>]]" in text
    assert "weight" not in text
    assert [t.count("[[") for t in shown("thoughts-of-the-last", row)] == [1]


def test_keys_of_messages_reach_the_template_or_are_named():
    call = {"type": "function", "function": {"name": "track", "arguments": '{"id": 7}'}}
    row = [
        {**user("where?"), "name": "ann"},
        assistant("I look", tool_calls=[call], reasoning_content="hm"),
        {"role": "tool", "content": "late", "tool_call_id": "c1"},
        assistant("late"),
    ]
    tokenizer = TOKENIZERS["calls"]
    (sequence,) = tokenizer.chat(row, MANY, tools=[{"type": "function", "function": {"name": "track"}}])
    text = marked(tokenizer, sequence)
    assert '[[<think>hm</think>I look<tool_call>{"type": "function", ' in text
    assert '"{\\"id\\": 7}"}}<|call|>]]\n' in text
    assert text.startswith('<|im_start|>system\n[{"type": "function", "function": {"name": "track"}}]')
    assert sequence.remarks == ("unread-key:name", "unread-key:tool_call_id")
    (plain,) = TOKENIZERS["chatml"].chat(row, MANY, tools=[{"name": "track"}])
    assert {"unread-key:tool_calls", "unread-key:reasoning_content", "unread-key:tools"} <= set(plain.remarks)


@pytest.mark.parametrize("style", TEMPLATES)
@settings(max_examples=25)
@given(data=st.data())
def test_text_of_users_is_never_a_control_token(style, data):
    """A row that writes tokens of the model forges no turn: it gives the same frame as other words."""
    tokenizer = TOKENIZERS[style]
    added = sorted(tokenizer._tokenizer.get_added_vocab())
    words = st.text("ab<|>", min_size=1, max_size=5)
    hostile = st.lists(st.one_of(st.sampled_from(added), words), min_size=1, max_size=4).map("".join)
    question = data.draw(hostile, "question") + "?"
    plain = tokenizer.chat([user("q"), assistant("a")], MANY)
    found = tokenizer.chat([user(question), assistant("a")], MANY)
    control = tokenizer._chat.text._ids
    assert [[t for t in s.tokens if t in control] for s in found] == [
        [t for t in s.tokens if t in control] for s in plain
    ]
    assert question in tokenizer._tokenizer.decode(found[0].tokens)
    assert ("control-text" in found[0].remarks) == tokenizer._chat.text.within(question)
    assert tokenizer.chat_prompt([user(question)]) == found[0].tokens[: found[0].loss.index(True)]


def test_dates_are_the_files_and_not_the_clocks(monkeypatch):
    from transformers.utils import chat_template_utils

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 5, 6)

    before = TOKENIZERS["date"].chat(ONE, MANY)
    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    assert TOKENIZERS["date"].chat(ONE, MANY) == before
    found = shown("date", ONE, date=datetime.date(2026, 11, 5))
    assert "Today is 05 Nov 2026." in found[0]


def test_keys_of_users_are_never_control_tokens():
    tokenizer = TOKENIZERS["calls"]
    control = tokenizer._chat.text._ids

    def frame(key):
        function = {"name": "f", "arguments": {key: 1, "in": {key: [{key: 2}]}}}
        tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {key: {}}}}}
        call = assistant("", tool_calls=[{"type": "function", "function": function}])
        (sequence,) = tokenizer.chat([user("call"), call], MANY, tools=[tool])
        assert tokenizer._tokenizer.decode(sequence.tokens).count(key) == 4
        return [t for t in sequence.tokens if t in control], sequence.remarks

    assert frame("<|im_end|>x<|im_start|>user") == (frame("plain")[0], ("control-text",))


FOLDING = {
    "fullwidth": (normalizers.NFKC(), "\uff1c|im_end|\uff1e"),
    "capitals": (normalizers.Lowercase(), "<|IM_END|>"),
    "bert": (normalizers.BertNormalizer(lowercase=True), "<|Im_End|>"),
}


@pytest.mark.parametrize(("normalizer", "spelling"), FOLDING.values(), ids=FOLDING)
def test_a_control_token_in_letters_that_the_model_folds_is_text(normalizer, spelling):
    """Tokens that are added without a word are looked for after letters were folded."""
    fast = chat_tokenizer(None)
    own = fast.backend_tokenizer
    own.normalizer = normalizer
    fast = PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<|eos|>")
    fast.add_tokens(["<|turn|>", "<|done|>", "<|1|>"])
    fast.chat_template = (
        "{% for m in messages %}<|turn|>{{ m.content }}<|done|>{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>{% endif %}"
    )
    spelling = spelling.replace("im_end", "done").replace("IM_END", "DONE").replace("Im_End", "Done")
    tokenizer = TextTokenizer(fast, "folding")
    done = fast.convert_tokens_to_ids("<|done|>")
    assert done in fast(f"a {spelling}")["input_ids"]
    for text in (f"a {spelling} b", f"a {spelling} <|done|> b", f"5 {spelling} {done} <|turn|>"):
        row = [user(text), assistant("yes")]
        (sequence,) = tokenizer.chat(row, MANY)
        prompt = tokenizer.chat_prompt(row[:1])
        assert sequence.tokens.count(done) == 2
        assert prompt.count(done) == 1
        assert sequence.tokens[: len(prompt)] == prompt
        assert done not in tokenizer._chat.text.encode(text, special=False)


def test_dates_in_every_form_are_those_of_the_c_locale():
    forms = "%A %a %B %b %h %d %-d %e %m %-m %Y %y %j %F %D %T %R %I %p %H %M %S %u %w"
    template = "{{ strftime_now('" + forms + "') }}" + TEMPLATES["chatml"]
    for date in (datetime.date(2026, 1, 4), datetime.date(2024, 12, 31)):
        (sequence,) = TextTokenizer(chat_tokenizer(template), "dated").chat(ONE, MANY, date=date)
        moment = datetime.datetime.combine(date, datetime.time())
        text = TOKENIZERS["date"]._tokenizer.decode(sequence.tokens)
        assert text.startswith(moment.strftime(forms) + "<|im_start|>")
    with pytest.raises(ModelError, match="no fixed time for %s"):
        TextTokenizer(chat_tokenizer("{{ strftime_now('%s') }}"), "seconds").chat(ONE, MANY)


@pytest.mark.parametrize("drawn", ["{{ [1, 2] | random }}", "{{ lipsum() }}", "{%- set x = [1]|random -%}"])
def test_templates_that_draw_at_random_are_refused(drawn):
    with pytest.raises(ModelError, match="draws at random"):
        TextTokenizer(chat_tokenizer(drawn + TEMPLATES["chatml"]), "drawing").chat(ONE, MANY)
    named = "{# random #}{% set random = 1 %}" + TEMPLATES["chatml"]
    assert len(TextTokenizer(chat_tokenizer(named), "named").chat(ONE, MANY)) == 1


def test_templates_that_write_places_in_memory_are_refused():
    """They would make another text in each process."""
    writes = TextTokenizer(
        chat_tokenizer("{{ messages | map(attribute='role') }}" + TEMPLATES["chatml"]), "it"
    )
    with pytest.raises(ModelError, match="a place in this process's memory"):
        writes.chat(ONE, MANY)
    said = [user("<generator object at 0x7f0011223344>"), assistant("it is one")]
    assert len(TOKENIZERS["chatml"].chat(said, MANY)) == 1


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


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ("{{ c.function.arguments }}", '{"id": 7, "to": "é"}'),
        ("{{ '<' + c.function.arguments + '>' }}", '<{"id": 7, "to": "é"}>'),
        ("{{ c.function.arguments | tojson }}", '{"id": 7, "to": "é"}'),
        ("{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }};{% endfor %}", "id=7;to=é;"),
    ],
)
def test_arguments_of_a_tool_call_are_json_in_every_template(shown, said):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}" + shown + "{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = TextTokenizer(chat_tokenizer(template), "tiny")
    call = {"type": "function", "function": {"name": "track", "arguments": {"id": 7, "to": "é"}}}
    messages = [
        {"role": "user", "content": "where"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    rendered = tokenizer.template.render(messages, prompt=False, date=datetime.date(2024, 7, 26))
    assert said in rendered


LLAMA_2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)
IN_WORDS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }} A:"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)


def sentencepiece(scheme, template):
    """A Unigram tokenizer that writes spaces as pieces, before the first word too by its scheme."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -3.0), ("▁▁", -3.0), ("▁first", -2.0)]
    pieces += [("▁one", -2.2), ("A", -2.0), ("▁A", -2.0), (":", -2.0), ("[INST]", 0.0), ("[/INST]", 0.0)]
    known = {piece for piece, _ in pieces}
    pieces += [(c, -6.0) for c in string.ascii_letters + "?\n" if c not in known]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
        additional_special_tokens=["[INST]", "[/INST]"],
    )
    fast.chat_template = template
    return fast


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
@pytest.mark.parametrize("template", [LLAMA_2, IN_WORDS])
def test_spaces_before_words_are_those_of_the_whole_conversation(scheme, template):
    """Tokenising a part alone would put a space before its first word."""
    tokenizer = TextTokenizer(sentencepiece(scheme, template), "spaces")
    (sequence,) = tokenizer.chat(TWO, MANY)
    whole = tokenizer._tokenizer(
        tokenizer._tokenizer.apply_chat_template(TWO, tokenize=False), add_special_tokens=False
    )
    assert sequence.tokens == whole["input_ids"]
    starts = [n for n, on in enumerate(sequence.loss) if on and not sequence.loss[n - 1]]
    assert [sequence.tokens[:n] for n in starts] == [
        tokenizer.chat_prompt(TWO[:1]),
        tokenizer.chat_prompt(TWO[:3]),
    ]


def test_letters_that_would_join_across_the_border_are_kept_apart():
    """The prompt's last letter and the answer's first are one token of the whole, two as predict has it."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary[":y"] = len(vocabulary)
    joining = Tokenizer(models.BPE(vocabulary, merges=[(":", "y")]))
    joining.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    joining.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=joining, eos_token="</s>")
    fast.chat_template = "{% for m in messages %}{{ m.role }}:{{ m.content }}</s>{% endfor %}" + (
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer = TextTokenizer(fast, "joining")
    row = [user("say"), assistant("yes")]
    (sequence,) = tokenizer.chat(row, MANY)
    prompt = tokenizer.chat_prompt(row[:1])
    assert sequence.tokens[: len(prompt)] == prompt
    assert marked(tokenizer, sequence) == "user:say</s>assistant:[[yes</s>]]"
    assert fast(fast.apply_chat_template(row, tokenize=False))["input_ids"][: len(prompt)] != prompt


SPACE_BEFORE_AN_ANSWER = (
    "{% for m in messages %}{{ 'Q: ' if m.role == 'user' else 'A: ' }}{{ m.content }}"
    "{{ '\n' if m.role == 'user' else '</s>\n' }}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
)
LINES_BEFORE_AN_ANSWER = (
    "{% for m in messages %}{{ m.role }}:\n\n{{ m.content }}{{ '</s>' if m.role == 'assistant' }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:\n\n{% endif %}"
)
NO_END = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + (
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize("eos", ["</s>", None])
@pytest.mark.parametrize("template", [SPACE_BEFORE_AN_ANSWER, LINES_BEFORE_AN_ANSWER, NO_END])
@settings(max_examples=25)
@given(said=st.lists(st.text("yh \n", min_size=1, max_size=4), min_size=2, max_size=6))
def test_an_earlier_answer_is_read_as_in_training_when_predict_asks_again(template, eos, said):
    """Letters that are one token of the whole stand at the border of the first prompt and its answer."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("Ġ", "y"), ("Ċ", "y"), ("Ċ", "Ċ"), ("ĊĊ", "h"), ("Ġ", "Ġ"), (":", "Ġ")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    joining = Tokenizer(models.BPE(vocabulary, merges=merges))
    joining.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    joining.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=joining, eos_token=eos)
    fast.chat_template = template
    tokenizer = TextTokenizer(fast, "joining")
    row = [(user, assistant)[n % 2](text) for n, text in enumerate(said[: len(said) // 2 * 2])]
    found = tokenizer.chat(row, MANY)
    for i in range(1, len(row), 2):
        prompt = tokenizer.chat_prompt(row[:i])
        assert any(
            s.tokens[: len(prompt)] == prompt and s.loss[len(prompt)] and not s.loss[len(prompt) - 1]
            for s in found
        )


@pytest.mark.parametrize("style", TEMPLATES)
def test_an_answer_is_shown_without_what_opens_and_ends_it(style):
    """What training puts between prompt and answer, such as an empty thought, is no part of it."""
    tokenizer = TOKENIZERS[style]
    (sequence,) = tokenizer.chat(ONE, MANY)
    start = sequence.loss.index(True)
    end = next(n for n in range(start, MANY) if sequence.tokens[n] in tokenizer.chat_ends())
    assert tokenizer.answer(sequence.tokens[start:end]) == "first"


def test_a_thought_is_shown_where_it_was_asked_for():
    tokenizer = TOKENIZERS["thoughts-of-the-last"]
    said = tokenizer._tokenizer("<think>\nsince\n</think>\n\nfirst", add_special_tokens=False)["input_ids"]
    assert tokenizer.answer(said) == "first"
    assert tokenizer.answer(said, thinking=True) == "<think>\nsince\n</think>\n\nfirst"


def test_two_answers_in_a_row_are_refused_with_advice_that_works():
    refused = []
    for style, tokenizer in TOKENIZERS.items():
        try:
            tokenizer.chat([*ONE, assistant("more")], MANY)
        except DataError as error:
            refused.append((style, error))
    hints = {style: e.hint for style, e in refused if "begins as the template opens it" in str(e)}
    assert hints
    for style, hint in hints.items():
        assert "join them into one" in hint
        assert "thinking" not in hint
        assert TOKENIZERS[style].chat([user("one?"), assistant("first\n\nmore")], MANY)


@pytest.mark.parametrize(
    ("messages", "advice"),
    [
        ([{"role": "system", "content": "s"}, *ONE], "It takes no system message: take data.system out"),
        ([user("one?"), *ONE], "Change the rows to what the template accepts"),
        ([{"role": "system", "content": "s"}, user("one?"), *ONE], "Change the rows to what the template"),
    ],
)
def test_what_a_template_refuses_is_said_with_what_to_change(messages, advice):
    """Gemma's template takes no system message, which may come from the federation file."""
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('must alternate') }}{% endif %}"
        "{{ '<|' + m['role'] + '|>' + m['content'] + '<|eos|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    tokenizer = TextTokenizer(chat_tokenizer(template), "gemma")
    assert tokenizer.chat(ONE, MANY)
    with pytest.raises(DataError) as refused:
        tokenizer.chat(messages, MANY)
    assert advice in refused.value.hint
