"""All rows before round 0: bad ones at once, everything that nobody would see named once."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.data.federated import FederatedData
from headwater.data.files.problems import BadRows
from headwater.errors import DataError, ModelError
from tests.data.test_federated import KEY, classes, federation, labelled
from tests.data.toys import Letters, write_jsonl

CHAT = {
    "kind": "instruction",
    "path": "clients",
    "partition": {"kind": "files"},
    "max_tokens": 12,
    "validation_fraction": 0.0,
}


def chat(folder, **more):
    return federation(folder, {**CHAT, **more}, kind="causal-lm")


def turns(prompt, answer="ok"):
    return {"prompt": prompt, "answer": answer}


def test_a_prompt_that_fills_max_tokens_is_found_before_the_first_round_with_its_owner(tmp_path):
    write_jsonl(tmp_path / "clients" / "anna.jsonl", [turns(f"q{i}") for i in range(8)])
    rows = [turns("q"), turns("far too long a prompt"), turns("q", "a"), turns("another that is too long")]
    write_jsonl(tmp_path / "clients" / "ben.jsonl", rows)
    loaded = chat(tmp_path)
    with pytest.raises(BadRows) as caught:
        FederatedData.open(loaded, Letters(), KEY)
    assert caught.value.count == 2
    assert [p.who for p in caught.value.problems] == [f"{tmp_path}/clients/ben.jsonl:{n}" for n in (2, 4)]
    assert str(caught.value).endswith("Raise data.max_tokens, or shorten the row or take it out.")
    # the owner's own device says the same of its own file
    with pytest.raises(BadRows) as own:
        FederatedData.own(loaded, tmp_path / "clients" / "ben.jsonl", "ben", Letters(), KEY)
    assert str(own.value) == str(caught.value)


def test_a_worker_does_not_look_again(tmp_path):
    class Counting(Letters):
        calls = 0

        def chat(self, *args, **kwargs):
            Counting.calls += 1
            return super().chat(*args, **kwargs)

    write_jsonl(tmp_path / "clients" / "anna.jsonl", [turns(f"q{i}") for i in range(8)])
    data = FederatedData.open(chat(tmp_path), Counting(), KEY)
    assert Counting.calls == 8
    data.client("anna")
    assert Counting.calls == 8  # what was checked is what is trained
    FederatedData.open(chat(tmp_path), Counting(), KEY, check=False)
    assert Counting.calls == 8


def test_bad_rows_of_every_kind_and_file_come_together(tmp_path):
    rows = [{"text": "a", "label": "a", "owner": "x"}, {"text": "b", "label": "z", "owner": "x"},
            {"label": "a", "owner": "x"}, {"text": "c", "label": "a"}]  # fmt: skip
    write_jsonl(tmp_path / "data.jsonl", rows)
    with (tmp_path / "data.jsonl").open("a") as file:
        file.write("{\n")
    write_jsonl(tmp_path / "test.jsonl", [{"text": " ", "label": "a"}])
    with pytest.raises(BadRows) as caught:
        FederatedData.open(federation(tmp_path, classes(test="test.jsonl")), Letters(), KEY)
    names = [p.who.removeprefix(f"{tmp_path}/") for p in caught.value.problems]
    assert sorted(names) == ["data.jsonl:2", "data.jsonl:3", "data.jsonl:4", "data.jsonl:5", "test.jsonl:1"]


def test_a_file_without_a_column_is_said_once_and_not_of_every_row(tmp_path):
    write_jsonl(tmp_path / "c" / "anna.jsonl", labelled(20, "x"))
    write_jsonl(tmp_path / "c" / "ben.jsonl", [{"body": "t", "label": "a"} for _ in range(20)])
    loaded = federation(tmp_path, classes(path="c", partition={"kind": "files"}))
    with pytest.raises(
        DataError, match=r"ben.jsonl: expected a column 'text', got the columns 'label', 'body'"
    ):
        FederatedData.open(loaded, None, KEY)


def test_a_template_that_takes_no_row_is_the_models_fault_and_of_one_row_the_rows(tmp_path):
    class Picky(Letters):
        refused = "q"

        def chat(self, messages, *args, **kwargs):
            if messages[0]["content"].startswith(self.refused):
                raise ModelError("chat template of m", expected="other messages", got="these")
            return super().chat(messages, *args, **kwargs)

    write_jsonl(tmp_path / "clients" / "anna.jsonl", [turns("q1"), turns("x1"), turns("q2")])
    with pytest.raises(BadRows, match=r"anna.jsonl:1: chat template of m: expected other messages"):
        FederatedData.open(chat(tmp_path), Picky(), KEY)
    Picky.refused = ""
    with pytest.raises(ModelError, match=r"^chat template of m: "):
        FederatedData.open(chat(tmp_path), Picky(), KEY)


def test_what_nobody_reads_and_what_counts_twice_is_named_once(tmp_path):
    rows = [{"text": f"t{i}", "label": "a", "owner": "x", "id": i, "weight": 2} for i in range(30)]
    rows += [rows[0], {**rows[1], "label": "b"}, rows[2], {"text": "long " * 40, "label": "b", "owner": "x"}]
    write_jsonl(tmp_path / "data.jsonl", rows)
    write_jsonl(tmp_path / "test.jsonl", [{"text": "t3", "label": "a", "note": "n"}])
    loaded = federation(tmp_path, classes(test="test.jsonl", labels=["a", "b", "c"], validation_fraction=0.0))
    data, test = "data.jsonl", "test.jsonl"
    assert FederatedData.open(loaded, Letters(), KEY).warnings == (
        "columns of the data that nothing reads: 'id' (33 rows), 'weight' (33 rows)",
        "columns of the test data that nothing reads: 'note' (1 row)",
        f"2 rows are exact duplicates of another (first {data}:31, of {data}:1)",
        f"1 row has the text of another row and another label (first {data}:32, against {data}:2)",
        f"1 of 1 test rows have a text that is also in the clients' data (first {test}:1)",
        "no row of the clients' data has the label 'c'",
        "no row of the test data has the labels 'b', 'c'",
        f"1 row has more tokens than data.max_tokens: their end was cut off (first {data}:34)",
    )


def test_what_was_recognised_is_said(tmp_path):
    for name in ("anna", "ben"):
        rows = [{"instruction": f"{name}{i}", "output": "o"} for i in range(3)]
        write_jsonl(tmp_path / "clients" / f"{name}.jsonl", rows)
    data = FederatedData.open(chat(tmp_path), Letters(), KEY)
    assert data.warnings[0] == (
        "anna.jsonl and 1 more files: recognised as Alpaca rows "
        "(instruction, output, input where present, system where present, history where present)"
    )


def test_unread_splits_are_named_but_not_the_one_that_the_server_reads(tmp_path):
    for split in ("train", "test", "validation"):
        write_jsonl(tmp_path / "repo" / f"{split}.jsonl", labelled(20, split))
    more = {"path": "repo", "partition": {"kind": "iid", "clients": 2}}
    without = FederatedData.open(federation(tmp_path, classes(**more)), None, KEY)
    assert without.warnings[0] == "repo: of its splits 'train' is read, not 'test', 'validation'"
    both = FederatedData.open(federation(tmp_path, classes(**more, test="repo")), Letters(), KEY)
    assert both.warnings[0] == "repo: of its splits 'train' is read, not 'validation'"
    assert len(both.test()) == 20
    other = FederatedData.open(
        federation(tmp_path, classes(**more, split="validation", test="repo")), Letters(), KEY
    )
    assert other.warnings[0] == "repo: of its splits 'validation' is read, not 'train'"


def test_pairs_reach_the_tokenizer_as_pairs(tmp_path):
    rows = [{"premise": f"p{i}", "hypothesis": "h", "label": "ab"[i % 2]} for i in range(4)]
    write_jsonl(tmp_path / "data.jsonl", rows)
    loaded = federation(tmp_path, classes(partition={"kind": "files"}, validation_fraction=0.0))
    data = FederatedData.open(loaded, Letters(), KEY)
    assert data.warnings[0] == "data.jsonl: recognised as pairs of texts (premise, hypothesis)"
    assert "".join(map(chr, data.client("data").train[0].tokens[1:-1])) == "p0|h"


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=30),
    max_tokens=st.integers(4, 20),
)
def test_every_row_is_either_an_example_or_named(tmp_path_factory, lengths, max_tokens):
    folder = tmp_path_factory.mktemp("rows")
    write_jsonl(folder / "clients" / "anna.jsonl", [turns("q" * n) for n in lengths])
    loaded = chat(folder, max_tokens=max_tokens)
    # the prompt takes one token more on each side, and the answer's first token is its header
    bad = [i + 1 for i, n in enumerate(lengths) if n + 3 >= max_tokens]
    if not bad:
        assert len(FederatedData.open(loaded, Letters(), KEY).client("anna").train) == len(lengths)
        return
    with pytest.raises(DataError) as caught:
        FederatedData.open(loaded, Letters(), KEY)
    error = caught.value
    named = error.problems if isinstance(error, BadRows) else [error]
    assert [p.who for p in named] == [f"{folder}/clients/anna.jsonl:{n}" for n in bad][:20]
    assert len(bad) == (error.count if isinstance(error, BadRows) else 1)


def test_sentences_do_not_flood(tmp_path):
    rows = [{f"column {i}": 1 for i in range(200)} | {"text": "t", "label": "a"}] * 500
    write_jsonl(tmp_path / "data.jsonl", rows)
    loaded = federation(
        tmp_path, classes(partition={"kind": "files"}, labels=[f"l{i}" for i in range(300)] + ["a"])
    )
    warnings = FederatedData.open(loaded, Letters(), KEY).warnings
    assert len(warnings) == 4
    assert all(len(warning) < 400 for warning in warnings)
    assert "and 194 more" in warnings[0]
    assert json.dumps(warnings)


def test_the_organisers_split_is_not_asked_of_an_owners_file(tmp_path):
    path = write_jsonl(tmp_path / "own.jsonl", labelled(20, "x"))
    loaded = federation(tmp_path, classes(split="validation"))
    assert FederatedData.own(loaded, path, "x", Letters(), KEY).rows("x") == (18, 2)
    for split in ("train", "validation"):
        write_jsonl(tmp_path / "dir" / split / "a.jsonl", labelled(10 if split == "train" else 30, "x"))
    assert sum(FederatedData.own(loaded, tmp_path / "dir", "x", Letters(), KEY).rows("x")) == 30


def test_a_key_for_every_row_does_not_fill_the_memory(tmp_path):
    rows = [{f"key {i}": "text"} for i in range(5000)]
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    with pytest.raises(
        DataError, match=r"data.jsonl:4097: expected at most 4096 different columns in a file, got more"
    ):
        FederatedData.open(federation(tmp_path, classes(partition={"kind": "files"})), Letters(), KEY)
    path.unlink()
