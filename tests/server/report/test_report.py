"""The report says what the run folder says, is one file without addresses, and survives anything."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.server.report.page import write_report
from headwater.server.storage.run_folder import RunFolder

HOSTILE = '</title><script>alert(1)</script><img src=x onerror="alert(2)">&amp;'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def make_run(
    path: Path,
    *,
    rounds: int = 10,
    clients: int | list[str] = 4,
    metric: str = "accuracy",
    test: bool = True,
    evaluate: bool = True,
    baselines: dict[str, Any] | None = None,
    exact: bool = False,
    fail: float = 0.0,
    name: str = "sentiment across domains",
    seed: int = 0,
    **summary: Any,
) -> RunFolder:
    """A run folder as the server writes it, with plausible numbers."""
    rng = random.Random(seed)
    names = [f"client-{i:04d}" for i in range(clients)] if isinstance(clients, int) else clients
    skill = {c: rng.gauss(0, 0.03) for c in names}
    lower = metric in ("perplexity", "loss")
    records: list[dict[str, Any]] = []
    values = []
    for r in range(rounds + 1):
        progress = 1 - math.exp(-r / (rounds / 3 + 1))

        def metrics(shift: float, progress: float = progress) -> dict[str, float]:
            noise = shift + rng.gauss(0, 0.006)
            if lower:
                return {
                    "loss": 3.4 - 1.1 * progress - noise,
                    "perplexity": math.exp(3.4 - 1.1 * progress - noise),
                }
            level = min(0.51 + 0.32 * progress + noise, 1.0)
            return {"accuracy": level, "macro_f1": level - 0.01, "loss": 0.7 - 0.4 * progress}

        rows: dict[str, Any] = {}
        for c in names if r else []:
            rows[c] = {"bytes_down": 152_300}
            if rng.random() < fail and c != names[0]:
                rows[c]["failed"] = f"client {c}: loss is NaN after step 12. Lower training.learning_rate."
                continue
            rows[c] |= {
                "bytes_up": rng.randint(5_400, 6_100), "bytes_up_dense": 152_400, "steps": 40,
                "examples": 100 + 7 * len(c), "seconds": 0.51,
                "loss": 0.7 - 0.45 * progress - skill[c] + rng.gauss(0, 0.01),
            }  # fmt: skip
        record: dict[str, Any] = {"round": r, "clients": rows}
        down = sum(row["bytes_down"] for row in rows.values()) + 153_000 * len(names) * evaluate
        up = sum(row.get("bytes_up", 0) for row in rows.values()) + 210 * len(names) * evaluate
        up_dense = sum(row.get("bytes_up_dense", 0) for row in rows.values()) + 210 * len(names) * evaluate
        record["bytes"] = {"up": up, "down": down, "up_dense": up_dense, "down_dense": down}
        if r:
            gap = 0.0 if exact else 0.02 * progress + rng.random() * 0.003
            record["gap"] = {
                "exact": exact, "absolute": gap * 0.8, "relative": gap, "saturated": 0,
                "modules": {f"layer.{i}.query.lora_b": gap * (1 + i) for i in range(0 if exact else 6)},
            }  # fmt: skip
            record["merge"] = {"delta_norm": 0.4}
        if evaluate:
            if test:
                record["test"] = {**metrics(0.0), "examples": 400}
            record["clients_pooled"] = metrics(-0.012)
            record["clients_each"] = {c: {**metrics(skill[c]), "examples": 20} for c in names}
            values.append(record["test" if test else "clients_pooled"][metric])
        record |= {"state_sha256": "ab" * 32, "seconds": 2.1}
        records.append(record)
    best = (min if lower else max)(values) if values else None
    folder = RunFolder(path)
    path.mkdir(parents=True, exist_ok=True)
    folder.rounds.write_text("".join(json.dumps(r) + "\n" for r in records))
    (path / "federation.toml").write_text(
        f'# resolved\n[federation]\nname = "x"\n  rounds = {rounds}\n# {HOSTILE}\n'
    )
    content = {
        "name": name, "federation_sha256": "c0ffee" * 10 + "0123", "seed": 42, "engine": "inprocess",
        "rounds": rounds, "clients": len(names), "stopped": "rounds",
        "metric": {
            "name": metric, "on": "test" if test else "clients", "start": values[0] if values else None,
            "final": values[-1] if values else None, "best": best,
            "best_round": values.index(best) if best is not None else None,
        },
        "bytes": {k: sum(r["bytes"][k] for r in records) for k in ("up", "down", "up_dense", "down_dense")},
        "seconds": 2.1 * rounds, "peak_rss_bytes": 812_000_000, "adapter_sha256": "5eed" * 16,
        "adapter_round": values.index(best) if best is not None else rounds, "baselines": baselines or {},
        "failures": [{"round": r["round"], "client": c, "reason": row["failed"]} for r in records
                     for c, row in r["clients"].items() if "failed" in row],
    }  # fmt: skip
    folder.write_json("summary.json", {**content, **summary})
    return folder


class Page(HTMLParser):
    """What a browser would see: tags, attributes and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def count(self, tag: str, class_: str = "") -> int:
        return sum(t == tag and class_ in [*(a.get("class") or "").split(), ""] for t, a in self.tags)


