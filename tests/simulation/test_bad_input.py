"""Bad input: one clear error with the right exit code, nothing half-written, nothing lost."""

from __future__ import annotations

import json
import re
import resource
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.command import headwater
from tests.support.runs import tiny_federation
from tests.support.tiny_models import tiny_bert

ONE_ROUND = ("--set", "federation.rounds=1")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The folder of a federation in which nothing is wrong."""
    return tiny_federation(tmp_path_factory.mktemp("good") / "fed").parent


@pytest.fixture
def fed(good, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(good, tmp_path / "fed")


def lines(fed, name="train.jsonl"):
    return (fed / name).read_bytes().split(b"\n")


def replace_line(fed, number, content, name="train.jsonl"):
    """Put ``content`` in the place of line ``number`` (from 1)."""
    rows = lines(fed, name)
    rows[number - 1] = content
    (fed / name).write_bytes(b"\n".join(rows))


def as_files(fed, extra):
    """One file per owner, and ``extra``, in the place of train.jsonl."""
    rows = [json.loads(line) for line in lines(fed) if line]
    (fed / "train.jsonl").unlink()
    (fed / "owners").mkdir()
    for owner in sorted({r["owner"] for r in rows}):
        own = "".join(json.dumps(r) + "\n" for r in rows if r["owner"] == owner)
        (fed / "owners" / f"{owner}.jsonl").write_text(own)
    (fed / "owners" / extra).write_text("")


FILES = ["data.path=owners", "data.partition={kind='files'}"]


def as_csv(fed):
    (fed / "train.csv").write_text("text,owner\ngood,ann\nbad,ben\n")


def pickled(fed):
    (fed / "bert" / "model.safetensors").rename(fed / "bert" / "pytorch_model.bin")


def torn_weights(fed):
    path = fed / "bert" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def no_tokenizer(fed):
    for path in fed.glob("bert/token*"):
        path.unlink()


def without_test(fed):
    text = (fed / "federation.toml").read_text()
    (fed / "federation.toml").write_text(text.replace('test = "test.jsonl"\n', ""))


def nothing(fed):
    pass


# name: how to spoil the folder, what to --set, the exit code, what the message says
CASES = {
    "unknown key": (nothing, ["training.learning_rat=1"], 2, r"training\.learning_rat: .*no such key, got 1"),
    "wrong type": (nothing, ["federation.rounds=many"], 2, r"federation\.rounds: .*integer, got 'many'"),
    "no data file": (lambda f: (f / "train.jsonl").unlink(), [], 3, r"train\.jsonl: .*got nothing there"),
    "no test file": (lambda f: (f / "test.jsonl").unlink(), [], 3, r"test\.jsonl: .*got nothing there"),
    "empty data": (lambda f: (f / "train.jsonl").write_text("\n"), [], 3, r"train\.jsonl: .*an empty file"),
    "empty client": (lambda f: as_files(f, "zoe.jsonl"), FILES, 3, r"zoe\.jsonl: .*at least one row"),
    "stray file": (lambda f: as_files(f, "zoe.doc"), FILES, 3, r"zoe\.doc: .*another file"),
    "unknown label": (
        lambda f: replace_line(f, 7, b'{"text": "x", "label": "ugly", "owner": "ann"}'),
        [],
        3,
        r"train\.jsonl:7: expected one of the labels 'bad', 'good'.*got 'ugly'",
    ),
    "unknown label in the test": (
        lambda f: replace_line(f, 3, b'{"text": "x", "label": 7}', "test.jsonl"),
        [],
        3,
        r"test\.jsonl:3: .*got '7'",
    ),
    "not UTF-8": (
        lambda f: replace_line(f, 5, b'{"text": "caf\xe9", "label": "bad", "owner": "ann"}'),
        [],
        3,
        r"train\.jsonl:5: expected UTF-8 text, got byte 0xe9",
    ),
    "broken JSON": (
        lambda f: replace_line(f, 9, b'{"text": "x'),
        [],
        3,
        r"train\.jsonl:9: .*JSON object per",
    ),
    "no label": (lambda f: replace_line(f, 2, b'{"text": "x", "owner": "ann"}'), [], 3, r"train\.jsonl:2: "),
    "no owner": (lambda f: replace_line(f, 2, b'{"text": "x", "label": "bad"}'), [], 3, r"train\.jsonl:2: "),
    "empty text": (
        lambda f: replace_line(f, 4, b'{"text": " ", "label": "bad", "owner": "ann"}'),
        [],
        3,
        r"train\.jsonl:4: .*an empty text",
    ),
    "missing column": (
        as_csv,
        ["data.path=train.csv"],
        3,
        r"a column 'label', got the columns 'text', 'owner'",
    ),
    "more clients than rows": (
        nothing,
        ["data.partition={kind='iid',clients=1000}"],
        3,
        r"at least 1000 rows.* got 52",
    ),
    "no such modules": (
        nothing,
        ["adapter.target_modules=['q_proj']"],
        4,
        r"linear modules: dense, key, query, value, got 'q_proj'",
    ),
    "no such layer": (nothing, ["adapter.layers=[0, 2]"], 4, r"layers between 0 and 1, got \[2\]"),
    "no such model": (
        nothing,
        ["model.path=no/such/model"],
        4,
        r"model\.path 'no/such/model': expected a folder",
    ),
    "another base": (
        nothing,
        [f"model.sha256='{'0' * 64}'"],
        4,
        r"base model bert: expected sha256 0000.* got ",
    ),
    "pickled weights": (pickled, [], 4, r"expected model\.safetensors, got only pickled weights"),
    "torn weights": (torn_weights, [], 4, r"base model bert: "),
    "no tokenizer": (no_tokenizer, [], 4, r"tokenizer of bert: expected tokenizer files"),
    "no config": (lambda f: (f / "bert" / "config.json").unlink(), [], 4, r"expected a config\.json"),
    "texts too long": (
        nothing,
        ["data.max_tokens=129"],
        2,
        r"data\.max_tokens: expected at most 128: bert has 128",
    ),
    "nothing held out": (
        without_test,
        ["baselines.alone=true", "data.validation_fraction=0.0"],
        2,
        r"\[baselines\] need data\.test, or data\.validation_fraction",
    ),
    "senseless baseline": (
        nothing,
        ["baselines.majority=true", "evaluation.metric=loss"],
        2,
        r"baselines\.majority cannot be judged by 'loss' of data\.kind 'classification': use 'accuracy'",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_clear_error_and_the_same_folder_serves_the_mended_run(good, fed, tmp_path, name):
    spoil, sets, code, match = CASES[name]
    spoil(fed)
    changes = [part for change in sets for part in ("--set", change)]
    done = headwater("simulate", fed / "federation.toml", "--out", tmp_path / "run", *changes)
    assert done.code == code, done.err
    assert re.search(match, done.error), done.error
    assert not (tmp_path / "run" / "rounds.jsonl").exists()
    mended = headwater("simulate", good / "federation.toml", "--out", tmp_path / "run", "--quiet", *ONE_ROUND)
    assert (mended.code, mended.err) == (0, "")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"] == 1


def test_a_mended_data_file_lets_the_same_run_resume(fed, tmp_path):
    right = (fed / "train.jsonl").read_bytes()
    replace_line(fed, 7, b"{")
    assert headwater("simulate", fed / "federation.toml", "--out", tmp_path / "run", *ONE_ROUND).code == 3
    (fed / "train.jsonl").write_bytes(right)
    assert headwater("simulate", "--resume", tmp_path / "run", "--quiet").code == 0


def test_a_missing_federation_file_makes_no_folder(tmp_path):
    done = headwater("simulate", tmp_path / "none.toml", "--out", tmp_path / "run")
    assert done.code == 2
    assert "none.toml: expected a file, got nothing there" in done.error
    assert not (tmp_path / "run").exists()


def test_a_seed_for_a_file_without_a_federation_table(tmp_path):
    (tmp_path / "f.toml").write_text("federation = 3\n")
    done = headwater("simulate", tmp_path / "f.toml", "--seed", 3)
    assert done.code == 2
    assert "'federation' to be a table" in done.error


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantisation_without_bitsandbytes(good, tmp_path, monkeypatch, bits):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    change = ["--set", f"model.quantization={bits}"]
    done = headwater("simulate", good / "federation.toml", "--out", tmp_path / "run", *change)
    assert done.code == 12
    assert "headwater[gpu]" in done.error


def test_ray_that_is_not_installed(good, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = headwater("simulate", good / "federation.toml", "--out", tmp_path / "run", "--engine", "ray")
    assert done.code == 12
    assert 'pip install "headwater[ray]"' in done.error
    assert headwater("simulate", good / "federation.toml", "--out", tmp_path / "run", *ONE_ROUND).code == 0


def test_a_probe_without_scikit_learn_is_refused_before_the_training(good, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    change = ["--set", "baselines.probe=true"]
    done = headwater("simulate", good / "federation.toml", "--out", tmp_path / "run", *change)
    assert done.code == 12
    assert 'pip install "headwater[simulation]"' in done.error
    assert not (tmp_path / "run" / "rounds.jsonl").exists()


def test_a_file_that_may_not_be_read(good, tmp_path, monkeypatch):
    original = Path.open

    def forbidden(self, *args, **kwargs):
        if self.name == "train.jsonl":
            raise PermissionError(13, "Permission denied", str(self))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", forbidden)  # rights do not stop root, who may run the tests
    done = headwater("simulate", good / "federation.toml", "--out", tmp_path / "run")
    assert done.code == 3
    assert "train.jsonl: expected a readable file, got Permission denied" in done.error


def test_an_out_folder_that_cannot_be_made(good, tmp_path):
    (tmp_path / "file").write_text("mine")
    done = headwater("simulate", good / "federation.toml", "--out", tmp_path / "file" / "run")
    assert done.code == 11
    assert str(tmp_path / "file" / "run") in done.error


def test_a_client_of_a_single_class_is_allowed_with_a_warning(fed, tmp_path):
    rows = [json.loads(line) for line in lines(fed) if line]
    rows = [{**r, "label": "good"} if r["owner"] == "cleo" else r for r in rows]
    (fed / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = headwater("simulate", fed / "federation.toml", "--out", tmp_path / "run", *ONE_ROUND)
    assert done.code == 0
    assert "1 client has a single class: 'cleo' (only 'good')" in done.err
    record = json.loads((tmp_path / "run" / "rounds.jsonl").read_text().splitlines()[1])
    assert set(record["clients"]) == {"ann", "ben", "cleo"}
    assert not any("failed" in row for row in record["clients"].values())


def test_all_clients_diverging_ends_the_run_with_its_state_kept(good, tmp_path):
    change = ["--set", "training.learning_rate=1e30"]
    done = headwater("simulate", good / "federation.toml", "--out", tmp_path / "run", *change)
    assert done.code == 10
    assert all(f"client {name}, step" in done.err for name in ("ann", "ben", "cleo"))
    assert "expected a finite loss, got nan. Lower training.learning_rate" in done.error
    assert "round 0 is kept" in done.error
    kept = (tmp_path / "run" / "state" / "checkpoint.safetensors").read_bytes()
    again = headwater("simulate", "--resume", tmp_path / "run")
    assert again.code == 10
    assert (tmp_path / "run" / "state" / "checkpoint.safetensors").read_bytes() == kept
    other = headwater("simulate", good / "federation.toml", "--out", tmp_path / "run")
    assert other.code == 2  # there is a checkpoint in it now
    assert (tmp_path / "run" / "state" / "checkpoint.safetensors").read_bytes() == kept


@contextmanager
def largest_file(size):
    """Every write beyond ``size`` bytes of a file fails, as on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_no_room_for_the_first_checkpoint(good, tmp_path):
    with largest_file(2048):
        done = headwater("simulate", good / "federation.toml", "--out", tmp_path / "run", *ONE_ROUND)
    assert done.code == 11
    assert "checkpoint.safetensors: expected room for" in done.error
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert headwater("simulate", good / "federation.toml", "--out", tmp_path / "run", *ONE_ROUND).code == 0


