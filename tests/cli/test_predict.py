"""``headwater predict`` as a user meets it, and beside PEFT without headwater."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from headwater.adapters.predict import Predictor
from headwater.errors import DataError
from headwater.training.score import prompts
from tests.adapters.reading.test_segments import paired
from tests.data.toys import table
from tests.support.command import headwater
from tests.support.runs import tiny_federation, write_jsonl
from tests.support.tiny_models import tiny_gpt2, tiny_llama

TEXTS = ["the movie was good", "the movie was bad a7", "not good"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of a classifier."""
    folder = tmp_path_factory.mktemp("classifier")
    file = tiny_federation(folder / "fed")
    assert headwater("simulate", file, "--out", folder / "run", "--quiet").code == 0
    return folder / "run"


def language_run(folder, make, data):
    """A run folder of a causal model."""
    folder.mkdir(parents=True, exist_ok=True)
    make(folder / "base")
    write_jsonl(folder / "train.jsonl", [{"prompt": f"say {i}", "answer": f"well {i}"} for i in range(12)])
    (folder / "federation.toml").write_text(
        '[federation]\nname = "lm"\nrounds = 1\n'
        '[model]\nkind = "causal-lm"\npath = "base"\n'
        '[adapter]\nkind = "lora"\nrank = 2\ntarget_modules = ["all-linear"]\n'
        f'[data]\npath = "train.jsonl"\nmax_tokens = 64\n{data}\n'
        'partition = { kind = "iid", clients = 2 }\n'
        '[training]\nkind = "backprop"\nlearning_rate = 0.02\n'
    )
    done = headwater("simulate", folder / "federation.toml", "--out", folder / "run", "--quiet")
    assert done.code == 0, done.err
    return folder / "run"


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    data = 'kind = "instruction"\nsystem = "Be brief."'
    return language_run(tmp_path_factory.mktemp("chat"), tiny_llama, data)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    data = 'kind = "causal-lm"\ntext = "answer"'
    return language_run(tmp_path_factory.mktemp("plain"), tiny_llama, data)


def test_texts_come_from_arguments_a_file_or_standard_input(run, tmp_path):
    (tmp_path / "texts.txt").write_text("\ufeff" + "\r\n\n".join(TEXTS) + "\n", encoding="utf-8")
    adapter = run / "adapter"
    given = headwater("predict", adapter, *TEXTS)
    filed = headwater("predict", adapter, "--file", tmp_path / "texts.txt")
    piped = headwater("predict", adapter, stdin="\n".join(TEXTS).encode())
    assert given.code == filed.code == piped.code == 0
    assert given.out == filed.out == piped.out
    assert given.err == ""
    rows = [line.split("\t") for line in given.out.splitlines()]
    assert [row[2] for row in rows] == TEXTS
    assert all(row[0] in ("good", "bad") and 0.5 <= float(row[1]) <= 1 for row in rows)


def test_json_says_all_scores_and_peft_alone_agrees(run):
    done = headwater("predict", run / "adapter", "--json", *TEXTS)
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [row["text"] for row in found] == TEXTS
    base = run.parent / "fed" / "bert"
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), run / "adapter").eval()
    head = load_file(run / "adapter" / "head.safetensors")
    for text, row in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False))
        logits = hidden.last_hidden_state.mean(1) @ head["weight"].T + head["bias"]
        expected = dict(zip(["bad", "good"], logits[0].softmax(-1).tolist(), strict=True))
        assert row["scores"] == pytest.approx(expected, abs=1e-5)
        assert row["label"] == max(expected, key=lambda label: expected[label])
        assert row["score"] == max(row["scores"].values())


def test_a_text_with_a_separator_that_only_python_knows_is_one_text(run):
    done = headwater("predict", run / "adapter", "--json", stdin="good\u2028bad\x0cgood\n".encode())
    assert json.loads(done.out)["text"] == "good\u2028bad\x0cgood"


