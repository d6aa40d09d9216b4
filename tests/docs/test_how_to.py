"""The pages that say how to add something: what they show is built, installed by pip, and run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import tomli_w

from tests.support.runs import tiny_federation

ROOT = Path(__file__).parents[2]
VECTOR = {
    "federation": {"name": "how-to", "rounds": 2},
    "model": {"kind": "vector", "size": 500},
    "data": {"kind": "none", "clients": 3},
    "training": {"kind": "noop", "scale": 0.5},
}
"""Enough for what needs no base model."""
PAGES = {
    "add-a-rule": VECTOR,
    "add-a-codec": VECTOR,
    "add-a-trainer": None,
    "add-an-adapter-kind": None,
    "add-a-task": None,
    "add-a-tracker": VECTOR,
}
"""The federation that a page's tables are put into; None is a tiny text model's."""
CLEAN = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTEST_ADDOPTS")}


def blocks(page: str) -> dict[str, str]:
    """The files that a page shows, by their names."""
    text = (ROOT / "docs" / "how-to" / f"{page}.md").read_text(encoding="utf-8")
    found = re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)
    assert len(dict(found)) == len(found)
    return dict(found)


FORKS = """
import json, os, runpy, sys, traceback
import headwater.simulation.preload  # which computes nothing
for line in sys.stdin:
    output, path, (module, *arguments) = json.loads(line)
    if not (child := os.fork()):
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        sys.path[:0], sys.argv, code = path, [module, *arguments], 1
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs modules, each in a process of its own that has imported already: a dozen would for a minute of CPU."""


@dataclass
class Stranger:
    """Somebody's environment with headwater and the pages' packages in it."""

    folder: Path
    python: Path
    forks: subprocess.Popen[str] | None = None

    def __enter__(self) -> Stranger:
        self.forks = subprocess.Popen(
            [str(self.python), "-c", FORKS],
            cwd=self.folder, env=CLEAN, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self

    def __exit__(self, *exc: object) -> None:
        if self.forks:
            self.forks.communicate()

    def start(self, *arguments: object, path: Sequence[str] = ()) -> tuple[int, str]:
        """``python -m ARGUMENTS`` there, to its end: its code and what it said. ``path``: of more modules."""
        assert self.forks
        assert self.forks.stdin
        assert self.forks.stdout
        output = self.folder / "output"
        print(json.dumps([str(output), path, [*map(str, arguments)]]), file=self.forks.stdin, flush=True)
        return int(self.forks.stdout.readline()), output.read_text()

    def run(self, *arguments: object) -> str:
        """``python -m ARGUMENTS`` there, which must succeed; what it said."""
        code, said = self.start(*arguments)
        assert code == 0, said[-5000:]
        return said

    def federation(self, page: str) -> Path:
        """The page's table in a federation file."""
        file = self.folder / page / "federation.toml"
        file.parent.mkdir(exist_ok=True)
        if (content := PAGES[page]) is None:
            content = tomllib.loads(tiny_federation(file.parent).read_text())
        file.write_text(tomli_w.dumps(content | tomllib.loads(blocks(page)["federation.toml"])))
        return file


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    folder, sources = tmp_path_factory.mktemp("stranger"), tmp_path_factory.mktemp("packages")
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder / "env")
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    # the packages of these tests, pip among them; what is installed from now on lies in the new environment
    there = [path for path in sys.path if path.endswith("site-packages")]
    (site / "these.pth").write_text("".join(f"import site; site.addsitedir({p!r})\n" for p in there))
    for page in PAGES:
        (sources / page).mkdir()
        for name, text in blocks(page).items():
            if name.startswith("test_"):
                (folder / name).write_text(text)  # where there is only what was installed
            elif name != "federation.toml":
                (sources / page / name).write_text(text)
    python = folder / "env" / "bin" / "python"
    command = [
        python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation",
        "--disable-pip-version-check", *(sources / page for page in PAGES),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, env=CLEAN, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with Stranger(folder, python) as found:
        yield found


@pytest.fixture(scope="module")
def listed(stranger):
    return stranger.run("headwater", "plugins")


def module_of(page: str) -> str:
    """The name of the page's one module."""
    (module,) = tomllib.loads(blocks(page)["pyproject.toml"])["tool"]["setuptools"]["py-modules"]
    return module


@pytest.mark.parametrize("page", sorted(PAGES))
def test_a_page_shows_one_short_file_and_one_line(page):
    files, module = blocks(page), module_of(page)
    assert set(files) == {f"{module}.py", f"test_{module}.py", "pyproject.toml", "federation.toml"}
    assert len(files[f"{module}.py"].splitlines()) < 120
    (group,) = tomllib.loads(files["pyproject.toml"])["project"]["entry-points"].values()
    assert len(group) == 1
    others = {module_of(other) for other in PAGES} - {module}
    assert not others & set(re.findall(r"\w+", "".join(files.values())))  # it stands alone
    text = (ROOT / "docs" / "how-to" / f"{page}.md").read_text(encoding="utf-8")
    assert len(re.sub(r"```.*?```", "", text, flags=re.DOTALL).split()) <= 350


@pytest.mark.parametrize("page", sorted(PAGES))
def test_the_laws_hold(stranger, page):
    """Under the limits that our own suites have; a process a page, so that none takes long."""
    _, said = stranger.start(
        "pytest", "-v", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", stranger.folder,
        "-p", "tests.conftest", f"test_{module_of(page)}.py", path=[str(ROOT)],
    )  # fmt: skip
    outcomes = re.findall(rf"^test_{module_of(page)}\.py::\S+ (\w+)", said, re.MULTILINE)
    assert set(outcomes) <= {"PASSED", "SKIPPED"}, said[-6000:]
    assert outcomes.count("PASSED") >= 6, said[-3000:]  # those of the shortest suite


@pytest.mark.parametrize("page", sorted(PAGES))
def test_a_federation_runs_with_it(stranger, listed, page):
    out = stranger.folder / page / "run"
    stranger.run("headwater", "simulate", stranger.federation(page), "--out", out, "--quiet")
    summary = json.loads((out / "summary.json").read_text())
    rounds = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    resolved = tomllib.loads((out / "federation.toml").read_text())
    assert not summary["failures"]
    assert len(summary["adapter_sha256"]) == 64
    if "trackers" in resolved:  # which are not pinned, since no bit depends on them
        assert "plugins" not in resolved
        (kind,) = [f"trackers:{table['kind']}" for table in resolved["trackers"]]
    else:
        ((kind, release),) = resolved["plugins"].items()
        assert release.endswith(" 1.0")
    assert re.search(rf"^{kind}: .*\n.*\n  package .* in .*site-packages$", listed, re.MULTILINE), listed
    CHECKS[page](summary, rounds, out)


def clipped(summary, rounds, out):
    """Deltas of norm 11 came as ones of norm 0.25, so that their mean is no longer than that."""
    norms = [row["merge"]["delta_norm"] for row in rounds[1:]]
    assert len(norms) == 2
    assert 0 < max(norms) <= 0.25


def a_quarter(summary, rounds, out):
    """One byte a value and two a tensor, of four bytes a value."""
    assert 0.25 < summary["bytes"]["up"] / summary["bytes"]["up_dense"] < 0.75


def learned(summary, rounds, out):
    """The loss on the held-out rows falls, as it does by any descent."""
    losses = [row["test"]["loss"] for row in rounds]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def told(summary, rounds, out):
    """It has taken every round, and wrote what the rounds say."""
    assert summary["trackers"] == {"csv_rounds": {"through": 2, "missing": 0, "failures": {}}}
    lines = (out / "trackers/csv_rounds/rounds.csv").read_text().splitlines()
    assert lines == ["round,loss,bytes_up", *(f"{r['round']},,{r['bytes']['up']}" for r in rounds)]


CHECKS = {
    "add-a-rule": clipped,
    "add-a-codec": a_quarter,
    "add-a-trainer": learned,
    "add-an-adapter-kind": learned,
    "add-a-task": learned,
    "add-a-tracker": told,
}


@pytest.mark.slow
def test_daemon_and_agents_run_it_where_their_owners_allow_it(stranger):
    """As processes of their own, which see what is installed and nothing of the folder they start in."""
    page = "add-a-codec"  # which both sides use
    out = stranger.folder / page / "network"
    changes = ("--set", "federation.rounds=1", "--set", "data.clients=2", "--engine", "network")
    stranger.run("headwater", "simulate", stranger.federation(page), *changes, "--out", out, "--quiet")
    (server,) = out.rglob("server.toml")
    agents = list(out.rglob("agent.toml"))
    assert len(agents) == 2
    for file in (server, *agents):
        assert tomllib.loads(file.read_text())["plugins"] == {"allow": ["codecs:eight_bits"]}
    assert json.loads((out / "summary.json").read_text())["rounds"] == 1
