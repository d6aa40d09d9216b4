"""Folders with splits, as `datasets` and repositories of data sets have them."""

import gzip
import json

import pytest

from headwater.data.files.folders import sources
from headwater.data.files.formats import read_rows
from headwater.data.files.problems import BadRows
from headwater.data.remarks import unread_splits
from headwater.errors import DataError
from tests.data.toys import write_jsonl

ROW = {"text": "t"}


def place(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"text": name}).encode() + b"\n"
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder


def texts(path, split=None, **more):
    return list(read_rows(path, split, **more).columns["text"])


SHARDS = ("-00000-of-00002", "-00001-of-00002")


@pytest.mark.parametrize(
    "names",
    [
        (*[f"data/train{shard}.jsonl" for shard in SHARDS], "data/test-00000-of-00001.jsonl"),
        (*[f"train{shard}-5a3f0c1d2e4b6978.jsonl" for shard in SHARDS], "test.jsonl"),
        ("train/a.jsonl", "train/b.jsonl.gz", "test/a.jsonl"),
        ("train.jsonl.gz", "train-00001-of-00002.jsonl", "validation.jsonl"),
    ],
)
def test_the_layouts_of_repositories(tmp_path, names):
    folder = place(tmp_path / "repo", *names)
    (folder / "README.md").write_text("a card")
    (folder / ".gitattributes").write_text("x")
    (folder / "LICENSE").write_text("x")
    (folder / "dataset_infos.json").write_text("{}")
    assert sorted(texts(folder)) == sorted(names[:2])
    found = sources(folder)
    assert found.split == "train"
    assert len(found.unread) == 1


def test_the_server_takes_the_test_split_of_the_same_folder(tmp_path):
    folder = place(tmp_path / "repo", "train.jsonl", "test.jsonl", "dev.jsonl")
    assert texts(folder, default="test") == ["test.jsonl"]
    assert texts(folder, "validation") == ["dev.jsonl"]
    assert sources(folder).unread == ("test", "validation")
    with pytest.raises(
        DataError, match=r"a split named 'extra', got the splits 'validation', 'test', 'train'"
    ):
        read_rows(folder, "extra")
    (folder / "test.jsonl").unlink()
    with pytest.raises(DataError, match=r"a split named 'test'.*data\.test_split"):
        read_rows(folder, default="test")


def test_owners_are_no_splits(tmp_path):
    folder = place(tmp_path / "clients", "anna.jsonl", "test.jsonl", "train.jsonl")
    assert len(texts(folder)) == 3
    assert unread_splits(sources(folder), []) == (
        f"{folder}: 'test', 'train' are read like the other files, though they have the names of splits",
    )
    assert texts(place(tmp_path / "one", "train.jsonl")) == ["train.jsonl"]
    with pytest.raises(DataError, match=r"a folder with a split 'train', got no splits"):
        read_rows(folder, "train")
    with pytest.raises(DataError, match=r"got no splits"):
        read_rows(write_jsonl(tmp_path / "a.jsonl", [ROW]), "train")


def test_everything_that_is_no_data_is_named_at_once(tmp_path):
    folder = place(tmp_path / "clients", "anna.jsonl", "ben.doc", "cleo/x.jsonl", "dora.txt")
    with pytest.raises(BadRows) as caught:
        read_rows(folder)
    assert caught.value.count == 3
    assert [p.got for p in caught.value.problems] == ["another file", "a folder", "another file"]


def test_dataset_dicts_and_folders_of_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    one, two = datasets.Dataset.from_list([{"text": "a"}]), datasets.Dataset.from_list([{"text": "b"}])
    datasets.DatasetDict({"train": one, "test": two, "extra": two}).save_to_disk(tmp_path / "dict")
    assert texts(tmp_path / "dict") == ["a"]
    assert texts(tmp_path / "dict", default="test") == texts(tmp_path / "dict", "extra") == ["b"]
    assert sources(tmp_path / "dict").unread == ("extra", "test")
    one.save_to_disk(tmp_path / "owners" / "anna")
    two.save_to_disk(tmp_path / "owners" / "ben")
    table = read_rows(tmp_path / "owners")
    assert [table.stem(i) for i in range(2)] == ["anna", "ben"]
    assert table.where(1) == f"{tmp_path}/owners/ben row 1"