def test_the_base_is_found_from_anywhere_or_named(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # model.path is relative to the federation file
    here = headwater("predict", run / "adapter", *TEXTS)
    assert here.code == 0, here.err
    shutil.copytree(run / "adapter", tmp_path / "moved")
    shutil.copytree(run.parent / "fed" / "bert", tmp_path / "elsewhere")
    lost = headwater("predict", tmp_path / "moved", *TEXTS)
    assert lost.code == 4
    assert "--base FOLDER" in lost.error
    assert headwater("predict", tmp_path / "moved", "--base", "elsewhere", *TEXTS).out == here.out


def test_another_base_is_refused_by_its_hash(run, tmp_path):
    from tests.support.tiny_models import tiny_bert

    other = tiny_bert(tmp_path / "other", seed=1)
    done = headwater("predict", run / "adapter", "--base", other, "x")
    assert done.code == 4
    assert "sha256" in done.error


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "match"),
    [
        ([], b"", 3, "at least one text"),
        ([], b" \n\t\n", 3, "at least one text"),
        ([], b"good\xff", 3, "standard input: expected UTF-8 text"),
        (["\udcff"], b"", 3, "text 1: expected UTF-8 text"),
        (["--file", "missing.txt"], b"", 3, "missing.txt"),
        (["--file", "x", "y"], b"", 2, "got both"),
        (["--max-new-tokens", "0", "x"], b"", 2, "--max-new-tokens: expected at least 1, got 0"),
    ],
)
def test_wrong_input_is_one_clear_error(run, arguments, stdin, code, match):
    done = headwater("predict", run / "adapter", *arguments, stdin=stdin)
    assert done.code == code
    assert match in done.error


def test_a_folder_that_is_no_adapter_is_refused(run, tmp_path):
    for folder in (run, tmp_path, tmp_path / "nowhere", run / "summary.json"):
        done = headwater("predict", folder, "x")
        assert done.code == 4
        assert "Give the adapter/ folder of a run" in done.error
    broken = shutil.copytree(run / "adapter", tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"\x00" * 40)
    done = headwater("predict", broken, "--base", run.parent / "fed" / "bert", "x")
    assert done.code == 4
    assert str(broken) in done.error


def test_a_long_text_is_cut_to_what_the_base_takes(run):
    long, cut = headwater("predict", run / "adapter", "--json", "good " * 900, "good " * 126).out.splitlines()
    # 128 positions, two of them for special tokens
    assert json.loads(long)["scores"] == pytest.approx(json.loads(cut)["scores"], abs=1e-6)


def greedy(run, prompt, count):
    """What transformers and PEFT alone continue ``prompt`` (token ids) with."""
    base = run.parent / "base"
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run / "adapter").eval()
    row = prompt(tokenizer)
    if not isinstance(row, torch.Tensor):
        row = torch.tensor([row])
    with torch.no_grad():
        for _ in range(count):
            new = model(input_ids=row).logits[0, -1].argmax()
            if new == tokenizer.eos_token_id:
                break
            row = torch.cat([row, new.view(1, 1)], 1)
    start = len(prompt(tokenizer))
    return tokenizer.decode(row[0, start:], skip_special_tokens=True).strip()


def test_a_causal_model_continues_the_text(plain):
    done = headwater("predict", plain / "adapter", "--json", "--max-new-tokens", 12, "well")
    assert done.code == 0, done.err
    (answer,) = [json.loads(line) for line in done.out.splitlines()]
    assert answer["text"] == "well"
    assert answer["answer"] == greedy(plain, lambda t: t("well")["input_ids"], 12)
    assert (
        headwater("predict", plain / "adapter", "--max-new-tokens", 12, "well").out == f"{answer['answer']}\n"
    )


def test_an_instruction_model_is_asked_in_its_chat_template(chat):
    done = headwater("predict", chat / "adapter", "--json", "--max-new-tokens", 12, "say 3")
    assert done.code == 0, done.err
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "say 3"}]

    def prompt(tokenizer):
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>")
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    assert json.loads(done.out)["answer"] == greedy(chat, prompt, 12)


def test_a_prompt_that_leaves_no_room_for_the_answer_is_refused(tmp_path):
    run = language_run(tmp_path, tiny_gpt2, 'kind = "causal-lm"\ntext = "answer"')  # 128 positions
    assert headwater("predict", run / "adapter", "--max-new-tokens", 28, "x" * 99).code == 0
    done = headwater("predict", run / "adapter", "--max-new-tokens", 29, "x" * 99)
    assert done.code == 4
    assert "at most 128 tokens with the answer" in done.error


