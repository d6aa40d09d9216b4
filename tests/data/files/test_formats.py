import csv
import json
import sys
from pathlib import Path

import pytest

from headwater.data.files.formats import read_rows
from headwater.data.files.table import FILE_COLUMN, check_name
from headwater.errors import DataError, MissingDependency
from tests.data.toys import write_jsonl

ROWS = [
    {"text": 'a "quoted", comma', "label": "pos"},
    {"text": "two\nlines and \u2028 a line separator", "label": "neg"},
    {"text": "ünï©ode 🙂", "label": "pos"},
]


def write_csv(path: Path, rows: list[dict[str, str]], *, bom: bool = False) -> Path:
    with path.open("w", newline="", encoding="utf-8-sig" if bom else "utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_every_format_gives_the_same_rows(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    write_jsonl(tmp_path / "a.jsonl", ROWS)
    write_csv(tmp_path / "b.csv", ROWS)
    write_csv(tmp_path / "bom.csv", ROWS, bom=True)
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "c.parquet")
    write_jsonl(tmp_path / "folder" / "1.jsonl", ROWS[:1])
    write_csv(tmp_path / "folder" / "2.csv", ROWS[1:])
    paths = [tmp_path / name for name in ("a.jsonl", "b.csv", "bom.csv", "c.parquet", "folder")]
    for path in paths:
        found = read_rows(path)
        rows = [{name: column[i] for name, column in found.columns.items()} for i in range(len(found))]
        assert rows == ROWS, path
    assert [read_rows(tmp_path / "folder").value(FILE_COLUMN, i) for i in range(3)] == ["1", "2", "2"]


def test_datasets_folders_need_pyarrow_only(tmp_path):
    datasets = pytest.importorskip("datasets")
    plain = datasets.Dataset.from_list(ROWS)
    plain.save_to_disk(tmp_path / "plain")
    plain.select([2, 0]).save_to_disk(tmp_path / "selected", num_shards=2)
    datasets.DatasetDict({"train": plain, "test": plain}).save_to_disk(tmp_path / "dict")
    datasets.DatasetDict({"test": plain}).save_to_disk(tmp_path / "no-train")
    classes = datasets.Features({"y": datasets.ClassLabel(names=["bad", "good"])})
    datasets.Dataset.from_dict({"y": [1, 0, None, -1]}, features=classes).save_to_disk(tmp_path / "classes")
    assert list(read_rows(tmp_path / "plain").columns["text"]) == [row["text"] for row in ROWS]
    assert list(read_rows(tmp_path / "selected").columns["label"]) == ["pos", "pos"]
    assert read_rows(tmp_path / "selected").text("text", 0) == ROWS[2]["text"]
    assert len(read_rows(tmp_path / "dict")) == len(read_rows(tmp_path / "dict" / "test")) == 3
    assert list(read_rows(tmp_path / "classes").columns["y"]) == ["good", "bad", None, None]
    with pytest.raises(DataError, match=r"'train'.*'test'"):
        read_rows(tmp_path / "no-train")


def test_rows_know_where_they_came_from(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{"text": "one"}\n\n{"text": "two"}\n')
    found = read_rows(tmp_path / "a.jsonl")
    assert [found.where(i) for i in range(2)] == [f"{tmp_path}/a.jsonl:2", f"{tmp_path}/a.jsonl:4"]
    rows = read_rows(write_csv(tmp_path / "b.csv", ROWS))
    assert [rows.line[i] for i in range(3)] == [2, 3, 5]  # the second row is two lines long


def test_a_csv_field_may_be_a_whole_speech(tmp_path):
    before = csv.field_size_limit()
    long = "word " * 100_000
    assert read_rows(write_csv(tmp_path / "a.csv", [{"text": long}])).text("text", 0) == long
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "at least one row.*empty file"),
        ("a.csv", b"text,label\n", "at least one row.*empty file"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": "caf\xe9"}\n', "a.jsonl:2: expected UTF-8.*0xe9 at byte 28"),
        ("a.csv", b"text\nok\ncaf\xe9\n", "a.csv:3: expected UTF-8.*0xe9 at byte 11"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": \n', "a.jsonl:2: expected one JSON object"),
        ("a.jsonl", b'{"text": "ok"}\n[1]\n', "a.jsonl:2: expected one JSON object.*got a list"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: expected one JSON object"),
        ("a.jsonl", b'{"n": ' + b"9" * 5000 + b"}", "a.jsonl:1: expected one JSON object"),
        ("a.csv", b"text,label\nok,pos\none, two,neg\n", "a.csv:3: expected 2 fields.*got 3"),
        ("a.csv", b"text,text\na,b\n", "a.csv:1: expected a header of unique"),
        ("a.csv", b'text\n"open\n', "a.csv:2: expected valid CSV"),
        ("a.json", b"[]", "at least one row"),
        ("a.parquet", b"not parquet", "expected a Parquet file"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / name)


def test_missing_files_and_odd_folders(tmp_path):
    with pytest.raises(DataError, match=r"nothing there"):
        read_rows(tmp_path / "none.jsonl")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / ".hidden").write_text("x")
    (folder / "README.md").write_text("x")
    with pytest.raises(DataError, match=r"empty folder"):
        read_rows(folder)
    (folder / "b.txt").write_text("x")
    with pytest.raises(DataError, match=r"b.txt.*only"):
        read_rows(folder)
    (folder / "b.txt").unlink()
    (folder / "inner").mkdir()
    with pytest.raises(DataError, match=r"inner.*got a folder"):
        read_rows(folder)


def test_a_datasets_folder_with_a_part_missing(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "gone.arrow"}]}))
    with pytest.raises(DataError, match=r"gone.arrow"):
        read_rows(tmp_path)
    (tmp_path / "state.json").write_text(json.dumps({"_indices_data_files": [{"filename": "i.arrow"}]}))
    with pytest.raises(DataError, match=r"separate index"):
        read_rows(tmp_path)
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"state.json"):
        read_rows(tmp_path)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.ipc", None)
    with pytest.raises(MissingDependency, match=r"headwater\[simulation\]"):
        read_rows(tmp_path / "a.parquet")


