"""Alpaca, ShareGPT, OpenAI messages, pairs: recognised where one fits, refused where several do."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.config.data import ClassificationData, InstructionData
from headwater.config.partitions import IidPartition
from headwater.data.conversations import conversation_of, messages_of
from headwater.data.files.layouts import layout_of, texts_of
from headwater.errors import DataError
from tests.data.toys import table

IID = IidPartition(kind="iid", clients=1)
Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def instruction(**more):
    return InstructionData(kind="instruction", path="x", partition=IID, **more)


def classification(**more):
    return ClassificationData(kind="classification", path="x", partition=IID, labels=("no", "yes"), **more)


def said(row, **more):
    return messages_of(table([row]), 0, instruction(**more))


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "q", "answer": "a"}, "columns"),
        ({"instruction": "q", "output": "a"}, "alpaca"),
        ({"instruction": "q", "input": "", "output": "a", "text": "### all"}, "alpaca"),
        ({"instruction": "q", "response": "a", "category": "open"}, "columns"),
        ({"prompt": "q", "completion": "a"}, "columns"),
        ({"question": "q", "answer": "a"}, "columns"),
        ({"query": "q", "response": "a"}, "columns"),
        ({"messages": [Q, A]}, "messages"),
        ({"conversations": [Q, A]}, "messages"),
        ({"messages": json.dumps([Q, A])}, "messages"),
        ({"prompt": [Q], "completion": [A]}, "columns"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "sharegpt"),
        ({"conversations": [{"from": "user", "value": "q"}, {"from": "chatgpt", "value": "a"}]}, "sharegpt"),
        ({"conversations": ["q", "a"], "source": "wiki"}, "turns"),
    ],
)
def test_usual_rows_are_the_same_conversation(row, kind):
    assert said(row) == [Q, A]
    found = layout_of(table([row]), 0, instruction())
    assert found.kind == kind
    assert found.recognised == ("prompt" not in row or "answer" not in row)


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"prompt": "q", "answer": "a", "messages": [Q, A]}, r"data\.format"),
        ({"instruction": "q", "output": "a", "response": "b"}, r"data\.format"),
        ({"messages": [Q, A], "conversations": [Q, A]}, r"data\.messages"),
        ({"question": "q", "answer": "a", "instruction": "q", "output": "a"}, r"data\.format"),
    ],
)
def test_rows_that_can_be_read_in_two_ways_are_refused_with_the_key_to_set(row, key):
    with pytest.raises(DataError, match=rf"rows.jsonl: expected rows that can be read in one way.*{key}"):
        said(row)


def test_what_the_file_says_is_done():
    both = {"prompt": "q", "answer": "a", "instruction": "i", "output": "o", "messages": [Q, A]}
    assert said(both, format="columns") == [Q, A]
    assert said(both, format="alpaca")[0]["content"] == "i"
    assert said(both, format="messages") == [Q, A]
    assert said(both, messages="messages") == [Q, A]
    assert said(both, prompt="instruction", answer="output")[1]["content"] == "o"
    with pytest.raises(DataError, match=r"a column 'body'"):
        said(both, prompt="body")
    with pytest.raises(DataError, match=r"a column 'talk'"):
        said(both, messages="talk")
    with pytest.raises(DataError, match=r"a column 'prompt', got the columns 'x'"):
        said({"x": "y"})


def test_alpaca_input_system_and_history():
    row = {"instruction": "Add.", "input": "1 and 2", "output": "3", "system": "You count.",
           "history": [["hi", "hello"]]}  # fmt: skip
    assert said(row) == [
        {"role": "system", "content": "You count."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "Add.\n\n1 and 2"},
        {"role": "assistant", "content": "3"},
    ]
    with pytest.raises(DataError, match=r"pairs of question and answer in column 'history'"):
        said({**row, "history": ["hi"]})


def test_sharegpt_systems_and_tools():
    turns = [
        {"from": "human", "value": "q"},
        {"from": "gpt", "value": "a", "weight": 0},
        {"from": "observation", "value": "seen"},
        {"from": "gpt", "value": "b"},
    ]
    row = {"conversations": turns, "system": "You see.", "tools": '[{"name": "look"}]'}
    found = conversation_of(table([row]), 0, instruction())
    assert [m["role"] for m in found.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert found.messages[2]["weight"] == 0
    assert found.tools == [{"name": "look"}]
    with pytest.raises(DataError, match=r"from one of human, .*got 'narrator'"):
        said({"conversations": [*turns, {"from": "narrator", "value": "{}"}]})


@pytest.mark.parametrize(
    "value",
    ['{"name": "sum", "arguments": {"of": [1, 2]}}', '[{"name": "sum", "parameters": {"of": [1, 2]}}]'],
)
def test_sharegpt_calls_of_functions(value):
    turns = [("human", "1 + 2?"), ("function_call", value), ("observation", "3"), ("gpt", "three")]
    found = said({"conversations": [{"from": who, "value": text} for who, text in turns]})
    assert [m["role"] for m in found] == ["user", "assistant", "tool", "assistant"]
    function = {"name": "sum", "arguments": {"of": [1, 2]}}
    assert found[1]["tool_calls"] == [{"type": "function", "function": function}]
    assert found[2]["content"] == "3"
    turns[1] = ("function_call", "sum(1, 2)")
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*\"name\", \"arguments\".*got 'sum\(1, 2\)'"):
        said({"conversations": [{"from": who, "value": text} for who, text in turns]})


def test_lists_of_texts_are_turns_and_one_without_an_answer_is_refused():
    found = said({"conversations": ["q", "a", "q2", "a2"]}, system="be short")
    assert [m["role"] for m in found] == ["system", *["user", "assistant"] * 2]
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*answer"):
        said({"conversations": ["q"]})
    with pytest.raises(DataError, match=r"a list of texts in column 'conversations', got \['q', 7\]"):
        said({"conversations": ["q", 7]})


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, {"answer": "chosen"}),
        ({"question": "q", "chosen": "a", "rejected": "b"}, {"prompt": "question", "answer": "chosen"}),
        ({"prompt": [Q], "chosen": [A], "rejected": [A]}, {"answer": "chosen"}),
        ({"chosen": [Q, A], "rejected": [Q, A]}, {"messages": "chosen"}),
        ({"prompt": "q", "chosen": [Q, A], "rejected": [Q, A]}, {"messages": "chosen"}),
        ({"prompt": "q", "completion": "a", "label": False}, {"answer": "completion"}),
    ],
)
def test_preferences_are_refused_with_settings_that_train_on_the_preferred(row, hint):
    with pytest.raises(DataError, match="preference data") as found:
        said(row)
    for key, value in hint.items():
        assert f'data.{key} = "{value}"' in str(found.value)
    told = [m for m in said(row, **hint) if m.pop("weight", 1)]
    assert told == [Q, A]


def test_preferences_without_a_prompt_of_their_own():
    row = {"chosen": "Human: q Assistant: a", "rejected": "Human: q Assistant: b"}
    with pytest.raises(DataError, match=r"preference data.*into the columns prompt and answer"):
        said(row)


def test_openai_messages_keep_what_changes_their_meaning():
    call = {"id": "c1", "type": "function", "function": {"name": "track", "arguments": '{"id": 7}'}}
    row = {
        "messages": [
            {"role": "developer", "content": "be short"},
            {"role": "user", "content": [{"type": "text", "text": "where "}, {"text": "is it"}]},
            {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
            {"role": "tool", "content": "", "tool_call_id": "c1"},
            {"role": "assistant", "content": "late", "weight": 1.0, "reasoning_content": "hm", "name": "bot"},
        ],
        "tools": [{"type": "function"}],
    }  # fmt: skip
    found = conversation_of(table([row]), 0, instruction(system="not used"))
    assert [m["content"] for m in found.messages] == ["be short", "where is it", "", "", "late"]
    assert found.messages[2] == {"role": "assistant", "content": "", "tool_calls": [
        {**call, "function": {"name": "track", "arguments": {"id": 7}}}]}  # fmt: skip
    assert found.messages[4] == {
        "role": "assistant", "content": "late", "weight": 1, "reasoning_content": "hm", "name": "bot",
    }  # fmt: skip
    assert found.tools == [{"type": "function"}]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([Q, {**A, "weight": 0.5}], "a weight of 0 or 1, got 0.5"),
        ([Q, {**A, "weight": 0}], "an answer whose weight is not 0"),
        (
            [Q, {"role": "assistant", "content": [{"type": "image_url"}]}],
            "parts of type 'text' alone, got 'image_url'",
        ),
        ([Q, {"role": "assistant", "content": "half \ud800"}], "half of a surrogate pair"),
        ([Q, {**A, "name": "half \ud800"}], "half of a surrogate pair"),
        ([Q, {"role": "assistant", "content": "nul \x00"}], "without NUL characters, got one at character 4"),
        ([Q, {**A, "tool_calls": "f()"}], "a list of objects as 'tool_calls'"),
        ([Q, {**A, "tool_calls": [{"function": {"arguments": "{"}}]}], "valid JSON in 'arguments'"),
        ([Q, {"role": "human", "content": "x"}, A], "role one of system, .*got 'human'"),
        ("[{", "valid JSON in 'messages'"),
    ],
)
def test_messages_that_cannot_be_passed_on_are_refused_by_line(messages, message):
    with pytest.raises(DataError, match=f"rows.jsonl:1: .*{message}"):
        said({"messages": messages}, messages="messages")


def test_each_file_has_its_layout():
    rows = table([{"instruction": "q", "output": "a"}, {"messages": [Q, A]}])
    rows = type(rows)(
        rows.columns, (rows.files[0], rows.files[0].with_name("b.jsonl")), [0, 1], [1, 1], ["line"] * 2
    )
    assert [messages_of(rows, i, instruction()) for i in range(2)] == [[Q, A]] * 2
    assert [layout_of(rows, i, instruction()).kind for i in range(2)] == ["alpaca", "messages"]


@pytest.mark.parametrize(
    "names",
    [("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
     ("question", "sentence"), ("text1", "text2"), ("sentence_A", "sentence_B")],
)  # fmt: skip
def test_pairs_of_texts_are_recognised(names):
    rows = table([{names[0]: "one", names[1]: "two", "label": "yes", "idx": 3}])
    assert texts_of(rows, 0, classification()) == ("one", "two")
    assert layout_of(rows, 0, classification()).recognised


def test_pairs_of_texts_as_the_file_says_and_two_that_both_fit():
    row = {"body": "one", "title": "two", "premise": "p", "hypothesis": "h", "label": "yes"}
    assert texts_of(table([row]), 0, classification(text="body", text_pair="title")) == ("one", "two")
    assert texts_of(table([row]), 0, classification(text="body")) == ("one", None)
    with pytest.raises(DataError, match=r"read in one way.*data\.text and data\.text_pair"):
        texts_of(table([{**row, "text1": "a", "text2": "b"}]), 0, classification())
    with pytest.raises(DataError, match=r"rows.jsonl:1: .*'title', got an empty text"):
        texts_of(table([{**row, "title": " "}]), 0, classification(text="body", text_pair="title"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["role", "content", "from", "value", "weight", "tool_calls", "function", "arguments", "type", "text"]
    ), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(
    value=JSON,
    name=st.sampled_from(["messages", "conversations", "instruction", "history", "tools", "system"]),
)
def test_whatever_a_row_holds_it_is_a_conversation_or_a_data_error(value, name):
    row = {"instruction": "q", "output": "a", name: value}
    if name in ("messages", "conversations"):
        row = {name: value}
    try:
        found = conversation_of(table([row]), 0, instruction())
    except DataError:
        return
    assert any(m["role"] == "assistant" for m in found.messages)
    assert all(isinstance(m["content"], str) for m in found.messages)
    json.dumps(found.messages, allow_nan=True)


def test_of_messages_on_both_sides_only_the_answers_are_learnt():
    before = [Q, {**A, "content": "once"}, {"role": "tool", "content": "t"}, {**A, "weight": 1}, Q]
    messages = said({"prompt": before, "completion": [A]})
    assert [m.get("weight") for m in messages if m["role"] == "assistant"] == [0, 0, None]
    assert [m["content"] for m in messages] == ["q", "once", "t", "a", "q", "a"]
    with pytest.raises(DataError, match="an answer of the assistant in 'completion', got none"):
        said({"prompt": [Q, A], "completion": [Q]})
