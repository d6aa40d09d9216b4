"""``headwater completion``: what real shells offer at the cursor; skipped for one that is missing."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import time

import pytest

from headwater.cli.completion.levels import levels
from headwater.cli.completion.shells import SHELLS
from headwater.cli.main import VERBS, make_parser
from headwater.cli.server.verbs import VERBS as SERVER
from tests.support.command import headwater

VALUES = ["inprocess", "network", "ray"]


@pytest.fixture(scope="module")
def found():
    return list(levels(make_parser()))


@pytest.fixture(scope="module")
def scripts(tmp_path_factory, found):
    folder = tmp_path_factory.mktemp("completion")
    for name, write in SHELLS.items():
        (folder / name).write_text(write(found))
    (folder / "here").mkdir()
    for name in ("federation.toml", "fed notes.txt"):
        (folder / "here" / name).write_text("")
    return folder


def in_bash(scripts, line):
    """What bash offers for the last word of ``line``."""
    script = f"""
        source {shlex.quote(str(scripts / "bash"))}
        cd {shlex.quote(str(scripts / "here"))}
        COMP_WORDS=({" ".join(map(shlex.quote, line))})
        COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _headwater
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    return run("bash", "--norc", "-c", script)


def in_fish(scripts, line):
    said = " ".join(line)
    script = f"source {shlex.quote(str(scripts / 'fish'))}; cd {shlex.quote(str(scripts / 'here'))}"
    offered = run("fish", "--no-config", "-c", f"{script}; complete -C {shlex.quote(said)}")
    return [text.split("\t")[0] for text in offered]


def run(*command):
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} on this machine")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return sorted(filter(None, done.stdout.split("\n")))


OFFERED = [
    (["headwater", "sim"], ["simulate"]),
    (["headwater", ""], sorted(VERBS)),
    (["headwater", "simulate", "--eng"], ["--engine"]),
    (["headwater", "simulate", "--engine", ""], VALUES),
    (["headwater", "simulate", "--seed", "3", "--engine", "r"], ["ray"]),
    (["headwater", "simulate", "--seed", ""], []),
    (["headwater", "simulate", "--set", "fed"], []),
    (["headwater", "server", "re"], sorted(name for name in SERVER if name.startswith("re"))),
    (["headwater", "server", "clients", "acc"], ["accept"]),
    (["headwater", "simulate", "federation.toml", "--wor"], ["--workers"]),
    (["headwater", "completion", ""], ["bash", "fish", "zsh"]),
    (["headwater", "config", "sh"], ["show"]),
]


@pytest.mark.parametrize(("line", "offered"), OFFERED, ids=lambda value: " ".join(value))
def test_bash_offers_what_can_follow(scripts, line, offered):
    assert in_bash(scripts, line) == offered


def test_bash_offers_files_where_a_path_is_meant(scripts):
    assert in_bash(scripts, ["headwater", "simulate", "fed"]) == ["fed notes.txt", "federation.toml"]
    assert in_bash(scripts, ["headwater", "doctor", "--ca", "fede"]) == ["federation.toml"]
    assert in_bash(scripts, ["headwater", "predict", ""]) == ["fed notes.txt", "federation.toml"]


@pytest.mark.parametrize(("line", "offered"), OFFERED, ids=lambda value: " ".join(value))
def test_fish_offers_the_same(scripts, line, offered):
    assert in_fish(scripts, line) == offered


def test_fish_offers_files_where_a_path_is_meant(scripts):
    assert in_fish(scripts, ["headwater", "simulate", "federa"]) == ["federation.toml"]
    assert in_fish(scripts, ["headwater", "simulate", "--out", "federa"]) == ["federation.toml"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh on this machine")
def test_zsh_completes_at_its_prompt(scripts):
    """A tab at the prompt of a real zsh puts the rest of the word there."""
    setup = f"autoload -U compinit; compinit -u -D; source {shlex.quote(str(scripts / 'zsh'))}"
    with zsh(scripts / "here") as ask:
        ask(f"PS1='READY '; {setup}; headwater() {{ print -r -- \"<$*>\" }}\n", until="READY")
        for typed, became in (
            ("simul", "simulate"),
            ("simulate --engine net", "simulate --engine network"),
            ("simulate --wor", "simulate --workers"),
            ("server clients acc", "server clients accept"),
            ("simulate federation.t", "simulate federation.toml"),
            ("simulate --seed fed", "simulate --seed fed"),
        ):
            ask(f"headwater {typed}\t")
            assert f"<{became}>" in ask("\n", until="<.*>"), typed


@contextlib.contextmanager
def zsh(folder):
    process, terminal = pty.fork()
    if not process:
        os.chdir(folder)
        os.environ.update(TERM="dumb", HOME=str(folder))
        os.execvp("zsh", ["zsh", "-f", "-i"])

    def ask(text, until="headwater"):
        os.write(terminal, text.encode())
        seen, ends = "", time.monotonic() + 20
        while time.monotonic() < ends:
            if select.select([terminal], [], [], 0.3)[0]:
                seen += os.read(terminal, 4096).decode("utf-8", "replace")
            elif re.search(until, seen):
                return seen
        raise AssertionError(seen)

    try:
        yield ask
    finally:
        os.write(terminal, b"\x15exit\n")
        os.close(terminal)
        os.waitpid(process, 0)


def test_every_verb_and_option_of_the_command_line_is_in_every_script(scripts, found):
    assert {level.verb for level in found} >= {*VERBS, *(f"server {name}" for name in SERVER)}
    flags = {flag for level in found for option in level.options for flag in option.flags}
    assert {"--help", "--resume", "--federation", "--with-secrets"} <= flags
    for shell, mark in (("bash", ""), ("zsh", ""), ("fish", "-l '")):
        text = (scripts / shell).read_text()
        for flag in flags - {"-h", "-o"}:
            assert mark + flag.removeprefix("--" if mark else "") in text, (shell, flag)


def test_the_command_prints_the_script(scripts):
    for shell in SHELLS:
        assert headwater("completion", shell).out == (scripts / shell).read_text()


def test_help_texts_are_quoted_for_each_shell(tmp_path):
    from argparse import ArgumentParser

    parser = ArgumentParser()
    hostile = "it's `touch owned` $(touch owned) \\ \"; touch owned; 100 %% [a]:b"
    parser.add_argument("--option", help=hostile, choices=["a'b", "$(touch owned)", "plain"])
    shown = list(levels(parser))
    assert shown[0].options[-1].value.words == ("plain",)
    for shell, write in SHELLS.items():
        (tmp_path / shell).write_text(write(shown))
        if shutil.which(shell):
            plain = {"bash": "--norc", "zsh": "-f", "fish": "--no-config"}[shell]
            loose = "compdef() { :; }; " if shell == "zsh" else ""
            command = f"{loose}source ./{shell}"
            if shell == "bash":
                command += "; COMP_WORDS=(headwater --option ''); COMP_CWORD=2; _headwater"
            subprocess.run([shell, plain, "-c", command], cwd=tmp_path, check=True, capture_output=True)
    assert not (tmp_path / "owned").exists()
