import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from headwater.cli import fetch as cli
from headwater.cli.main import main
from headwater.data.downloads import MANIFEST, Pin, obtain, prepare
from headwater.errors import DataError, MissingDependency, StorageError

CONTENT = b"an archive"
SHA = hashlib.sha256(CONTENT).hexdigest()
WHEEL = Pin("toy-1-py3-none-any.whl", SHA, "toy==1", "wheel")
DEB = Pin("toy_1_all.deb", SHA, "toy=1", "deb")


def quiet(_: str) -> None:
    """Says nothing."""


@pytest.fixture
def index(monkeypatch):
    """Stands in for pip and apt-get: what was run, and what that does."""
    calls: list[list[str]] = []
    state: dict[str, object] = {"calls": calls, "writes": {}, "stderr": ""}

    def run(command, *, cwd=None, **_):
        calls.append(command)
        for name, content in state["writes"].items():
            (Path(cwd) / name).write_bytes(content)
        return subprocess.CompletedProcess(command, 1, "", state["stderr"])

    monkeypatch.setattr(subprocess, "run", run)
    return state


def test_a_file_that_is_there_is_not_downloaded(tmp_path, index):
    (tmp_path / WHEEL.file).write_bytes(CONTENT)
    assert obtain(WHEEL, tmp_path, quiet) == tmp_path / WHEEL.file
    assert not index["calls"]


def test_a_file_with_another_hash_is_refused(tmp_path, index):
    (tmp_path / WHEEL.file).write_bytes(CONTENT + b"!")
    with pytest.raises(DataError, match=rf"toy-1.*expected SHA-256 {SHA}, got "):
        obtain(WHEEL, tmp_path, quiet)
    assert not index["calls"]


@pytest.mark.parametrize(("source", "flag"), [("wheel", "--only-binary"), ("sdist", "--no-binary")])
def test_pip_gets_the_hash_before_anything_is_built(tmp_path, index, source, flag):
    index["writes"] = {WHEEL.file: CONTENT}
    obtain(Pin(WHEEL.file, SHA, "toy==1", source), tmp_path, quiet)
    (command,) = index["calls"]
    assert {"--no-deps", "--require-hashes", flag} <= set(command)


def test_no_network_is_one_line_with_a_next_step(tmp_path, index):
    lost = "WARNING: Retrying after connection broken by 'NewConnectionError'\n"
    for stderr, shown in ((lost, "no connection"), ("", "Could not find a version")):
        index["stderr"] = stderr + "ERROR: Could not find a version\nERROR: No matching distribution\n"
        with pytest.raises(DataError, match=rf"fetch toy==1: .*{shown}.*--downloads") as caught:
            obtain(WHEEL, tmp_path, quiet)
        assert "\n" not in str(caught.value)


def test_without_pip_it_says_so(tmp_path, index):
    index["stderr"] = "/usr/bin/python3: No module named pip"
    with pytest.raises(MissingDependency, match=r"ensurepip"):
        obtain(WHEEL, tmp_path, quiet)


@pytest.mark.parametrize(("user", "commands"), [(1000, 1), (0, 3)])
def test_a_debian_package_comes_from_apt(tmp_path, index, monkeypatch, user, commands):
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/apt-get")
    monkeypatch.setattr("os.geteuid", lambda: user)
    index["stderr"] = "E: Unable to locate package toy"
    with pytest.raises(DataError, match=r"Unable to locate.*--downloads"):
        obtain(DEB, tmp_path, quiet)
    assert len(index["calls"]) == commands  # root refreshes the package lists and tries again
    index["writes"] = {DEB.file: CONTENT}
    assert obtain(DEB, tmp_path, quiet).read_bytes() == CONTENT


def test_a_debian_package_without_apt(tmp_path, index, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(MissingDependency, match=r"apt-get.*--downloads"):
        obtain(DEB, tmp_path, quiet)
    assert not index["calls"]


def build(out: Path) -> None:
    (out / "inner").mkdir()
    (out / "inner" / "a.txt").write_text("a")


def test_a_prepared_folder_is_prepared_once(tmp_path):
    folder, sources = tmp_path / "out" / "toy", {WHEEL.file: SHA}
    assert prepare(folder, "toy 1", build, sources, quiet)
    assert not prepare(folder, "toy 1", build, sources, quiet)
    assert prepare(folder, "toy 2", build, sources, quiet)
    assert prepare(folder, "toy 2", build, {WHEEL.file: "other"}, quiet)
    (folder / "inner" / "a.txt").write_text("b")
    assert prepare(folder, "toy 2", build, {WHEEL.file: "other"}, quiet)
    assert (folder / "inner" / "a.txt").read_text() == "a"
    (folder / MANIFEST).write_text("[]")
    assert prepare(folder, "toy 2", build, sources, quiet)
    assert [p.name for p in folder.parent.iterdir()] == ["toy"]


def test_a_build_that_fails_leaves_what_was_there(tmp_path):
    def fails(out: Path) -> None:
        (out / "half").write_text("x")
        raise DataError("the archive", expected="a file", got="none")

    folder = tmp_path / "toy"
    prepare(folder, "toy 1", build, {}, quiet)
    with pytest.raises(DataError):
        prepare(folder, "toy 2", fails, {}, quiet)
    assert (folder / "inner" / "a.txt").read_text() == "a"
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]


def test_other_peoples_files_are_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"other files.*--out"):
        prepare(tmp_path, "toy 1", build, {}, quiet)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def command_line(*words: str) -> int:
    return main(["fetch", *words])


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / WHEEL.file).write_bytes(CONTENT)
    item = cli.Item((WHEEL,), lambda archive, out: build(out), "toy 1", "a toy")
    monkeypatch.setattr(cli, "ITEMS", {"toy": item, "toy2": item})
    return tmp_path


def test_the_command_fetches_into_out(toy, index, capsys, monkeypatch):
    monkeypatch.delenv(cli.DOWNLOADS, raising=False)
    assert command_line("all", "--out", str(toy / "out"), "--downloads", str(toy / "kept")) == 0
    assert {p.name for p in (toy / "out").iterdir()} == {"toy", "toy2"}
    assert "fetch toy: preparing" in capsys.readouterr().err
    assert command_line("toy", "--out", str(toy / "out")) == 0  # nothing to download any more
    assert "is ready" in capsys.readouterr().err
    assert not index["calls"]
    assert json.loads((toy / "out" / "toy" / MANIFEST).read_text())["sources"] == {WHEEL.file: SHA}


def test_the_environment_names_the_downloads_too(toy, index, capsys, monkeypatch):
    monkeypatch.setenv(cli.DOWNLOADS, str(toy / "kept"))
    assert command_line("toy", "--quiet", "--out", str(toy / "out")) == 0
    assert capsys.readouterr().err == ""
    assert not index["calls"]


def test_unknown_names_and_folders_that_cannot_be_written(toy):
    with pytest.raises(DataError, match=r"fetch nothing: expected one of toy, toy2, all"):
        cli.fetch("nothing", toy)
    with pytest.raises(SystemExit):
        command_line("nothing")
    (toy / "file").write_text("")
    with pytest.raises(StorageError, match=r"to write there"):
        cli.fetch("toy", toy / "file", quiet=True, downloads=toy / "kept")


def test_every_pin_is_a_whole_hash():
    assert all(
        len(pin.sha256) == 64 and pin.source in ("wheel", "sdist", "deb")
        for item in cli.ITEMS.values()
        for pin in item.pins
    )
