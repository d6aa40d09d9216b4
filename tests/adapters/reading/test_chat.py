"""Conversations in templates of many styles: what is trained is what predict asks for."""

import datetime

import pytest

from headwater.adapters.reading.tokenizer import TextTokenizer
from headwater.errors import DataError, ModelError
from tests.adapters.reading.chats import MANY, ONE, TOKENIZERS, TWO, assistant, marked, shown, user
from tests.support.chat_templates import TEMPLATES, chat_tokenizer

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
