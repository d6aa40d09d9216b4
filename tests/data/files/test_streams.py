"""What bytes are, and what comes out of packed files."""

import bz2
import gzip
import json
import lzma
import os
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.data.files import json_array, json_rows, streams
from headwater.data.files.formats import read_rows
from headwater.data.files.problems import BadRows
from headwater.data.files.sniff import binary_kind
from headwater.data.files.streams import stem, suffixes
from headwater.errors import DataError, MissingDependency
from tests.data.toys import write_jsonl

ROWS = [{"text": f"row {i} é", "label": "ab"[i % 2]} for i in range(50)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
CSV = "text,label\nhello,a\nworld,b\n"


def rows(path):
    table = read_rows(path)
    return [{name: column[i] for name, column in table.columns.items()} for i in range(len(table))]


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_packed_files_are_unpacked(tmp_path, suffix, pack):
    (tmp_path / f"anna.jsonl{suffix}").write_bytes(pack(LINES[:900]) + pack(LINES[900:]))  # two members
    assert rows(tmp_path / f"anna.jsonl{suffix}") == ROWS
    assert read_rows(tmp_path / f"anna.jsonl{suffix}").stem(0) == "anna"
    (tmp_path / f"b.CSV{suffix}").write_bytes(pack(CSV.encode()))
    assert rows(tmp_path / f"b.CSV{suffix}")[1] == {"text": "world", "label": "b"}


def test_zstd_needs_pyarrow(tmp_path, monkeypatch):
    arrow = pytest.importorskip("pyarrow")
    with arrow.CompressedOutputStream(str(tmp_path / "a.jsonl.zst"), "zstd") as out:
        out.write(LINES)
    assert rows(tmp_path / "a.jsonl.zst") == ROWS
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match=r"headwater\[simulation\]"):
        read_rows(tmp_path / "a.jsonl.zst")


def test_what_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "ALWAYS_UNPACKED", 10_000)
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 200_000))
    with pytest.raises(
        DataError, match=r"bomb.jsonl.gz: expected a compressed file that unpacks to at most 200"
    ):
        read_rows(tmp_path / "bomb.jsonl.gz")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", CSV.encode("utf-16"), r"got UTF-16 text\. .*iconv -f utf-16 -t utf-8"),
        ("a.csv", CSV.encode("utf-16-le"), r"got UTF-16LE text without a byte order mark\. .*utf-16le"),
        ("a.csv", CSV.encode("utf-16-be"), r"got UTF-16BE text"),
        ("a.csv", CSV.encode("utf-32"), r"got UTF-32 text"),
        ("a.csv", CSV.encode("utf-32-le"), r"got UTF-32 text without"),
        ("a.jsonl", gzip.compress(LINES), r"got gzip-compressed data\. Name it \*\.jsonl\.gz"),
        ("a.jsonl", lzma.compress(LINES), r"got xz-compressed data\. Name it \*\.jsonl\.xz"),
        ("a.csv", b"PK\x03\x04rest", r"got a zip archive, as Excel.*save it as CSV"),
        ("a.xlsx", b"PK\x03\x04rest", r"got a file named \*\.xlsx: a zip archive, as Excel.*save it as CSV"),
        ("a.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", r"got an old Excel"),
        ("a.jsonl", b"%PDF-1.7", r"got a PDF"),
        ("a.jsonl", b"PAR1xxxx", r"got a Parquet file\. Name it \*\.parquet"),
        ("a.jsonl", b"\x00" * 5000, r"nothing but zero bytes"),
        ("a.csv", b"<!DOCTYPE html>\n<html>Not found", r"got an HTML page"),
        ("a.csv", bytes(range(256)) * 8, r"got binary data"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid 1\n", r"got a Git LFS pointer"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid 1\n", r"it is a Git LFS pointer"),
        ("a.jsonl.gz", b'{"text": 1}\n', r"expected a whole compressed file"),
        ("a.jsonl.gz", gzip.compress(LINES)[:-9], r"expected a whole compressed file"),
        ("a.csv", "text\ncafé\n".encode("cp1252"), r"a.csv:2: .*byte 0xe9 at byte 8 .*in cp1252 it is 'é'"),
        ("a.csv", "text\n日本\n".encode("shift-jis"), r"a.csv:2: .*in another encoding.*iconv -f ENCODING"),
        ("a.jsonl", '{"text": "né"}'.encode()[:-3], r"in the middle of a character.*cut off"),
        ("a.csv", b"text;label\na;b\n", r"a.csv:1: expected a comma between the columns, got a semicolon"),
        ("a.csv", b"sep=;\ntext;label\n", r"a.csv:1: expected a comma .*got a semicolon"),
        ("a.csv", b"text\tlabel\na\tb\n", r"got a tab in .*Name it \*\.tsv"),
        ("a.tsv", b"text,label\na,b\n", r"got a comma in .*Name it \*\.csv"),
        ("a.json", b'{"version": 1,\n "data": [{"text": "a"}]}', r"one object with the keys 'version', "),
        ("a.json", b'{"text": {"0": "a"}, "label": {"0": "b"}}', r"one object with the keys 'text', 'label'"),
        ("a.json", b'[{"text": "a"},\n {"text": "b"', r"a.json:2: expected an array of JSON objects, got"),
        ("a.json", b'[{"text": "a"}] x', r"got more after its end"),
        ("a.jsonl", b'{\n "text": "a"\n}\n', r"a.jsonl:1: .*spread over several lines"),
        ("a.jsonl", b'{"text": "a", "text": "b"}\n', r"a.jsonl:1: .*the key 'text' twice"),
        ("a.jsonl", b'{"text": ' + b"[" * 200 + b"]" * 200 + b"}\n", r"at most 100 levels of nesting"),
        ("a.txt", b"plain", r"got a file named \*\.txt"),
    ],
)  # fmt: skip
def test_every_other_file_is_named_by_what_it_is(tmp_path, name, content, message):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / name)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=20), st.booleans())
def test_utf8_text_is_never_taken_for_something_binary(texts, bom):
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    head = lines.encode("utf-8", "surrogatepass")
    assert binary_kind((b"\xef\xbb\xbf" if bom else b"") + head[:4096]) is None