def page_of(folder: RunFolder) -> Page:
    return Page(write_report(folder))


BASELINES = {
    "majority": 0.51, "probe": 0.795, "centralised": 0.838,
    "alone": {"client-0000": 0.76, "client-0001": 0.71, "client-0002": 0.69, "client-0003": 0.70},
}  # fmt: skip


def test_the_page_says_what_the_summary_says(tmp_path):
    folder = make_run(tmp_path, baselines=BASELINES, seed=3)
    summary = json.loads((tmp_path / "summary.json").read_text())
    page = page_of(folder)
    metric, ratio = summary["metric"], summary["bytes"]["up_dense"] / summary["bytes"]["up"]
    for expected in (
        "sentiment across domains", f"{ratio:.0f}× less", "inprocess", "all were run", "[federation]",
        f"4 clients took accuracy from {metric['start']:.3f} to {metric['best']:.3f}",
        f"round {metric['best_round']}, which had the highest accuracy on the server's test file",
        summary["adapter_sha256"], summary["federation_sha256"], "majority 0.510", "probe 0.795",
        "alone, median 0.705", "centralised 0.838", "alone: client-0001",
    ):  # fmt: skip
        assert expected in page.text, expected
    assert page.count("line", "baseline") == 4
    assert page.count("path", "client") == 8  # four clients in the metric's and the loss's chart


def test_groups_of_test_rows_are_beside_each_other(tmp_path):
    apart = {"client-0000": {HOSTILE: 0.61, "plain": 0.62}, "client-0001": {HOSTILE: 0.71}}
    baselines = {**BASELINES, "alone_groups": apart, "centralised_groups": {"plain": 0.912}}
    groups = {HOSTILE: {"start": 0.11, "final": 0.22, "best": 0.33}, "plain": {"start": 0.44}}
    folder = make_run(tmp_path, baselines=baselines, groups=groups)
    page = page_of(folder)
    for expected in ("alone: client-0000", "mean of 2", "0.110", "0.610", "0.660", "0.912", "0.330"):
        assert expected in page.text, expected
    assert "<script" not in page.source
    (tmp_path / "many").mkdir()
    many = {f"client-{i:04}": {"plain": i / 100} for i in range(40)}
    baselines = {**BASELINES, "alone_groups": many}
    page = page_of(make_run(tmp_path / "many", clients=40, baselines=baselines, groups=groups))
    assert "mean of 40" in page.text
    assert "0.195" in page.text
    assert "alone: client-0007" not in page.text