def test_a_prompt_beyond_what_a_base_was_made_for_is_said_of_the_prompt(plain):
    """A Llama computes any number of tokens; transformers warns beyond 512, which users cannot mend."""
    assert headwater("predict", plain / "adapter", "--max-new-tokens", 2, "x" * 509).code == 0
    done = headwater("predict", plain / "adapter", "--max-new-tokens", 3, "x" * 509)
    assert done.code == 4
    assert "at most 512 tokens with the answer, got 510 and 3 new ones" in done.error
    assert "accept_warnings" not in done.error


def test_rows_are_read_as_in_training_and_need_no_label(run, tmp_path):
    """Of a file of rows the text's column is read, of any other file the lines."""
    (tmp_path / "rows.csv").write_text("id,text\n" + "".join(f'{i},"{t}"\n' for i, t in enumerate(TEXTS)))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    given = headwater("predict", run / "adapter", *TEXTS)
    for name in ("rows.csv", "rows.jsonl"):
        done = headwater("predict", run / "adapter", "--file", tmp_path / name)
        assert done.code == 0, done.err
        assert done.out == given.out
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\n{"text": " "}\n{"text": ""}\n')
    done = headwater("predict", run / "adapter", "--file", tmp_path / "bad.jsonl")
    assert done.code == 3
    assert "2 rows or files cannot be used" in done.err
    assert "bad.jsonl:2" in done.err
    assert "bad.jsonl:3" in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "match"),
    [
        (["--metric", "x"], 2, "--metric: expected --file with labelled rows"),
        (["--metric", "--file", "texts.txt"], 2, "--metric: expected --file with labelled rows"),
        (["--metric", "--file", "unlabelled.jsonl"], 3, "'label'"),
        (["--file", "gone.jsonl"], 3, "gone.jsonl"),
        ([""], 3, "text 1: expected a text with at least one token for this model, got an empty text"),
    ],
)
def test_rows_that_cannot_be_read_or_measured(run, tmp_path, monkeypatch, arguments, code, match):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("good\n")
    (tmp_path / "unlabelled.jsonl").write_text('{"text": "good"}\n')
    done = headwater("predict", run / "adapter", *arguments)
    assert done.code == code
    assert match in done.err


@pytest.mark.parametrize("metric", [["--metric"], []])
def test_a_column_that_rows_lack_is_said_once(run, tmp_path, metric):
    (tmp_path / "x.jsonl").write_text('{"body": "good", "label": "good"}\n' * 5)
    done = headwater("predict", run / "adapter", "--file", tmp_path / "x.jsonl", *metric)
    assert done.code == 3
    assert done.err.count("a column 'text'") == 1


def test_an_adapter_that_does_not_say_how_rows_are_read_answers_texts_and_says_so(run, tmp_path):
    old = shutil.copytree(run / "adapter", tmp_path / "old")
    notes = json.loads((old / "headwater.json").read_text())
    rows = notes.pop("rows")
    (old / "headwater.json").write_text(json.dumps(notes))
    base = run.parent / "fed" / "bert"
    done = headwater("predict", old, "--base", base, *TEXTS)
    assert done.code == 0
    assert done.out == headwater("predict", run / "adapter", *TEXTS).out
    assert "does not say how many tokens training read" in done.err
    (tmp_path / "rows.jsonl").write_text('{"text": "good", "label": "good"}\n')
    done = headwater("predict", old, "--base", base, "--file", tmp_path / "rows.jsonl", "--metric")
    assert done.code == 4
    assert "says how training read rows" in done.error
    for broken in ([], {"data": {}}, {**rows, "data": {**rows["data"], "max_tokens": "many"}}):
        (old / "headwater.json").write_text(json.dumps({**notes, "rows": broken}))
        done = headwater("predict", old, "--base", base, "x")
        assert done.code == 4, broken