def test_no_room_for_the_federation_file(good, tmp_path):
    with largest_file(300):
        done = headwater("simulate", good / "federation.toml", "--out", tmp_path / "run", *ONE_ROUND)
    assert done.code == 11
    assert "federation.toml: expected room for" in done.error
    assert headwater("simulate", good / "federation.toml", "--out", tmp_path / "run", *ONE_ROUND).code == 0


def test_no_room_for_the_result_keeps_the_old_one(good, tmp_path):
    run = tmp_path / "run"
    assert headwater("simulate", good / "federation.toml", "--out", run, *ONE_ROUND).code == 0
    before = {p: p.read_bytes() for p in (run / "adapter").iterdir()}
    with largest_file(2700):
        done = headwater("simulate", "--resume", run)
    assert done.code == 11, done.err
    assert f"export to {run / 'adapter'}: expected" in done.error
    assert {p: p.read_bytes() for p in (run / "adapter").iterdir()} == before
    assert not list(run.glob(".adapter*"))
    assert headwater("simulate", "--resume", run, "--quiet").code == 0


def change_base(fed):
    shutil.rmtree(fed / "bert")
    tiny_bert(fed / "bert", seed=3)


def change_data(fed):
    with (fed / "train.jsonl").open("a") as file:
        file.write('{"text": "the movie was bad", "label": "bad", "owner": "ann"}\n')


@pytest.mark.parametrize(("what", "change"), [("base", change_base), ("data", change_data)])
def test_changed_inputs_are_noticed_on_resume(fed, tmp_path, what, change):
    assert headwater("simulate", fed / "federation.toml", "--out", tmp_path / "run", *ONE_ROUND).code == 0
    change(fed)
    done = headwater("simulate", "--resume", tmp_path / "run")
    assert done.code == 2
    assert f"the {what} that the run began with" in done.error
