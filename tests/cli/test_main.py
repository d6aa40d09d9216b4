"""The command itself, and its small verbs: config, report."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from headwater import __version__
from headwater.cli.main import VERBS
from headwater.config import load_federation
from headwater.errors import HeadwaterError
from tests.support.command import headwater
from tests.support.runs import tiny_federation


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny_federation(tmp_path_factory.mktemp("fed"))


def test_version():
    done = headwater("--version")
    assert (done.code, done.out) == (0, f"headwater {__version__}\n")


def test_help_lists_every_verb_and_every_verb_has_help():
    done = headwater("--help")
    assert done.code == 0
    for verb in VERBS:
        assert re.search(rf"\n    {verb}\s", done.out)  # a long one has its help on the next line
        assert f"usage: headwater {verb}" in headwater(verb, "--help").out


@pytest.mark.parametrize("arguments", [[], ["swim"], ["config"], ["config", "eat", "x"], ["--loud"]])
def test_what_it_does_not_know_is_a_usage_error(arguments):
    done = headwater(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("usage: headwater")


def test_config_check_says_what_the_file_is(file):
    done = headwater("config", "check", file)
    assert done.code == 0
    assert "tiny: encoder, backprop, mean, 3 rounds" in done.out
    assert load_federation(file).sha256() in done.out


def test_config_show_spells_out_every_default_and_can_be_read_again(file, tmp_path):
    done = headwater("config", "show", file, "--set", "federation.rounds=8")
    assert done.code == 0
    again = tmp_path / "again.toml"
    again.write_text(done.out)
    expected = load_federation(file, ["federation.rounds=8"])
    assert load_federation(again).settings == expected.settings
    assert "server_momentum = 0.0" in done.out


def test_report_is_written_again(file, tmp_path):
    run = tmp_path / "run"
    assert headwater("simulate", file, "--out", run, "--quiet").code == 0
    first = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    done = headwater("report", run)
    assert (done.code, done.out) == (0, f"{run / 'report.html'}\n")
    assert (run / "report.html").read_bytes() == first


def test_report_of_a_run_that_is_not_over(file, tmp_path):
    run = tmp_path / "run"
    assert headwater("simulate", file, "--out", run, "--quiet").code == 0
    (run / "summary.json").unlink()
    with (run / "rounds.jsonl").open("a") as rounds:
        rounds.write('{"round": 4, "cli')  # torn by a crash
    assert headwater("report", run).code == 0


@pytest.mark.parametrize("origin", [None, "{", "[]", "{}", '{"folder": 3}'])
def test_report_of_another_folder_is_refused(tmp_path, origin):
    if origin is not None:
        (tmp_path / "state").mkdir()
        (tmp_path / "state" / "origin.json").write_text(origin)
    done = headwater("report", tmp_path)
    assert done.code == 2
    assert "expected a folder made by headwater simulate" in done.error


def test_exit_codes_tell_the_kinds_of_error_apart():
    kinds = HeadwaterError.__subclasses__()
    codes = [kind.exit_code for kind in kinds]
    assert len(set(codes)) == len(codes) == len({kind.code for kind in kinds})
    assert not {0, 1, 130} & set(codes)


def test_a_closed_pipe_is_no_error(file):
    """``headwater config show FILE | head -1``, where head is already gone."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "headwater", "config", "show", str(file)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_summary_and_files_of_a_run_are_json(file, tmp_path):
    assert headwater("simulate", file, "--out", tmp_path / "run", "--quiet").code == 0

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    for text in [
        (tmp_path / "run" / "summary.json").read_text(),
        *(tmp_path / "run" / "rounds.jsonl").open(),
    ]:
        json.loads(text, parse_constant=refuse)