def test_lists_of_class_labels_are_lists_of_their_names(tmp_path):
    """As data sets with several labels for a row have them."""
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["joy", "fear", "anger"])
    features = datasets.Features({"text": datasets.Value("string"), "labels": datasets.Sequence(names)})
    rows = {"text": ["a", "b", "c"], "labels": [[2, 0], [], None]}
    found = datasets.Dataset.from_dict(rows, features=features)
    found.save_to_disk(tmp_path / "folder")
    found.to_parquet(tmp_path / "a.parquet")
    for path in ("folder", "a.parquet"):
        assert list(read_rows(tmp_path / path).columns["labels"]) == [["anger", "joy"], [], None]
    written = {"info": {"features": {"labels": [{"names": ["joy", "fear"], "_type": "ClassLabel"}]}}}
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    metadata = {"huggingface": json.dumps(written)}
    old = pa.table({"labels": [[0, 1]]}).replace_schema_metadata(metadata)
    parquet.write_table(old, tmp_path / "old.parquet")
    assert list(read_rows(tmp_path / "old.parquet").columns["labels"]) == [["joy", "fear"]]
    parquet.write_table(
        pa.table({"labels": [[0, 7]]}).replace_schema_metadata(metadata), tmp_path / "bad.parquet"
    )
    with pytest.raises(DataError, match="one of 2 classes in 'labels', got 7"):
        read_rows(tmp_path / "bad.parquet")


def test_two_columns_of_one_name_are_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    names = ["text", "label", "text"]
    parquet.write_table(pa.Table.from_arrays([["a"], ["1"], ["b"]], names=names), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="expected columns of different names, got 'text' twice"):
        read_rows(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": "pos"}, "rows.jsonl:2: expected a value in column 'text', got none"),
        ({"text": None}, "rows.jsonl:2: expected a value in column 'text', got none"),
        ({"text": 3}, "rows.jsonl:2: expected text in column 'text', got int 3"),
        ({"text": " \n"}, "rows.jsonl:2: expected text in column 'text', got an empty text"),
        ({"text": "half \ud800"}, "rows.jsonl:2: .*surrogate pair at character 5"),
    ],
)
def test_a_bad_text_is_named_by_its_line(tmp_path, row, message):
    rows = read_rows(write_jsonl(tmp_path / "rows.jsonl", [{"text": "fine"}, row]))
    assert rows.text("text", 0) == "fine"
    with pytest.raises(DataError, match=message):
        rows.text("text", 1)


def test_a_missing_column_says_which_exist(tmp_path):
    rows = read_rows(write_jsonl(tmp_path / "rows.jsonl", ROWS))
    with pytest.raises(DataError, match=r"a column 'body', got the columns 'text', 'label'"):
        rows.text("body", 0)


def test_labels_are_compared_as_text(tmp_path):
    rows = read_rows(write_jsonl(tmp_path / "r.jsonl", [{"y": "1"}, {"y": 1}, {"y": 1.5}, {"y": ["1"]}]))
    assert [rows.name("y", i) for i in range(3)] == ["1", "1", "1.5"]
    with pytest.raises(DataError, match=r"r.jsonl:4: expected text or a number.*list"):
        rows.name("y", 3)


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", " padded", "padded ", "e\u0301", "\u200b", "nul\0"])
def test_names_that_cannot_be_a_clients(name):
    with pytest.raises(DataError, match=r"here: expected a client name"):
        check_name(name, "here")


@pytest.mark.parametrize("name", ["a", "x" * 64, "Klinik Süd", "edge-7", "山田"])
def test_names_that_can(name):
    assert check_name(name, "here") == name


def test_a_comma_before_the_closing_bracket_is_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('[{"text": "a"},\n {"text": "b"},\n]\n')
    with pytest.raises(DataError, match=r"x\.json:3: .*got a comma before the closing bracket"):
        read_rows(path)