def test_the_table_holds_the_numbers_of_the_charts(tmp_path):
    folder = make_run(tmp_path, rounds=3)
    page = page_of(folder)
    for record in (r.content for r in folder.read_rounds()):
        assert f"{record['test']['accuracy']:.3f}" in page.text
        assert f"{record['clients_pooled']['accuracy']:.3f}" in page.text


@pytest.mark.parametrize(
    "case",
    [{}, {"name": HOSTILE, "clients": [HOSTILE, "b"], "fail": 0.3}, {"clients": 40, "evaluate": False}],
    ids=["plain", "hostile", "bare"],
)
def test_nothing_is_loaded_and_nothing_runs(tmp_path, case):
    page = page_of(make_run(tmp_path, **case))
    assert not {t for t, _ in page.tags} & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "image",
    }
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert "url(" not in (value or ""), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action", "ping"):
                assert (value or "").startswith("#"), (tag, name, value)
    style = page.source[page.source.index("<style>") : page.source.index("</style>")]
    assert "@import" not in style
    assert "url(" not in style
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_hostile_text_is_shown_as_text(tmp_path):
    name = "a\ud800b\u202ec\x00d\x1b[2J"
    folder = make_run(tmp_path, clients=[HOSTILE, name], name=HOSTILE, engine=HOSTILE)
    records = [r.content for r in folder.read_rounds()]
    records[1]["clients"][HOSTILE]["failed"] = HOSTILE * 3
    folder.rounds.write_text("".join(json.dumps(r) + "\n" for r in records))
    page = page_of(folder)
    assert "<script" not in page.source
    assert "<img" not in page.source
    assert HOSTILE.removesuffix("&amp;") in page.text
    assert "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c" in page.text
    assert not set("\u202e\x00\x1b") & set(page.source)


def test_a_thousand_clients_are_bands_and_fifty_rows(tmp_path):
    path = write_report(make_run(tmp_path, clients=1000, rounds=12, fail=0.02))
    page = Page(path)
    assert path.stat().st_size < 300_000
    assert page.count("path", "client") == 0
    assert page.count("path", "half") == 2
    assert "and 950 more. Shown are those that failed most" in page.text
    assert re.search(r"and \d+ more\. Numbers behind", page.text)  # failures beyond the table's hundred


def test_many_rounds_are_thinned_but_keep_the_last_and_the_exported(tmp_path):
    folder = make_run(tmp_path, clients=2, rounds=1501, adapter_round=1499)
    path = write_report(folder)
    page = Page(path)
    assert path.stat().st_size < 500_000
    assert "Every 7th round is shown" in page.text
    rows = page.source[page.source.index('id="rounds"') :]
    for number in (0, 1499, 1501):
        assert f'<th scope="row" class="n">{number}</th>' in rows


def test_no_evaluation(tmp_path):
    page = page_of(make_run(tmp_path, evaluate=False))
    assert "This run did not evaluate" in page.text
    assert "round 10, the last one: no evaluation chose another" in page.text


def test_exact_merges_say_so(tmp_path):
    assert "Exact by construction" in page_of(make_run(tmp_path / "ffa", exact=True)).text
    assert "Exact by construction" not in page_of(make_run(tmp_path / "factors")).text


def test_lower_perplexity_is_a_gain(tmp_path):
    folder = make_run(tmp_path, metric="perplexity", test=False, baselines={"centralised": 9.5})
    page = page_of(folder)
    assert "took perplexity from" in page.text
    assert "perplexity, lower is better" in page.text
    assert "lowest perplexity on the clients' validation data" in page.text
    assert page.count("li", "good") == 1
    assert page.count("li", "bad") == 0


def test_failures_are_counted_by_client_and_listed(tmp_path):
    folder = make_run(tmp_path, fail=0.3, seed=1)
    failed = [c for r in folder.read_rounds() for c, row in r.clients.items() if row.failed]
    page = page_of(folder)
    assert len(failed) > 2
    assert f"{len(failed)} failed trainings" in page.text
    assert page.text.count("loss is NaN after step 12") == len(failed) + len(set(failed))