@pytest.mark.parametrize("test_file", [True, False])
def test_pairs_are_remembered_whether_said_or_recognised(tmp_path, test_file):
    """A text alone is refused, and the README's code reads a pair."""
    file = tiny_federation(tmp_path / "fed", federation={"rounds": 1})
    paired(file.parent / "bert")
    for name in ("train.jsonl", "test.jsonl"):
        rows = [json.loads(line) for line in (file.parent / name).read_text().splitlines()]
        rows = [{"premise": r["text"], "hypothesis": "so it was", **r} for r in rows]
        write_jsonl(file.parent / name, [{k: v for k, v in r.items() if k != "text"} for r in rows])
    if not test_file:
        file.write_text(file.read_text().replace('test = "test.jsonl"\n', ""))
    done = headwater("simulate", file, "--out", tmp_path / "run", "--quiet")
    assert done.code == 0, done.err
    adapter = tmp_path / "run" / "adapter"
    assert json.loads((adapter / "headwater.json").read_text())["rows"]["pairs"] is True
    assert 'tokenizer("a text", "and its pair"' in (adapter / "README.md").read_text()
    alone = headwater("predict", adapter, "one text")
    assert alone.code == 3
    assert "expected pairs of texts, which the adapter was trained on" in alone.err
    write_jsonl(tmp_path / "x.jsonl", [{"sentence1": "the movie was bad", "sentence2": "so it was"}])
    done = headwater("predict", adapter, "--file", tmp_path / "x.jsonl")
    assert done.code == 0, done.err


def test_a_chat_answers_questions_and_conversations(chat, tmp_path):
    """The question before a row's last answer is asked, with what was said before."""
    texts = headwater("predict", chat / "adapter", "--json", "--max-new-tokens", 8, "say 3", "say 4").out
    for name, rows in {
        "questions.jsonl": [{"prompt": "say 3"}, {"prompt": "say 4"}],
        "turns.jsonl": [{"prompt": f"say {i}", "answer": "unused"} for i in (3, 4)],
        "alpaca.jsonl": [{"instruction": f"say {i}", "output": "unused"} for i in (3, 4)],
        "tasks.jsonl": [{"instruction": f"say {i}", "input": ""} for i in (3, 4)],
        "asked.jsonl": [{"question": f"say {i}"} for i in (3, 4)],
        "some.jsonl": [{"prompt": "say 3", "answer": "unused"}, {"prompt": "say 4"}],
        "messages.jsonl": [{"messages": [{"role": "user", "content": f"say {i}"}]} for i in (3, 4)],
        "human.jsonl": [{"conversations": [{"from": "human", "value": f"say {i}"}]} for i in (3, 4)],
        "sides.jsonl": [{"prompt": [{"role": "user", "content": f"say {i}"}]} for i in (3, 4)],
    }.items():
        write_jsonl(tmp_path / name, rows)
        done = headwater(
            "predict", chat / "adapter", "--file", tmp_path / name, "--json", "--max-new-tokens", 8
        )
        assert done.code == 0, done.err
        assert done.out == texts


def test_what_a_conversation_ends_with_is_answered(chat):
    """The last question, though earlier ones have answers; in place of a last answer, that answer."""
    predictor = Predictor.open(chat / "adapter", base=str(chat.parent / "base"))
    turns = [("user", "say 1"), ("assistant", "well 1"), ("user", "say 2"), ("assistant", "well 2")]
    messages = [{"role": role, "content": content} for role, content in turns]
    rows = table([{"messages": messages[:3]}, {"messages": messages}, {"messages": [*messages, messages[3]]}])
    (open_, asked), answered, again = prompts(predictor, rows)
    assert open_ == "say 2"
    assert asked == predictor.chat_prompt([{"role": "system", "content": "Be brief."}, *messages[:3]])
    assert answered == (open_, asked)
    assert again[0] == "well 2"
    with pytest.raises(DataError, match=r"rows\.jsonl:1: expected a question before the last answer"):
        list(
            prompts(
                replace(predictor, reading=unsystematic(predictor.reading)),
                table([{"messages": messages[3:]}]),
            )
        )


def unsystematic(reading):
    return replace(reading, data=reading.data.model_copy(update={"system": None}))


def test_a_text_of_control_tokens_ends_nothing(plain, chat):
    for run in (plain, chat):
        done = headwater("predict", run / "adapter", "--max-new-tokens", 4, "a<|im_end|>\n<|im_start|>b")
        assert done.code == 0, done.err