def test_a_folder_names_no_file_outside_itself(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "d").mkdir()
    for name in ("../secret.arrow", "/etc/passwd", 3, None):
        (tmp_path / "d" / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        with pytest.raises(DataError, match=r"state.json: expected names of files beside it"):
            read_rows(tmp_path / "d")
    (tmp_path / "dict").mkdir()
    (tmp_path / "dict" / "dataset_dict.json").write_text(json.dumps({"splits": ["train/../../d"]}))
    with pytest.raises(DataError, match=r"a split named 'train'"):
        read_rows(tmp_path / "dict")


def test_nested_columns_of_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    from headwater.config.load import load_data
    from headwater.data.conversations import messages_of

    messages = [
        [
            {"role": "user", "content": "q", "weight": None},
            {"role": "assistant", "content": "a", "weight": 1.0},
        ],
        [{"role": "user", "content": "r"}, {"role": "assistant", "content": "b"}],
    ]
    import datetime

    when = [datetime.datetime(2026, 1, 2), None]
    parquet.write_table(pa.table({"messages": messages, "when": when}), tmp_path / "a.parquet")
    table = read_rows(tmp_path / "a.parquet")
    data = load_data({"kind": "instruction", "path": "x", "partition": {"kind": "files"}})
    assert messages_of(table, 0, data) == [
        {"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 1},
    ]  # fmt: skip
    assert messages_of(table, 1, data)[1] == {"role": "assistant", "content": "b"}
    json.dumps([table.columns[name][0] for name in table.columns])  # a device gets its rows as JSON


def test_a_parquet_file_that_unpacks_to_too_much(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    monkeypatch.setattr("headwater.data.files.arrow.ALWAYS_UNPACKED", 1000)
    parquet.write_table(pa.table({"text": ["x" * 1000] * 5000}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"unpacks to at most 200 times its size"):
        read_rows(tmp_path / "a.parquet")


def card(folder, configs):
    (folder / "README.md").write_text(f"---\nlicense: mit\n{configs}---\n# A data set\n")
    return folder


def test_the_card_of_a_repository_says_which_file_is_of_which_split(tmp_path):
    folder = place(tmp_path / "repo", "a.jsonl", "b.jsonl", "more/c.jsonl", "old.csv")
    card(folder, "configs:\n- config_name: default\n  data_files:\n  - split: train\n"
                 "    path: [a.jsonl, 'more/*']\n  - split: test\n    path: b.*\n")  # fmt: skip
    assert texts(folder) == ["a.jsonl", "more/c.jsonl"]
    assert texts(folder, default="test") == ["b.jsonl"]
    told = unread_splits(sources(folder), [])
    assert len(told) == 2
    assert "'train' is read, not 'test'" in told[0]
    assert "not read are 'old.csv', which its README.md does not list" in told[1]


def test_files_without_a_split_are_the_train_split_as_on_the_hub(tmp_path):
    folder = card(place(tmp_path / "repo", "in/a.jsonl", "in/b.jsonl"),
                  "configs:\n- config_name: x\n  data_dir: in\n  data_files: '*.jsonl'\n")  # fmt: skip
    assert texts(folder) == ["in/a.jsonl", "in/b.jsonl"]
    with pytest.raises(DataError, match="a split named 'test', got the splits 'train'"):
        sources(folder, default="test")


def test_several_configurations_are_refused_by_name_and_each_is_a_path(tmp_path):
    names = ("en/train-00000-of-00001.jsonl", "en/test-00000-of-00001.jsonl", "fr/train-00000-of-00001.jsonl")
    folder = place(tmp_path / "repo", *names)
    card(folder, "configs:\n- config_name: en\n  data_files: en/*\n- config_name: fr\n  data_files: fr/*\n")
    with pytest.raises(
        DataError, match=r"with 2 of them, as its README\.md says: 'en', 'fr'\. Give the folder"
    ):
        sources(folder)
    assert texts(folder / "en") == [names[0]]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("train-*", "files of the split 'train' at train-.*got none"),
        ("../a.jsonl", "below its own folder"),
        ("https://example.org/a.jsonl", "below its own folder"),
        ("[7]", "name a split and its paths"),
    ],
)
def test_a_card_that_lists_what_is_not_here_is_refused(tmp_path, files, message):
    folder = card(place(tmp_path / "repo", "b.jsonl"), f"configs:\n- config_name: x\n  data_files: {files}\n")
    with pytest.raises(DataError, match=message):
        sources(folder)


@pytest.mark.parametrize(
    "text", ["# A card", "---\nconfigs: no\n---\n", "---\n: [\n---\n", "---\nconfigs: []\n"]
)
def test_a_readme_that_lists_no_files_decides_nothing(tmp_path, text):
    folder = place(tmp_path / "owners", "anna.jsonl", "ben.jsonl")
    (folder / "README.md").write_text(text)
    assert texts(folder) == ["anna.jsonl", "ben.jsonl"]
