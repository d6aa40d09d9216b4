"""``headwater server status|watch|submit|pause|resume|stop|set|adapters`` against a control port."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
from dataclasses import replace

import pytest
from rich.console import Console

from headwater.cli import tables
from headwater.cli.server import run as server_run
from headwater.cli.server import watch as server_watch
from headwater.cli.server.adapters import unpack
from headwater.errors import ConfigError, DecodeError, StorageError
from headwater.protocol.control import WatchEvent
from tests.support.command import headwater
from tests.support.control_certificates import certificates
from tests.support.control_port import (
    ANN,
    BO,
    FIRST,
    RUN,
    SECOND,
    FakeOrganiser,
    client_of,
    serving,
    until,
    write_folder,
    write_identity,
)
from tests.support.federation_text import federation_text

NOW = 1_700_003_600.0
HOSTILE = "[red]x[/red] :smile:\x1b[2J\x07\nann  online  \u202egood"
FEDERATION = federation_text()


@pytest.fixture
def folder(server, tmp_path):
    return write_folder(tmp_path / "srv", server.address)


# --- verbs ----------------------------------------------------------------------------------------


def test_status(folder):
    done = headwater("server", "status", folder)
    assert (done.code, done.err) == (0, "")
    for shown in (
        "headwater 0.1.0", "123 MB", "1 of 2 online", "390 days", "sentiment", "3/20", "2/4", "0.812",
        "1.23 MB", "train 4", "never", "client bo: no answer in 60 s", "12 × unknown key", "disk is full",
    ):  # fmt: skip
        assert shown in done.out


def test_status_as_json(folder):
    done = headwater("server", "status", folder, "--json")
    found = json.loads(done.out)
    assert found["runs"][0]["value"] == RUN.value
    assert found["runs"][1]["value"] is None  # not NaN, which is no JSON
    assert [c["client"] for c in found["clients"]] == ["ann", "bo"]
    assert found["clients"][1]["seen_s_ago"] is None


def test_a_daemon_elsewhere(server, organiser, tmp_path):
    there = ("--server", server.address, "--identity", write_identity(tmp_path / "me"))
    assert json.loads(headwater("server", "status", *there, "--json").out)["version"] == "0.1.0"
    assert headwater("server", "pause", *there, "r7").code == 0
    assert headwater("server", "set", "r7", "rounds=4", *there).code == 0
    assert headwater("server", "adapters", "list", *there, "r7").code == 0
    assert organiser.calls[1:] == [("pause", "r7"), ("change", "r7", {"rounds": "4"}), ("adapters", "r7")]


def test_a_federation_is_checked_here_and_queued_there(folder, organiser, tmp_path, server):
    file = tmp_path / "f" / "federation.toml"
    file.parent.mkdir()
    file.write_text(FEDERATION)
    done = headwater("server", "submit", folder, file)
    assert done.out.startswith("run r1: queued"), done.err
    assert organiser.calls == [("submit", FEDERATION, file.parent)]
    there = ("--server", server.address, "--identity", folder / "secrets")
    assert "--folder" in headwater("server", "submit", *there, file).error
    assert headwater("server", "submit", *there, file, "--folder", "/srv/f").code == 0
    assert str(organiser.calls[-1][2]) == "/srv/f"
    file.write_text(FEDERATION.replace("rounds", "round"))
    assert f"{file}: federation.round" in headwater("server", "submit", folder, file).error
    assert "nothing there" in headwater("server", "submit", folder, tmp_path / "none.toml").error
    assert len(organiser.calls) == 2


def test_runs_are_steered(folder, organiser):
    paused = "run r1: running, round 3 of 20; pauses after round 4\n"
    assert headwater("server", "pause", folder, "r1").out == paused
    assert headwater("server", "resume", folder, "r1").out == "run r1: running, round 3 of 20\n"
    assert "stopped" in headwater("server", "stop", folder, "r1").out
    assert json.loads(headwater("server", "stop", folder, "r1", "--json").out)["state"] == "stopped"
    done = headwater("server", "set", folder, "r1", "deadline_s=600", "rounds=20")
    assert done.code == 0
    assert done.out == (
        "run r1: running, round 3 of 20; deadline_s 120 → 600, at once\n"
        "warning: min_clients is 5, but 2 devices are enrolled\n"
    )
    assert organiser.calls == [
        ("pause", "r1"), ("resume", "r1"), ("stop", "r1"), ("stop", "r1"),
        ("change", "r1", {"deadline_s": "600", "rounds": "20"}),
    ]  # fmt: skip


def test_the_latest_run_is_meant_if_none_is_named(folder, organiser, tmp_path):
    """Which one that is, the daemon knows; each answer names it."""
    verbs = (["pause"], ["resume"], ["stop"], ["set", "rounds=5"])
    for verb, *words in verbs:
        assert headwater("server", verb, folder, *words).out.startswith("run r1")
    organiser.archive = [tar_of(("adapter_config.json", b"{}"))]
    actions = (["list"], ["rollback", "1"], ["unpin", "1"], ["export", "--out", str(tmp_path / "a")])
    for action, *words in actions:
        assert "run r1" in headwater("server", "adapters", action, folder, *words).out
    assert [call[1] for call in organiser.calls[:-1]] == [""] * (len(verbs) + len(actions))


def test_a_resume_says_where_the_paths_start_now(folder, organiser, tmp_path, monkeypatch, server):
    monkeypatch.chdir(tmp_path)
    assert headwater("server", "resume", folder, "r1", "--folder", "moved").code == 0
    there = ("--server", server.address, "--identity", folder / "secrets")
    assert headwater("server", "resume", *there, "--folder", "/srv/f").code == 0
    assert [tuple(map(str, call[1:])) for call in organiser.calls] == [
        ("r1", str(tmp_path / "moved")), ("", "/srv/f"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["status", "DIR", "more"], "0 arguments"),
        (["status"], "--server and --identity"),
        (["status", "--server", "localhost:1"], "together"),
        (["status", "--server", "localhost", "--identity", "DIR"], "host:port"),
        (["status", "none"], "nothing there"),
        (["submit", "DIR"], "1 arguments"),
        (["set", "DIR", "r1"], "KEY=VALUE"),
        (["set", "DIR", "r1", "rounds=1", "rounds=2"], "once"),
        (["set", "DIR", "r1", "=2"], "once"),
        (["adapters", "rollback", "DIR"], "1 to 2 arguments"),
        (["adapters", "rollback", "DIR", "r1", "-"], "a version's number"),
        (["adapters", "unpin", "DIR", "r1", "x"], "a version's number"),
        (["adapters", "export", "DIR"], "--out FOLDER"),
        (["adapters", "export", "DIR", "--version", "-1", "--out", "o"], "at least 1"),
    ],
)
def test_what_does_not_make_sense_is_refused(folder, organiser, words, match, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = headwater("server", *[folder if w == "DIR" else w for w in words])
    assert match in done.error
    assert done.code == ConfigError.exit_code
    assert [c for c in organiser.calls if c[0] != "status"] == []


def test_what_the_daemon_refuses(folder, organiser):
    organiser.error = StorageError("writing runs.json", expected="room for 9 bytes", got="disk full")
    done = headwater("server", "stop", folder, "r1")
    assert done.error == "headwater: error HW11: writing runs.json: expected room for 9 bytes, got disk full"
    assert done.code == 11


def test_no_daemon_names_the_command_that_starts_it(folder, server):
    server.stop(0)
    for verb in ("status", "watch"):
        done = headwater("server", verb, folder)
        assert f"headwater server run {folder}" in done.error
        assert server.address in done.error


def test_a_key_that_others_can_read_is_refused(folder):
    (folder / "secrets" / "organiser.key").chmod(0o644)
    assert "0600" in headwater("server", "status", folder).error
    (folder / "secrets" / "ca.pem").unlink()
    assert "ca.pem" in headwater("server", "status", folder).error


def test_as_a_process_and_light(folder):
    """No torch, and a refused handshake prints nothing but our error."""
    code = (
        "import sys; from headwater.cli.main import main; code = main(sys.argv[1:]);"
        "assert 'torch' not in sys.modules and 'flwr' not in sys.modules; sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "server", "status", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "sentiment" in done.stdout
    (folder / "secrets" / "ca.pem").write_bytes(certificates().other_authority.pem)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 13
    assert len(done.stderr.splitlines()) == 1
    assert "does not fit" in done.stderr


# --- adapters -------------------------------------------------------------------------------------


def tar_of(*members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            else:
                member.type, member.linkname = content
                tar.addfile(member)
    return stream.getvalue()


def test_adapters_are_listed(folder, organiser):
    done = headwater("server", "adapters", "list", folder)
    assert done.out.startswith("run r1\n")
    assert re.search(r"2 +1 +1 +best +accuracy 0\.750 +ann, bo .* 111111111111 +round 1", done.out)
    rows = json.loads(headwater("server", "adapters", "list", folder, "r1", "--json").out)
    assert [(r["version"], r["value"]) for r in rows] == [(1, None), (2, 0.75)]
    assert organiser.calls == [("adapters", ""), ("adapters", "r1")]


def test_rollback(folder, organiser):
    done = headwater("server", "adapters", "rollback", folder, "r1", "1")
    assert "from version 1" in done.out
    assert organiser.calls == [("rollback", "r1", 1)]


def test_unpin(folder, organiser):
    done = headwater("server", "adapters", "unpin", folder, "r1", "2")
    assert "version 2 is kept no longer" in done.out
    assert organiser.calls == [("unpin", "r1", 2)]


def test_an_export_is_unpacked(folder, organiser, tmp_path):
    data = tar_of(("adapter_config.json", b"{}"), ("adapter_model.safetensors", b"x" * 3_000_000))
    organiser.archive = [data[i : i + 70_000] for i in range(0, len(data), 70_000)]
    out = tmp_path / "new" / "adapter"
    done = headwater("server", "adapters", "export", folder, "--version", "2", "--out", out)
    assert done.code == 0, done.err
    assert sorted(p.name for p in out.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert (out / "adapter_model.safetensors").stat().st_size == 3_000_000
    assert [p.name for p in out.parent.iterdir()] == ["adapter"]
    assert (
        done.out == f"{out}: run r1, version 2 (the best, after round 1, accuracy 0.750), 3,000,002 bytes\n"
    )
    assert organiser.calls == [("adapters", ""), ("export", "r1", 2)]
    assert "holds something" in headwater("server", "adapters", "export", folder, "--out", out).error
    assert len(organiser.calls) == 2  # refused before the daemon was asked
    empty = tmp_path / "empty"
    empty.mkdir()
    assert headwater("server", "adapters", "export", folder, "r1", "--out", empty).code == 0
    assert (empty / "adapter_config.json").read_bytes() == b"{}"


def test_an_exported_adapter_loads(folder, organiser, tmp_path):
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import BertModel

    from tests.support.tiny_models import tiny_bert

    base = tiny_bert(tmp_path / "base")
    torch.manual_seed(1)
    made = get_peft_model(
        BertModel.from_pretrained(base),
        LoraConfig(r=2, target_modules=["query"], init_lora_weights=False),
    )
    made.save_pretrained(tmp_path / "made")
    organiser.archive = [tar_of(*((p.name, p.read_bytes()) for p in sorted((tmp_path / "made").iterdir())))]
    done = headwater("server", "adapters", "export", folder, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    loaded = PeftModel.from_pretrained(BertModel.from_pretrained(base), tmp_path / "out").state_dict()
    for name, value in made.state_dict().items():
        assert torch.equal(loaded[name], value), name


@pytest.mark.parametrize(
    "member",
    [
        ("../out", b"x"),
        ("/tmp/out", b"x"),
        ("a/../../out", b"x"),
        ("link", (tarfile.SYMTYPE, "/etc/passwd")),
        ("link", (tarfile.LNKTYPE, "a")),
        ("pipe", (tarfile.FIFOTYPE, "")),
        ("dev", (tarfile.CHRTYPE, "")),
    ],
    ids=repr,
)
def test_an_archive_with_anything_but_plain_files_is_refused(member, tmp_path):
    with pytest.raises(DecodeError):
        unpack([tar_of(("a", b"x"), member)], tmp_path / "in" / "adapter")
    assert list((tmp_path / "in").iterdir()) == []
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("data", [b"", b"no tar", b"x" * 600, tar_of(("a", b"x" * 5000))[:2000], tar_of()])
def test_a_broken_archive_leaves_nothing(data, tmp_path):
    with pytest.raises(DecodeError):
        unpack([data], tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_breaks_off_leaves_nothing(tmp_path):
    def pieces():
        yield tar_of(("a", b"x"))[:512]
        raise StorageError("the daemon's disk")

    with pytest.raises(StorageError):
        unpack(pieces(), tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


# --- watch ----------------------------------------------------------------------------------------


def watching(folder, *options, ignored=False):
    """``ignored``: as a shell without job control starts what it puts into the background."""
    command = [sys.executable, "-u", "-m", "headwater", "server", "watch", str(folder), *options]
    how = signal.SIG_IGN if ignored else signal.SIG_DFL
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, how),
    )  # fmt: skip


@pytest.mark.parametrize("ignored", [False, True], ids=["", "SIGINT ignored"])
def test_watch_outlives_the_daemon_and_ends_with_ctrl_c(tmp_path, ignored):
    first, second = FakeOrganiser(), FakeOrganiser()
    first.tell("before")
    with serving(first) as server:
        folder = write_folder(tmp_path / "srv", server.address)
        process = watching(folder, "--json", "--all", ignored=ignored)
        try:
            assert json.loads(process.stdout.readline())["text"] == "before"
            first.tell("round 1", "round", round=1, value=0.5)
            event = json.loads(process.stdout.readline())
            assert (event["kind"], event["data"]) == ("round", {"round": 1, "value": 0.5})
            server.stop(0)
            second.tell("after the restart")
            with serving(second, server.address):
                event = json.loads(process.stdout.readline())
                assert (event["seq"], event["text"]) == (1, "after the restart")
                process.send_signal(signal.SIGINT)
                out, err = process.communicate()
        finally:
            process.kill()
    assert (process.returncode, out) == (0, "")
    assert "trying again in" in err
    assert "Traceback" not in err
    until(lambda: second.watching == 0)


@pytest.mark.parametrize("terminal", [True, False])
def test_watch_on_a_terminal_and_into_a_file(organiser, server, terminal, monkeypatch, capsys):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=150, height=50, highlight=False)
    monkeypatch.setattr(server_watch, "Console", lambda **_: console)
    monkeypatch.setattr(server_watch, "REFRESH_S", 0.05)
    organiser.tell("hello " + HOSTILE, "client")
    problems = []

    def play():
        try:
            until(lambda: "hello" in out.getvalue())
            asked = organiser.calls.count(("status",))
            if terminal:  # it is kept up to date
                until(lambda: organiser.calls.count(("status",)) > asked + 1)
            server.stop(0)
            until(
                lambda: "trying again" in out.getvalue() + (capsys.readouterr().err if not terminal else "")
            )
        except AssertionError as problem:
            problems.append(problem)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    player = threading.Thread(target=play)
    player.start()
    options = argparse.Namespace(all=True, json=False, words=[], verb="watch")
    assert server_run.watch(client_of(server.address), options) == 0
    player.join(60)
    assert problems == []
    text = out.getvalue()
    assert "[red]x[/red] :smile:\ufffd[2J\ufffd ann online \ufffdgood" in text
    assert ("1 of 2 online" in text) == terminal
    until(lambda: organiser.watching == 0)


def test_watch_begins_with_how_the_runs_stand(tmp_path):
    """A run that waits already has no news; whoever looks is told for whom all the same."""
    organiser = FakeOrganiser()
    why = "1 of the 2 clients that a round needs are here, missing: ben (offline)"
    organiser.runs = (replace(organiser.runs[0], state="waiting", reason=why),)
    with serving(organiser) as server:
        process = watching(write_folder(tmp_path / "srv", server.address))
        try:
            line = process.stdout.readline()
            assert line.startswith(f"run {organiser.runs[0].run}: waiting, round ")
            assert why in line
            process.send_signal(signal.SIGINT)
            assert process.communicate()[0] == ""
        finally:
            process.kill()


# --- tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "just now"), (4.9, "just now"), (12, "12 s ago"), (89, "89 s ago"), (180, "3 min ago"),
        (3600, "60 min ago"), (7300, "2 h ago"), (86400, "24 h ago"), (9 * 86400, "9 days ago"),
        (float("nan"), "–"),
    ],
)  # fmt: skip
def test_ages(seconds, text):
    assert tables.ago(seconds) == text


@pytest.mark.parametrize("width", [30, 60, 80, 120, 200])
def test_names_are_never_cut(organiser, width):
    long = "hospital-in-the-north-east-of-the-country.example.org"
    status = replace(organiser.status(), clients=(ANN, replace(BO, client=long, last_error=HOSTILE)))
    for what in (tables.clients_table(status.clients), tables.status_view(status, NOW)):
        console = Console(file=io.StringIO(), width=width, force_terminal=True, highlight=False)
        console.print(what)
        text = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())
        lines = text.splitlines()
        assert max(map(len, lines)) <= width
        assert "…" not in text
        if width >= 70:
            assert any(line.startswith(long) for line in lines)
        assert long in "".join(line.split("  ")[0].strip() for line in lines)
        assert "\x1b" not in text
        assert "offline" in text


def test_a_wide_screen_shows_every_column(organiser):
    console = Console(file=io.StringIO(), width=250)
    console.print(tables.status_view(organiser.status(), NOW))
    console.print(tables.adapters_table((FIRST, SECOND), NOW))
    text = console.file.getvalue()
    for title in (
        "federation",
        "updates in",
        "per round",
        "submitted",
        "examples",
        "version",
        "sha256",
        "note",
    ):
        assert title in text
    assert "60 min ago" in text


def test_states_have_colours(organiser):
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system="standard")
    console.print(tables.status_view(organiser.status(), NOW))
    text = console.file.getvalue()
    for shown in ("\x1b[32mrunning", "\x1b[35mpaused", "\x1b[32monline", "\x1b[33moffline"):
        assert shown in text


def test_a_large_cohort_is_counted(organiser):
    console = Console(file=io.StringIO(), width=200)
    many = replace(SECOND, cohort=tuple(f"client-{i}" for i in range(500)), kept=False, best=False)
    console.print(tables.adapters_table((many,), NOW))
    assert "500 clients" in console.file.getvalue()
    assert "not kept" in console.file.getvalue()


def test_an_event_of_another_day_has_its_date():
    event = WatchEvent(1, NOW, "round", "r1", "text")
    assert re.match(r"\d\d:\d\d:\d\d  round", tables.event_line(event, NOW).plain)
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:", tables.event_line(event, NOW + 2 * 86400).plain)
