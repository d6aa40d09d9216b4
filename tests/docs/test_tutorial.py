"""docs/tutorial.md and the recipes: their commands and files, as they stand there."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest

from headwater.config import load_federation
from tests.support.command import headwater
from tests.support.runs import rows, write_jsonl
from tests.support.tiny_models import tiny_bert

DOCS = Path(__file__).parents[2] / "docs"
RECIPES = sorted((DOCS / "recipes").glob("*.md"))
ELSEWHERE = ("python3 -m venv .venv", ". .venv/bin/activate", "pip install ", "headwater fetch ")
"""They install and download; `make demo` does the same."""


def write_files(page: str) -> None:
    """The files that a page shows, into the current folder."""
    for name, text in re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', page, re.MULTILINE | re.DOTALL):
        Path(name).write_text(text)


def commands(page: str) -> list[list[str]]:
    """Each command of a page but those of ``ELSEWHERE``, in words."""
    found = [line[2:] for line in page.splitlines() if line.startswith("$ ")]
    return [shlex.split(line) for line in found if not line.startswith(ELSEWHERE)]


def test_the_tutorial(tmp_path, monkeypatch, capsys):
    """Every command, with a tiny model of as many layers in MiniLM's place."""
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    write_files(page)
    tiny_bert(Path(".cache/headwater/minilm"), layers=6)
    Path(".cache/headwater/minilm/README.md").write_text(
        "---\nlanguage: en\nlicense: apache-2.0\n---\n# MiniLM\n"
    )
    corpus = Path(".cache/headwater/sentiment")
    corpus.mkdir()
    words = {"good": "positive", "bad": "negative"}
    for name, count in (("train", 16), ("test", 8)):
        found = [row for owner in ("amazon", "movies", "nyt", "tweets") for row in rows(owner, count)]
        write_jsonl(
            corpus / f"{name}.jsonl",
            [{"text": r["text"], "label": words[r["label"]], "domain": r["owner"]} for r in found],
        )
    said = {}
    for command in commands(page):
        assert command[0] == "headwater"
        if "--workers" in command:  # with the same bits, and no processes that load torch
            at = command.index("--workers")
            command = command[:at] + command[at + 2 :]
        done = headwater(*command[1:])
        assert done.code == 0 or command[1] in ("doctor", "check"), (command, done.err)
        said[command[1]] = done.out
    first, more = (
        [json.loads(line) for line in Path(f"runs/{name}/rounds.jsonl").read_text().splitlines()]
        for name in ("reviews", "more")
    )
    best = json.loads(Path("runs/reviews/summary.json").read_text())["metric"]["best"]
    assert [row["round"] for row in first] == [0, 1, 2, 3, 4]
    assert more[0]["test"]["accuracy"] == best  # "its round 0 scores what the old one's best round scored"
    assert [line.split("\t")[0] in ("positive", "negative") for line in said["predict"].splitlines()] == [
        True
    ] * 2
    summary = json.loads(Path("runs/reviews/summary.json").read_text())
    card = Path("runs/reviews/adapter/README.md").read_text()  # "is the adapter's model card"
    for row in (
        "| base's licence | apache-2.0 |",
        "| data owners | 4 |",
        "| rounds | 4 |",
        f"| bytes | {summary['bytes']['up']:,} up, ",
        f"| accuracy on test | {summary['metric']['final']:.4g} in the last round, best {best:.4g} in round ",
        "| merge rule | mean |",
        "| uploads | compeft |",
        "| privacy | rows stayed with their owners; no noise",
    ):
        assert row in card, row
    assert "tweets" not in card  # owners are counted, not named
    assert "reviews" in said["runs"]
    assert "vllm" in said["check"]
    assert Path("runs/reviews/report.html").is_file()
    runpy.run_path("ask.py")
    labels = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert len(labels) == 2
    assert set(labels) <= {"positive", "negative"}


@pytest.mark.parametrize("page", RECIPES, ids=lambda p: p.stem)
def test_a_recipes_files_are_right(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    write_files(text)
    found = commands(text)
    assert ["headwater", "config", "check", "federation.toml"] in found
    for command in found:
        if command[1:3] == ["config", "check"] or "--dry-run" in command:
            done = headwater(*command[1:])
            assert done.code == 0, done.err
    load_federation(Path("federation.toml"))


PAGES = [DOCS / "start.md", *RECIPES, *sorted(DOCS.glob("how-to/*.md")), *sorted(DOCS.glob("guides/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_first_screen_of_a_page_says_what_its_reader_has_in_the_end(page):
    title, opening = page.read_text(encoding="utf-8").split("\n\n")[:2]
    assert title.startswith("# ")
    assert opening.startswith("At the end ")


def test_the_docs_stay_short():
    """Of what people wrote to be read: pages that scripts write are as long as what they tell of, and of
    decisions and of what lost there is a record each.

    A word has a letter or a digit: the marks of tables, lists and code are none.
    """
    pages = [p for p in DOCS.rglob("*.md") if p.parent.name != "decisions" and p.name != "log.md"]
    texts = [page.read_text(encoding="utf-8") for page in pages]
    by_people = [text for text in texts if not re.search(r"[Ww]ritten by `?scripts/", text[:600])]
    assert len(texts) - len(by_people) >= 2
    assert sum(len(re.findall(r"\S*\w\S*", text)) for text in by_people) <= 36_000