def test_a_pipe_is_no_data(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"a device or a pipe"):
        read_rows(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_row_of_100_mb_is_one_problem_and_costs_no_memory(tmp_path, monkeypatch, name):
    monkeypatch.setattr(json_rows, "ROW_BYTES", 1000)
    monkeypatch.setattr("headwater.data.files.csv_rows.ROW_BYTES", 1000)
    if name == "a.jsonl":
        (tmp_path / name).write_bytes(b'{"text": "ok"}\n{"text": "' + b"x" * 5000 + b'"}\n{"text": "ok"}\n')
    else:
        (tmp_path / name).write_bytes(b"text\nok\n" + b"x" * 5000 + b"\n")
    with pytest.raises(DataError, match=rf"{name}:[23]: expected a row of at most"):
        read_rows(tmp_path / name)


def test_json_arrays_and_json_lines_in_one_suffix(tmp_path):
    (tmp_path / "array.json").write_text("\ufeff" + json.dumps(ROWS, indent=2))
    (tmp_path / "flat.json").write_text(json.dumps(ROWS))
    (tmp_path / "lines.json").write_bytes(LINES)
    for name in ("array", "flat", "lines"):
        assert rows(tmp_path / f"{name}.json") == ROWS
    table = read_rows(tmp_path / "array.json")
    assert table.where(1) == f"{tmp_path}/array.json:6"


def test_tab_separated_texts_keep_their_commas(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\na, b\tx\n"two ""words""\tand\nlines"\ty\n')
    assert rows(tmp_path / "a.tsv") == [
        {"text": "a, b", "label": "x"}, {"text": 'two "words"\tand\nlines', "label": "y"},
    ]  # fmt: skip


def test_the_index_that_pandas_writes_is_a_column_like_any_other(tmp_path):
    (tmp_path / "a.csv").write_text(",text\n0,hello\n")
    assert list(read_rows(tmp_path / "a.csv").columns) == ["unnamed column 1", "text"]


def test_all_bad_rows_of_all_files_are_named_at_once(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.jsonl").write_bytes(b'{"text": "ok"}\n{\n[1]\n{"text": "\xff"}\n')
    (tmp_path / "c" / "b.csv").write_bytes(b"text,label\nok,x\na,b,c\nok,y\n")
    (tmp_path / "c" / "d.jsonl").write_bytes(b"%PDF")
    with pytest.raises(BadRows) as caught:
        read_rows(tmp_path / "c")
    assert caught.value.count == 5
    said = str(caught.value).splitlines()
    assert said[0] == "5 rows or files cannot be used:"
    where = [line.split(": ")[0].strip().removeprefix(f"{tmp_path}/c/") for line in said[1:6]]
    assert where == ["a.jsonl:2", "a.jsonl:3", "a.jsonl:4", "b.csv:3", "d.jsonl"]


def test_of_many_bad_rows_the_first_are_shown_and_all_are_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text("nonsense\n" * 500)
    with pytest.raises(BadRows) as caught:
        read_rows(tmp_path / "a.jsonl")
    assert (caught.value.count, len(caught.value.problems)) == (500, 20)
    assert "… and 480 more" in str(caught.value)


def test_an_error_of_many_rows_crosses_processes(tmp_path):
    import pickle

    (tmp_path / "a.jsonl").write_text("x\ny\n")
    with pytest.raises(BadRows) as caught:
        read_rows(tmp_path / "a.jsonl")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.count, again.exit_code) == (str(caught.value), 2, 3)


def test_names_without_suffixes(tmp_path):
    assert [stem(tmp_path / n) for n in ("a.jsonl", "a.b.csv.gz", "A.JSONL.XZ", "folder")] == [
        "a", "a.b", "A", "folder",
    ]  # fmt: skip
    assert suffixes(tmp_path / "A.JSONL.XZ") == (".jsonl", ".xz")
    write_jsonl(tmp_path / "x.jsonl", ROWS[:1])


@pytest.mark.parametrize("packed", [".gz", ".bz2", ".xz"])
def test_what_is_not_compressed_is_refused_with_a_next_step(tmp_path, packed):
    path = tmp_path / f"x.jsonl{packed}"
    path.write_text('{"text": "plain"}\n')
    with pytest.raises(DataError) as refused:
        read_rows(path)
    assert "take the last suffix off its name" in refused.value.hint


@pytest.mark.parametrize("read", [1, 7, 2**20])
def test_arrays_are_the_same_rows_whatever_is_read_at_a_time(tmp_path, monkeypatch, read):
    monkeypatch.setattr(json_array, "_READ", read)
    rows = [
        {"text": 'caf\u00e9 \U0001f600 \\ "[{'},
        {"n": 12, "list": [1, {"a": None}], "text": ""},
        {"text": "line\u2028 \\u"},
    ]
    for indent in (None, 1):
        path = tmp_path / f"{indent}.json"
        path.write_text("\ufeff \n" + json.dumps(rows, indent=indent, ensure_ascii=indent is None) + "\n\n")
        found = read_rows(path)
        assert [{k: v[i] for k, v in found.columns.items() if v[i] is not None} for i in range(3)] == [
            {k: v for k, v in row.items() if v is not None} for row in rows
        ]
        assert list(found.line) == ([2, 2, 2] if indent is None else [3, 6, 16])


@pytest.mark.parametrize("read", [1, 7, 2**20])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"text": "a"},\n {"text": "b"', "x.json:2: expected an array of JSON objects, got the end"),
        (b'[{"text": "a"},\n {"text": b}]', "x.json:2: .*no valid JSON: Expecting value"),
        (b'[{"text": "a"}\n {"text": "b"}]', "x.json:2: .*got expected ',' or ']'"),
        (
            b'[{"text": "a"},\n\n {"text": "b\xe9"}]',
            "x.json:3: expected UTF-8 text, got byte 0xe9 at byte 29",
        ),
        (b'[{"text": "a"},\n {"text": "b\xc3', "x.json:2: .*in the middle of a character"),
        (b'[{"text": "a"}]\n]', "more after its end"),
        (b'[{"text": "a"},\n 12, 1]', r"x.json:2: .*got a int"),
        (b'[{"a": 1, "a": 2}]', "x.json:1: .*the key 'a' twice"),
    ],
)
def test_broken_arrays_are_named_whatever_is_read_at_a_time(tmp_path, monkeypatch, read, content, message):
    monkeypatch.setattr(json_array, "_READ", read)
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / "x.json")


def test_an_array_is_not_read_whole(tmp_path):
    """What is held is bounded by the rows, not by the file."""
    path = tmp_path / "x.json"
    row = json.dumps({"text": "x" * 1000})
    path.write_text("[" + ",\n".join([row] * 20_000) + "]")
    with streams.open_data(path) as stream:
        tracemalloc.start()
        try:
            count = sum(1 for _ in json_array.read_json(path, stream))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert count == 20_000
    assert peak < path.stat().st_size // 2


def test_a_row_of_an_array_that_is_too_long_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(json_array, "_READ", 16)
    monkeypatch.setattr(json_array, "ROW_BYTES", 256)
    (tmp_path / "x.json").write_text('[{"text": "a"},\n{"text": "' + "b" * 2000 + '"}]')
    with pytest.raises(DataError, match=r"x\.json:2: expected a row of at most"):
        read_rows(tmp_path / "x.json")
