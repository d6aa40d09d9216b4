"""The six kinds on archives made here; ``test_fetch_real.py`` has the real ones."""

import json
import zipfile
from collections import Counter

import pytest

from headwater.data.instruction_corpus import _CATEGORIES, _TOPICS, build_instructions
from tests.data.test_corpora import deb, read, vader

LICENCE = "  1 the licence"
WORDS = ["".join("abcdefghij"[int(d)] for d in f"{i:03}") for i in range(120)]
"""Words of letters, of which half go to either kind of nouns."""


def lines(part: str) -> dict[str, bytes]:
    """``data`` and ``index`` of a part of speech, one synset a word, as wndb(5WN) has them."""
    data, index = [LICENCE], [LICENCE]
    for i, word in enumerate(WORDS):
        offset = 1000 + i
        other = 1000 + (i ^ 1)  # an adjective's antonym: its neighbour
        pointers = f"001 ! {other:08} a 0101" if part == "adj" else "001 @ 00000001 n 0000"
        gloss = f'meaning {i} of it; and more; "one {word}s it"; "another"'
        number = {"noun": (5, 6, 15, 18)[i % 4], "verb": 30, "adj": 0}[part]
        kind = part[0]
        data.append(f"{offset:08} {number:02} {kind} 02 {word} 0 syn_onym 0 {pointers} | {gloss}  ")
        index.append(f"{word} {kind} 1 1 ! 1 {1 if i else 0} {offset:08}  ")  # the first is in no tagged text
    index.append("two_words n 1 1 ! 1 3 00001000  ")
    return {f"data.{part}": "\n".join(data).encode(), f"index.{part}": "\n".join(index).encode()}


@pytest.fixture
def archives(tmp_path):
    files = {name: text for part in ("noun", "verb", "adj") for name, text in lines(part).items()}
    (tmp_path / "w.deb").write_bytes(deb({f"./usr/share/wordnet/{n}": text for n, text in files.items()}))
    with zipfile.ZipFile(tmp_path / "c.whl", "w") as wheel:
        for topic in _TOPICS:
            said = [[f"{topic} {i}?", f"answer\n{i}", "more"] for i in range(9)]
            said += [[f"{topic.upper()} 1?", "said before"], ["LOUD", "x"], [f"{topic} long?", "long " * 40]]
            wheel.writestr(f"chatterbot_corpus/data/english/{topic}.yml", json.dumps({"conversations": said}))
    return tmp_path / "w.deb", tmp_path / "c.whl", vader(tmp_path / "v.tar.gz")


def built(archives, out):
    out.mkdir()
    build_instructions(*archives, out, train_per_kind=30, test_per_kind=10)
    return read(out / "train.jsonl"), read(out / "test.jsonl")


def test_there_are_as_many_rows_of_each_kind_and_none_twice(archives, tmp_path):
    train, test = built(archives, tmp_path / "out")
    kinds = ("question", "definition", "usage", "opposite", "category", "sentiment")
    assert Counter(row["kind"] for row in train) == dict.fromkeys(kinds, 30)
    assert Counter(row["kind"] for row in test) == dict.fromkeys(kinds, 10)
    prompts = [row["prompt"].lower() for row in train + test]
    assert len(set(prompts)) == len(prompts)


def test_building_twice_gives_the_same_bytes(archives, tmp_path):
    for name in ("one", "two"):
        built(archives, tmp_path / name)
    for name in ("train.jsonl", "test.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_prompts_and_answers_are_what_the_sources_say(archives, tmp_path):
    train, test = built(archives, tmp_path / "out")
    for row in train + test:
        word = row["prompt"].split('"')[1] if '"' in row["prompt"] else ""
        number = WORDS.index(word) if word else -1
        assert number != 0, "it is in no tagged text"
        match row["kind"]:
            case "question":
                assert row["answer"] == f"answer {row['prompt'][:-1].split()[1]}"
            case "definition":
                assert row["answer"] == f"meaning {number} of it; and more"
            case "usage":
                assert row["answer"] == f"one {word}s it"
            case "opposite":
                assert row["answer"] == WORDS[number ^ 1]
            case "category":
                assert row["answer"] == ("animal", "artifact", "", "person")[number % 4]
            case "sentiment":
                assert row["answer"] in ("positive", "negative")


def test_nothing_held_out_is_told_by_a_row_of_training(archives, tmp_path):
    train, test = built(archives, tmp_path / "out")

    def told(rows, kind, of):
        return {of(row) for row in rows if row["kind"] == kind}

    def pair(row):
        return frozenset((row["prompt"].split('"')[1], row["answer"]))

    assert not told(train, "opposite", pair) & told(test, "opposite", pair)
    document = [
        {row["prompt"].rsplit(" ", 1)[1].split("/")[0] for row in rows if "nyt said" in row["prompt"]}
        for rows in (train, test)
    ]
    assert not document[0] & document[1]
    words = [
        told(train + test, kind, lambda row: row["prompt"].split('"')[1])
        for kind in ("definition", "category")
    ]
    assert not words[0] & words[1]
    assert set(_CATEGORIES) >= told(train + test, "category", lambda row: row["answer"])