def test_methods_of_a_mixed_run_are_told_apart(tmp_path):
    folder = make_run(tmp_path, seed=3)
    assert "Methods in the last round" not in page_of(folder).text
    records = [json.loads(line) for line in folder.rounds.read_text().splitlines()]
    records[-1]["merge"] |= {
        "between": 0.2,
        "progress_default": 1.0,
        "weight_default": 1.0,
        "noise_phone": 3.0,
    }
    records[-1]["merge"] |= {"progress_phone": 0.042, "weight_phone": 0.5, "progress_odd": "much"}
    for i, row in enumerate(records[-1]["clients"].values()):
        row["method"] = "phone" if i == 0 else "default"
    folder.rounds.write_text("".join(json.dumps(r) + "\n" for r in records))
    text = page_of(folder).text
    assert "Methods in the last round method clients progress counted" in text
    assert " phone 1 4.200 % 50.00 % " in text
    assert "odd" not in text.split("Methods in the last round")[1].split("Progress:")[0]


def test_a_run_without_summary_still_has_a_page(tmp_path):
    folder = make_run(tmp_path)
    (tmp_path / "summary.json").unlink()
    page = page_of(folder)
    assert "unnamed federation" in page.text
    assert page.count("svg") == 6


def test_an_empty_folder_still_has_a_page(tmp_path):
    assert "No client took part yet" in page_of(RunFolder(tmp_path)).text


JUNK = [None, math.nan, math.inf, -math.inf, 0, -1, 10**400, 1e308, 1e-308, "x", HOSTILE, [], {}, True]


def holes(content: Any, rng: random.Random, share: float) -> Any:
    """``content`` with some values lost or replaced by junk; never the number of a round."""
    if isinstance(content, dict):
        kept = {k: v for k, v in content.items() if k == "round" or rng.random() > share / 2}
        return {k: v if k == "round" else holes(v, rng, share) for k, v in kept.items()}
    return rng.choice(JUNK) if rng.random() < share else content


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32), share=st.sampled_from([0.02, 0.1, 0.5]), clients=st.sampled_from([1, 3, 20])
)
def test_lost_and_broken_values_never_break_the_page(tmp_path_factory, seed, share, clients):
    rng = random.Random(seed)
    folder = make_run(
        tmp_path_factory.mktemp("r"), rounds=rng.randint(0, 4), clients=clients, baselines=BASELINES
    )
    records = [holes(r.content, rng, share) for r in folder.read_rounds()]
    folder.rounds.write_text("".join(json.dumps(r) + "\n" for r in records))
    folder.write_json(
        "summary.json", holes(json.loads((folder.path / "summary.json").read_text()), rng, share)
    )
    page = page_of(folder)
    assert page.text.endswith("loads nothing.")
    for tag, attributes in page.tags:
        for name in ("d", "x", "y", "x1", "y1", "cx", "cy", "width", "height", "style"):
            assert not re.search(r"nan|inf|e\+", attributes.get(name) or ""), (tag, attributes)
        for name in ("width", "height"):
            assert not (attributes.get(name) or "").startswith("-"), (tag, attributes)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_chromium_opens_it_offline(tmp_path):
    folder = make_run(tmp_path / "run", clients=[HOSTILE, "b"], name=HOSTILE, baselines={"probe": 0.7})
    path = write_report(folder)
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    copy = tmp_path / "dom.html"
    copy.write_text(done.stdout)
    dom = Page(copy)
    assert [t for t, _ in dom.tags] == [t for t, _ in Page(path).tags]  # nothing was mended, nothing got in
    assert HOSTILE.removesuffix("&amp;") in dom.text
    assert "2 clients took accuracy" in dom.text
    assert ":CONSOLE" not in done.stderr  # no error, no refused load
