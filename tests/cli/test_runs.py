"""``headwater runs``: what is found, what is said of it, and what the files do to it."""

from __future__ import annotations

import json
import os
import re
import shutil
import webbrowser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import ConfigError
from headwater.server.report.compared import compare, differing
from headwater.server.storage.run_folder import RunFolder, in_use
from headwater.text import finite
from tests.server.report.test_report import HOSTILE, Page, make_run
from tests.support.chromium import chromium
from tests.support.command import headwater
from tests.support.runs import bare_federation, run


def begin(path: Path, toml: str = "", **options) -> Path:
    """A run folder with a resolved file."""
    make_run(path, **options)
    (path / "federation.toml").write_text(toml or f'[federation]\nname = "{path.name}"\nrounds = 10\n')
    return path


def told(*arguments: object) -> dict:
    done = headwater("runs", *arguments, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_a_run_of_the_product_is_found_and_said_to_be_what_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = bare_federation(tmp_path / "f")
    summary, _ = run(file, tmp_path / "runs" / "a" / "deep", "federation.seed=7")
    run(file, tmp_path / "runs" / "b", "federation.rounds=2")
    content = told()
    assert [row["folder"] for row in content["runs"]] == ["runs/a/deep", "runs/b"]
    row = content["runs"][0]
    for key in ("name", "seconds", "adapter_sha256", "clients", "rounds"):
        assert row[key] == pytest.approx(summary[key]) if key == "seconds" else row[key] == summary[key], key
    assert (row["bytes_up"], row["bytes_down"]) == (summary["bytes"]["up"], summary["bytes"]["down"])
    assert (row["state"], row["round"], row["best"]) == ("finished", 3, None)
    assert content["differing"] == ["federation.seed"]
    assert [row["settings"] for row in content["runs"]] == [
        {"federation.seed": "7"},
        {"federation.seed": "5"},
    ]


def test_best_and_last_are_those_of_the_rounds(tmp_path):
    for metric, pick in (("accuracy", max), ("perplexity", min)):
        folder = begin(tmp_path / metric, metric=metric, seed=3)
        values = [json.loads(line)["test"][metric] for line in (folder / "rounds.jsonl").open()]
        (row,) = told(folder)["runs"]
        assert (row["best"], row["last"]) == (pick(values), values[-1])
        assert row["best_round"] == values.index(pick(values))


def test_the_order_is_what_was_asked_for(tmp_path):
    low, high = begin(tmp_path / "a", seed=1), begin(tmp_path / "b", seed=2)
    lines = [json.loads(line) for line in (high / "rounds.jsonl").open()]
    lines[5]["test"]["accuracy"] = 0.99
    (high / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.utime(low / "rounds.jsonl", (2_000_000_000, 2_000_000_000))

    def order(by: str) -> list[str]:
        return [Path(row["folder"]).name for row in told(tmp_path, "--sort", by)["runs"]]

    assert (order("time"), order("value"), order("name")) == (["b", "a"], ["b", "a"], ["a", "b"])
    os.utime(high / "rounds.jsonl", (2_100_000_000, 2_100_000_000))
    assert order("time") == ["a", "b"]


def test_a_run_says_whether_somebody_works_on_it(tmp_path):
    folder = RunFolder(begin(tmp_path / "a"))
    assert told(tmp_path)["runs"][0]["state"] == "finished"
    (folder.path / "summary.json").unlink()
    assert told(tmp_path)["runs"][0]["state"] == "unfinished"
    with folder.locked():
        assert in_use(folder.path)
        assert told(tmp_path)["runs"][0]["state"] == "running"
        with pytest.raises(ConfigError, match="a process works on"), folder.locked():
            pass
    assert not in_use(folder.path)
    with (folder.path / "state" / "lock").open("rb"), folder.locked():  # who only looks does not hold it
        pass


def test_a_stopped_run_says_so(tmp_path):
    begin(tmp_path / "a", stopped="stopped")
    assert told(tmp_path)["runs"][0]["state"] == "stopped"


def test_a_run_is_listed_once_and_nothing_is_looked_for_in_it(tmp_path):
    folder = begin(tmp_path / "a")
    begin(folder / "adapter" / "b")
    (tmp_path / "link").symlink_to(folder)
    begin(tmp_path / ".hidden")
    assert len(told(tmp_path, folder, tmp_path / "link")["runs"]) == 1


def test_nothing_there_is_an_error_that_says_what_to_do(tmp_path):
    assert "headwater simulate makes one" in headwater("runs", tmp_path).error
    assert "expected a folder, got none" in headwater("runs", tmp_path / "no").error
    begin(tmp_path / "a", evaluate=False)
    done = headwater("runs", tmp_path, "--svg", tmp_path / "a.svg")
    assert done.code == 2
    assert "a run with an evaluation" in done.err
    assert not (tmp_path / "a.svg").exists()


def test_settings_that_differ_have_columns_and_hashes_come_last(tmp_path):
    head = '[federation]\nname = "x"\nrounds = 10\n'
    begin(tmp_path / "a", head + '[model]\nsha256 = "aa"\npath = "m"\n[training]\nepochs = 1.0\n')
    begin(
        tmp_path / "b",
        head + '[model]\nsha256 = "bb"\npath = "m"\n[training]\nepochs = 2.0\n[[trackers]]\nkind = "t"\n',
    )
    content = told(tmp_path)
    assert content["differing"] == ["training.epochs", "model.sha256"]
    table = headwater("runs", tmp_path).out
    assert "training.epochs" in table
    assert "model.path" not in table


@settings(max_examples=30, deadline=None)
@given(
    toml=st.binary(max_size=60),
    rounds=st.lists(st.binary(max_size=40), max_size=3),
    summary=st.none()
    | st.sampled_from(["", "[]", "{}", '{"metric": 1, "bytes": []}', '{"metric": {"name": [1]}}']),
)
def test_no_file_is_too_damaged_to_be_listed(tmp_path_factory, toml, rounds, summary):
    folder = tmp_path_factory.mktemp("run")
    (folder / "federation.toml").write_bytes(toml)
    (folder / "rounds.jsonl").write_bytes(
        b"\n".join([b'{"round": 0, "bytes": 3, "test": {"accuracy": NaN}}', *rounds, b""])
    )
    if summary is not None:
        (folder / "summary.json").write_text(summary)
    (row,) = compare([folder])
    assert row.round >= 0
    assert differing([row]) == []
    assert finite(row.seconds) is not None
    shutil.rmtree(folder)


def test_the_picture_and_the_page_show_hostile_names_as_text(tmp_path):
    name = HOSTILE.replace("/", "\u2215")
    begin(tmp_path / name, baselines={})
    begin(tmp_path / "b", seed=9, metric="perplexity")
    begin(tmp_path / "c", evaluate=False)
    for folder in (tmp_path / name, tmp_path / "b"):
        (folder / "report.html").write_text("the report of this run")
    page, drawing = tmp_path / "out" / "runs.html", tmp_path / "runs.svg"
    done = headwater("runs", tmp_path, "--html", page, "--svg", drawing)
    assert done.code == 0, done.err
    shown = Page(page)
    assert shown.count("script") == 0
    assert shown.count("img") == 0
    assert shown.count("svg") == 4  # each metric by round and by bytes
    assert "3 runs" in shown.text
    assert "<script" not in drawing.read_text()
    links = [a["href"] for t, a in shown.tags if t == "a"]
    assert len(links) == 2
    with chromium(tmp_path) as browser:
        browser.open(page.as_uri())
        browser.until("document.querySelector('svg')")
        assert browser.run("document.title") == "3 runs – Headwater"
        assert browser.problems() == []
        browser.run("document.querySelector('td, th a').closest('table').querySelector('a').click()")
        browser.until("document.body.innerText.includes('the report of this run')")


def test_more_runs_than_colours_are_listed_and_not_drawn(tmp_path):
    for number in range(14):
        begin(tmp_path / f"r{number:02}", rounds=2, clients=1, seed=number)
    page = tmp_path / "runs.html"
    headwater("runs", tmp_path, "--html", page, "--sort", "name")
    shown = Page(page)
    assert "2 more that were evaluated are not drawn" in shown.text
    assert shown.count("tr") == 15
    assert len(set(re.findall(r"line c(\d+)", shown.source))) == 12


def test_open_shows_the_page_or_the_newest_report(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(webbrowser, "open", lambda url: seen.append(url) or len(seen) < 2)
    begin(tmp_path / "a")
    folder = begin(tmp_path / "b")
    os.utime(folder / "rounds.jsonl", (2_000_000_000, 2_000_000_000))
    done = headwater("runs", tmp_path, "--open")
    assert seen == [(folder / "report.html").resolve().as_uri()]
    assert (folder / "report.html").is_file()
    assert done.out.endswith(f"{folder / 'report.html'}\n")
    done = headwater("runs", tmp_path, "--open", "--html", tmp_path / "x.html")
    assert seen[1:] == [(tmp_path / "x.html").resolve().as_uri()]
    assert "No browser could be opened" in done.err
