"""``headwater data check`` on whatever a user points it at."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from headwater.cli.data_view import rendered
from tests.data.toys import write_jsonl
from tests.support.command import headwater
from tests.support.runs import tiny_federation
from tests.support.tiny_models import tiny_bert, tiny_llama

CHATS = [
    {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]}
    for i in range(5)
]


def checked(*arguments):
    done = headwater("data", "check", *arguments, "--json")
    return json.loads(done.out) if done.out else {}, done


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return tiny_bert(folder / "bert"), tiny_llama(folder / "llama")


def test_a_file_of_labelled_texts(tmp_path):
    rows = [{"text": f"text {i}", "label": "ab"[i % 2], "id": i} for i in range(20)]
    path = write_jsonl(tmp_path / "anna.jsonl", [*rows, rows[3]])
    found, done = checked(path)
    assert (done.code, done.err) == (0, "")
    assert (found["kind"], found["rows"], found["bad_rows"]) == ("classification", 21, 0)
    assert found["owners"]["anna"]["labels"] == {"a": 10, "b": 11}
    assert found["owners"]["anna"]["characters"]["max"] == 7
    assert found["columns"]["id"] == {"number": 21}
    assert found["warnings"] == [
        "columns of the data that nothing reads: 'id' (21 rows)",
        f"1 row is an exact duplicate of another (first {path}:21)",
    ]
    assert [s["text"] for s in found["samples"]] == ["text 0", "text 1", "text 2"]


def test_a_folder_of_owners_for_people(tmp_path, models):
    for name in ("anna", "ben"):
        write_jsonl(tmp_path / "c" / f"{name}.jsonl", [{"text": "good movie", "label": name[0]}] * 2)
    done = headwater("data", "check", tmp_path / "c", "--model", models[0])
    assert done.code == 0
    assert "classification, 2 owners, 4 rows" in done.out
    assert f"{tmp_path}/c/anna.jsonl:1 (anna)\n[CLS] good movie [SEP] → [[a]]" in done.out
    assert f"{tmp_path}/c/ben.jsonl:1 (ben)" in done.out
    assert "What is learnt is in [[ ]]." in done.out


def test_conversations_as_the_model_sees_them(tmp_path, models):
    path = write_jsonl(tmp_path / "chats.jsonl", CHATS)
    found, done = checked(path, "--model", models[1])
    assert done.code == 0
    assert found["recognised"] == ["OpenAI messages (messages, tools where present)"]
    assert found["samples"][0]["text"].startswith(
        "<|im_start|>user\nq0<|im_end|>\n<|im_start|>assistant\n[[a0<|im_end|>]]"
    )
    own = found["owners"]["chats"]
    assert (own["examples"], own["loss_tokens"]) == (5, 15)
    assert own["tokens"]["max"] == own["tokens"]["min"]


def test_a_call_of_a_tool_is_shown_as_what_is_learnt(tmp_path):
    """Without a model, too, of which a template would say how it is written."""
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"of": "today"}'}}
    said = [
        {"role": "user", "content": "rain?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "none"},
        {"role": "assistant", "content": "No."},
    ]
    found, done = checked(write_jsonl(tmp_path / "calls.jsonl", [{"messages": said}]))
    assert done.code == 0
    learnt = json.dumps({"type": "function", "function": {"name": "weather", "arguments": {"of": "today"}}})
    assert found["samples"][0]["text"] == (
        f"user: rain?\nassistant: [[{learnt}]]\ntool: none\nassistant: [[No.]]"
    )


def test_rows_that_fill_max_tokens_are_named_and_end_in_3(tmp_path, models):
    path = write_jsonl(tmp_path / "chats.jsonl", CHATS)
    found, done = checked(path, "--model", models[1], "--set", "data.max_tokens=20")
    assert done.code == 3
    assert found["bad_rows"] == 5
    assert f"{path}:1: expected an answer that begins within data.max_tokens = 20" in done.err
    assert "5 rows or files cannot be used" in done.err


def test_a_row_that_gives_no_example_is_not_shown_as_learnt(tmp_path, models):
    base = tmp_path / "base"
    shutil.copytree(models[1], base)
    bare = json.loads((base / "tokenizer_config.json").read_text())
    for key in ("bos_token", "eos_token"):
        bare.pop(key, None)
    (base / "tokenizer_config.json").write_text(json.dumps(bare))
    own = json.loads((base / "tokenizer.json").read_text())
    (base / "tokenizer.json").write_text(json.dumps({**own, "post_processor": None}))
    path = write_jsonl(tmp_path / "texts.jsonl", [{"text": "x"}, {"text": "hello there"}])
    found, done = checked(path, "--model", base, "--set", "data.kind=causal-lm")
    assert done.code == 0, done.err
    assert found["samples"][0]["text"] == "x"
    assert "[[" in found["samples"][1]["text"]
    assert found["owners"]["texts"]["examples"] == 1
    assert any("1 row has fewer than two tokens" in w and f"{path}:1" in w for w in found["warnings"])
    path = write_jsonl(tmp_path / "chats.jsonl", CHATS)
    found, _ = checked(path, "--model", models[1], "--set", "data.max_tokens=20")
    assert not any("[[" in sample["text"] for sample in found["samples"])


def test_a_federation_file_is_checked_as_a_run_would_open_it(tmp_path):
    fed = tiny_federation(tmp_path / "fed")
    found, done = checked(fed)
    assert done.code == 0
    assert set(found["owners"]) == {"ann", "ben", "cleo"}
    assert found["test"]["rows"] > 0
    assert all(o["train"] + o["validation"] == o["rows"] for o in found["owners"].values())
    with_model, done = checked(fed, "--model")
    assert done.code == 0
    assert all(o["tokens"]["max"] > 2 for o in with_model["owners"].values())
    assert with_model["test"]["tokens"]
    fewer, done = checked(fed, "--set", "data.fraction=0.5")
    assert fewer["rows"] < found["rows"] == fewer["rows_read"]
    (fed.parent / "train.jsonl").write_text('{"text": "x", "label": "ugly", "owner": "ann"}\n{\n')
    done = headwater("data", "check", fed)
    assert done.code == 3
    assert "train.jsonl:1: expected one of the labels" in done.err
    assert "train.jsonl:2: expected" in done.err


def test_settings_for_a_file(tmp_path):
    rows = [{"body": f"t{i}", "y": i % 2 == 0, "site": "ab"[i % 2]} for i in range(6)]
    path = write_jsonl(tmp_path / "x.jsonl", rows)
    found, done = checked(path)
    assert (done.code, found["kind"], found["rows"]) == (0, None, 6)
    assert "set data.kind and its columns" in found["warnings"][-1]
    sets = ["data.kind=classification", "data.text=body", "data.label=y", "data.labels=[false, true]",
            "data.partition={kind='column',column='site'}"]  # fmt: skip
    found, done = checked(path, *(part for s in sets for part in ("--set", s)))
    assert (done.code, sorted(found["owners"])) == (0, ["a", "b"])
    assert found["owners"]["a"]["labels"] == {"true": 3}
    for wrong, code in (("training.epochs=2", 2), ("data.kind=nonsense", 2), ("data.kind=none", 2), ("x", 2)):
        assert headwater("data", "check", path, "--set", wrong).code == code


def test_torch_is_not_imported_without_a_model(tmp_path):
    fed = tiny_federation(tmp_path / "fed")
    program = (
        "import sys; from headwater.cli.main import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'transformers'} & sys.modules.keys(); sys.exit(code)"
    )
    for path in (fed, fed.parent / "train.jsonl", fed.parent):
        done = subprocess.run(
            [sys.executable, "-c", program, "data", "check", str(path)], capture_output=True
        )
        assert done.returncode == (0 if path.suffix else 3), done.stderr


def test_a_folder_of_anything_says_everything_at_once(tmp_path):
    (tmp_path / "a.xlsx").write_bytes(b"PK\x03\x04")
    (tmp_path / "b").mkdir()
    (tmp_path / "c.jsonl").write_text("{}\n")
    os.mkfifo(tmp_path / "d.csv")
    done = headwater("data", "check", tmp_path)
    assert done.code == 3
    assert all(f"{tmp_path}/{name}: " in done.err for name in ("a.xlsx", "b", "d.csv"))
    assert headwater("data", "check", tmp_path / "b").code == 3
    assert headwater("data", "check", tmp_path / "gone").code == 3
    (tmp_path / "e.bin").write_bytes(os.urandom(1000))
    assert "got a file named *.bin" in headwater("data", "check", tmp_path / "e.bin").error


def test_one_file_that_cannot_be_read_hides_none_of_the_others(tmp_path):
    write_jsonl(tmp_path / "anna.jsonl", [{"text": "t", "label": "a"}] * 3)
    (tmp_path / "ben.jsonl").write_bytes(b"%PDF")
    (tmp_path / "cleo.jsonl.gz").write_bytes(gzip.compress(b'{"text": "t", "label": "b"}\n')[:-4])
    found, done = checked(tmp_path)
    assert (done.code, found["rows"], found["bad_rows"]) == (3, 3, 2)
    assert "ben.jsonl: expected UTF-8 text" in done.err
    assert "cleo.jsonl.gz: expected a whole compressed file" in done.err


def test_texts_of_strangers_move_no_cursor(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", [{"text": "\x1b[2J[bold]hi\u202e", "label": "\x1b]0;t\x07"}] * 2)
    done = headwater("data", "check", path)
    assert done.code == 0
    assert "\x1b" not in done.out + done.err
    assert "[bold]hi" in done.out


def test_what_is_learnt_is_coloured_on_a_terminal_and_bracketed_elsewhere():
    spans = [("ask ", False), ("answer", True)]
    assert rendered(spans, colour=False).plain == "ask [[answer]]"
    shown = rendered(spans, colour=True)
    assert shown.plain == "ask answer"
    console = Console(force_terminal=True, color_system="standard", width=80)
    with console.capture() as captured:
        console.print(shown)
    assert "\x1b[32manswer" in captured.get()
    assert rendered([("x" * 10_000, True)], colour=True).plain.endswith("…")


NAMES = st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.jsonl.gz", "a.parquet", "a.csv.xz", "a"])
VALUES = st.one_of(
    st.none(), st.booleans(), st.floats(), st.text(max_size=9), st.lists(st.text(max_size=3), max_size=2)
)
TEXTS = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")),
    st.lists(
        st.dictionaries(
            st.sampled_from(["text", "label", "messages", "prompt", "answer", ""]),
            VALUES,
            max_size=4,
        ),
        max_size=5,
    ).map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=150)
@given(name=NAMES, content=TEXTS, pack=st.booleans())
def test_any_bytes_end_in_a_report_or_one_error(tmp_path, name, content, pack):
    (tmp_path / name).write_bytes(gzip.compress(content) if pack and name.endswith(".gz") else content)
    try:
        done = headwater("data", "check", tmp_path / name)
    finally:
        (tmp_path / name).unlink()
    assert done.code in (0, 3), done.err
    assert "Traceback" not in done.err
    if done.code:
        assert "headwater: error HW03: " in done.err


def test_a_column_that_is_not_there_is_said_once_for_a_file(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", [{"talk": ["q", "a"], "source": "s"}] * 3000)
    found, done = checked(path, "--set", "data.kind=instruction")
    assert (done.code, found["bad_rows"], found["rows"]) == (3, 1, 0)
    assert "x.jsonl: expected a column 'prompt', got the columns 'talk', 'source'" in done.err


def test_the_same_text_with_two_labels_is_named(tmp_path):
    rows = [{"text": "x", "label": label} for label in "aba"]
    found, _ = checked(write_jsonl(tmp_path / "x.jsonl", rows))
    assert found["warnings"] == [
        f"1 row is an exact duplicate of another (first {tmp_path}/x.jsonl:3)",
        f"1 row has the text of another row and another label (first {tmp_path}/x.jsonl:2)",
    ]


@pytest.mark.parametrize("mark", ["\t", ","])
def test_rows_that_a_lone_quote_made_one_are_named(tmp_path, mark):
    """A run's warnings say it too."""
    lines = [("text", "label"), ('"Great film', "a"), ("so so", "b"), ('I left "', "b"), ("plain", "a")]
    path = tmp_path / ("x.tsv" if mark == "\t" else "x.csv")
    path.write_text("".join(mark.join(line) + "\n" for line in lines))
    found, done = checked(path)
    assert done.code == 0, done.err
    assert found["rows"] == 2
    expected = f"1 row of CSV or TSV has line breaks in a field (first {path}:2)"
    assert any(w.startswith(expected) for w in found["warnings"])
    fed = tiny_federation(tmp_path / "fed", data={"path": str(path), "labels": ["a", "b"]})
    text = (
        fed.read_text().replace('kind = "column"', 'kind = "iid"').replace('column = "owner"', "clients = 2")
    )
    fed.write_text(text.replace('test = "test.jsonl"\n', ""))
    found, done = checked(fed)
    assert any("line breaks in a field" in w for w in found["warnings"]), done.err
    path.write_text(f"text{mark}label\nplain{mark}a\nso so{mark}b\n")
    assert not any("line breaks" in w for w in checked(path)[0]["warnings"])


def test_every_column_is_written_into_a_pipe(tmp_path, models, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    fed = tiny_federation(tmp_path / "fed")
    done = headwater("data", "check", fed, "--model", models[0])
    assert done.code == 0, done.err
    (head,) = [line for line in done.out.splitlines() if line.startswith("owner")]
    titles = ["owner", "rows", "train", "validation", "tokens: median", "90 %", "longest", "labels"]
    assert [title for title in titles if title not in head] == []
