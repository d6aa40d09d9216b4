"""The pages speak of what is there: settings, verbs, options, files, links."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from headwater.config import load_federation
from headwater.errors import ConfigError
from tests.support.command import headwater
from tests.support.federation_text import federation_text

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("results/*.md")])


def test_the_federation_file_page_is_current():
    done = subprocess.run(
        [sys.executable, "scripts/federation_reference.py", "--check"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_api_page_is_current(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import python_reference

    monkeypatch.setattr(sys, "argv", ["x", "--check"])
    assert python_reference.main() == 0
    stale = tmp_path / "page.md"
    stale.write_text("old")
    monkeypatch.setattr(python_reference, "PAGE", stale)
    assert python_reference.main() == 1


def test_the_check_can_fail(tmp_path, monkeypatch):
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import federation_reference
    finally:
        sys.path.pop(0)
    stale = tmp_path / "page.md"
    stale.write_text("old")
    monkeypatch.setattr(federation_reference, "PAGE", stale)
    monkeypatch.setattr(sys, "argv", ["x", "--check"])
    assert federation_reference.main() == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_named_files_exist(page):
    """`headwater/x.py`, `tests/…`, `examples/…` and the like, where they are named as code."""
    known = r"`((?:headwater|tests|benchmarks|examples|scripts|docs|results)/[\w./-]*[\w/])`"
    for name in re.findall(known, page.read_text(encoding="utf-8")):
        if "NAME" not in name:
            assert (ROOT / name).exists(), name


def test_every_option_of_the_command_line_is_described():
    page = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    verbs = "simulate sweep audit config data predict merge compress check export report runs doctor"
    for verb in [*verbs.split(), "completion", "plugins", "fetch"]:
        helped = headwater(verb, "--help").out
        section = page.split(f"## `headwater {verb}`")[1].split("\n## ")[0]
        of_rules = set(re.findall(r"^    (--[a-z-]+)", headwater("merge", "--rules").out, re.MULTILINE))
        for option in set(re.findall(r"--[a-z][a-z-]+", helped)) - {"--help"} - of_rules:
            assert f"`{option}" in section, (verb, option)
        for option in re.findall(r"^- `(--[a-z-]+)", section, re.MULTILINE):
            assert option in helped, (verb, option)


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for name in re.findall(r"`make ([a-z-]+)`", page.read_text(encoding="utf-8")):
            assert name in targets, (page.name, name)


@pytest.mark.parametrize("page", ["README.md", "docs/start.md"])
def test_federation_files_on_the_pages_are_right(page, tmp_path):
    found = re.findall(r"```toml\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert found
    for text in found:
        (tmp_path / "f.toml").write_text(text)
        load_federation(tmp_path / "f.toml")


def test_settings_that_pages_speak_of_exist():
    """`table.key` names in code, but for the wire format's and the reports' own."""
    page = (ROOT / "docs/reference/federation-file.md").read_text(encoding="utf-8")
    keys = {}
    for section in page.split("\n## `[")[1:]:
        keys[section.split("]")[0]] = {"kind", *re.findall(r"^- `(\w+)`", section, re.MULTILINE)}
    tables = "|".join(re.escape(t) for t in keys)
    checked = 0
    for path in PAGES:
        for table, key in re.findall(rf"`({tables})\.([a-z_0-9]+)`", path.read_text(encoding="utf-8")):
            if f"{table}.{key}" not in keys and key not in ("py", "md", "toml", "jsonl"):
                assert key in keys[table], (path.name, f"{table}.{key}")
                checked += 1
    assert checked > 5


FITTING = federation_text()


@pytest.mark.parametrize(
    "overrides",
    [
        ["model={ kind = 'vector', size = 3 }"],
        ["data={ kind = 'none', clients = 2 }"],
        ["model.kind=causal-lm"],
        ["strategy={ kind = 'ties', space = 'factors' }"],
        ["strategy={ kind = 'median', space = 'factors' }"],
        ["strategy={ kind = 'median' }", "training={ kind = 'kseed' }"],
        ["strategy.space=ffa", "adapter={ kind = 'prompt' }"],
        ["privacy.clip_l2=1.0", "codec.up={ kind = 'compeft', alpha = 2.0 }"],
        ["cohort={ clients_per_round = 2, min_clients = 3 }"],
        ["evaluation.metric=perplexity"],
        ["baselines.alone=true", "data.validation_fraction=0.0"],
    ],
)
def test_what_the_page_says_does_not_fit_is_refused(overrides, tmp_path):
    (tmp_path / "f.toml").write_text(FITTING)
    load_federation(tmp_path / "f.toml")
    with pytest.raises(ConfigError):
        load_federation(tmp_path / "f.toml", overrides)
