"""The recipes for private federations, followed from an empty folder with rows and a model made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.docs.test_tutorial import DOCS, commands, write_files
from tests.support.command import headwater
from tests.support.runs import rows, write_jsonl
from tests.support.tiny_models import tiny_bert


def follow(name: str, rounds: int) -> dict[str, str]:
    """Do what a page says, with fewer ``rounds`` and no processes; what each command printed."""
    page = (DOCS / "recipes" / f"{name}.md").read_text(encoding="utf-8")
    write_files(page)
    file = Path("federation.toml")
    lines = [f"rounds = {rounds}" if x.startswith("rounds = ") else x for x in file.read_text().splitlines()]
    file.write_text("\n".join(lines))
    said = {}
    for command in commands(page):
        if "--workers" in command:  # with the same bits, and no processes that load torch
            at = command.index("--workers")
            command = command[:at] + command[at + 2 :]
        done = headwater(*command[1:])
        assert done.code == 0, (command, done.err)
        said[" ".join(command[1:])] = done.out + done.err
    return said


def relabelled(owner: str, count: int, labels: dict[str, str]) -> list[dict[str, str]]:
    """Rows of good and bad texts under a page's labels."""
    return [{"text": r["text"], "label": labels[r["label"]]} for r in rows(owner, count)]


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow  # some ten seconds of CPU time, most of them accounting
def test_phones_spend_their_budget_and_no_more(empty):
    labels = {"good": "positive", "bad": "negative"}
    tiny_bert(Path("minilm"), layers=6)
    write_jsonl(Path("train.jsonl"), relabelled("ann", 400, labels))
    write_jsonl(Path("test.jsonl"), relabelled("zoe", 8, labels))
    follow("private-phones", 1)
    summary = json.loads(Path("run/summary.json").read_text())
    assert len(Path("run/privacy.jsonl").read_text().splitlines()) == 1
    assert 3.5 < summary["privacy"]["epsilon"] <= 4.0
    assert summary["clients"] == 200


def test_hospitals_have_receipts_masks_and_ledgers_of_their_own(empty):
    labels = {"good": "routine", "bad": "urgent"}
    tiny_bert(Path("base"))
    Path("clients").mkdir()
    for name in ("north", "south", "east", "west"):
        write_jsonl(Path(f"clients/{name}.jsonl"), relabelled(name, 100, labels))
    write_jsonl(Path("test.jsonl"), relabelled("zoe", 8, labels))
    said = follow("hospitals", 1)
    plain, masked = (json.loads(Path(f"{x}/summary.json").read_text()) for x in ("trial", "masked"))
    assert plain["rounds"] == masked["rounds"] == 1
    assert not plain["failures"]
    assert not masked["failures"]
    clients = json.loads(Path("trial/rounds.jsonl").read_text().splitlines()[1])["clients"]
    assert [row["examples"] for row in clients.values()] == [100] * 4
    assert not any("loss" in row for row in clients.values())  # "losses are not told"
    assert "receipts, none missing or altered" in said["verify trial/adapter"]
    assert Path("fl/server.toml").is_file()
