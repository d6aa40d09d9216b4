"""A full disk ends a simulation before the merge, whichever write fails; a resume gives the same bits."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from headwater.client.execution.record_file import RecordFile
from headwater.config import load_federation
from headwater.errors import StorageError
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.simulate import simulate
from tests.support.command import headwater
from tests.support.runs import OWNERS, bare_federation, resume, run, tiny_federation


class Disk:
    """From its ``full_at``-th write below ``folder`` on, it has no room."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.folder, self.full_at, self.writes = folder, 10**9, 0
        self._open, self._mkdir, self._put = Path.open, Path.mkdir, RecordFile.put
        disk = self

        def opened(path, mode="r", *args, **kwargs):
            if set(mode) & set("wax+") and path.is_relative_to(disk.folder):
                disk.write(path)
            return disk._open(path, mode, *args, **kwargs)

        def made(path, *args, **kwargs):
            if path.is_relative_to(disk.folder) and not path.exists():
                disk.write(path)
            return disk._mkdir(path, *args, **kwargs)

        monkeypatch.setattr(Path, "open", opened)

        def put(file, *args):
            try:
                disk.write(file.path)
            except OSError as error:
                raise StorageError(f"writing {file.path}", got=str(error)) from error
            return disk._put(file, *args)

        monkeypatch.setattr(Path, "mkdir", made)
        monkeypatch.setattr(RecordFile, "put", put)

    def write(self, path: Path) -> None:
        self.writes += 1
        if self.writes >= self.full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def records(folder):
    path = folder / "rounds.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A federation, the summary of its run where there is room, and the states of the rounds."""
    folder = tmp_path_factory.mktemp("whole")
    file = tiny_federation(folder / "fed", federation={"rounds": 2})
    summary, _ = run(file, folder / "run")
    return file, summary, [r["state_sha256"] for r in records(folder / "run")]


@pytest.mark.parametrize("first", [1, 2, 3, 4])  # and every fourth write from there
def test_whichever_write_fails_a_resume_gives_the_same_bits(tmp_path, monkeypatch, whole, first):
    file, undisturbed, states = whole
    disk = Disk(monkeypatch, tmp_path / "counted")
    run(file, tmp_path / "counted")
    assert disk.writes > 12
    numbers, refused = range(first, disk.writes + 1, 4), 0
    loaded = load_federation(file)
    for number in numbers:
        out = tmp_path / f"run{number}"
        disk.folder, disk.full_at, disk.writes = out, number, 0
        try:
            folder = RunFolder.create(out, loaded, {"engine": "inprocess"})
            simulate(loaded, folder)
        except StorageError:
            refused += 1
        except OSError as error:  # the command tells it as a StorageError
            refused += error.errno == errno.ENOSPC
        disk.full_at = 10**9
        for record in records(out)[1:]:  # nothing was merged without somebody
            assert set(record["clients"]) == set(OWNERS), number
            assert not any("failed" in row for row in record["clients"].values()), number
        if (out / "state" / "origin.json").exists() and (out / "federation.toml").exists():
            summary, _ = resume(out)
        else:
            shutil.rmtree(out, ignore_errors=True)
            summary, _ = run(file, out)
        assert summary["adapter_sha256"] == undisturbed["adapter_sha256"], number
        assert summary["metric"] == undisturbed["metric"], number
        assert summary["failures_total"] == 0
        assert [r["state_sha256"] for r in records(out)] == states, number
        shutil.rmtree(out)
    assert refused == len(numbers)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_clients_store_that_cannot_be_written_ends_the_command_with_11(tmp_path, workers):
    """A real limit of the kernel's: no file may grow beyond what the store of one client needs."""
    file = bare_federation(tmp_path / "fed", federation={"rounds": 2})
    whole, _ = run(file, tmp_path / "whole")
    code = (
        "import resource, sys; from headwater.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    # -B: what it imports first would be left compiled by half, which every later process reads
    command = [sys.executable, "-B", "-c", code, "simulate", str(file), "--out", str(tmp_path / "run")]
    done = subprocess.run([*command, "--workers", str(workers)], capture_output=True, text=True)
    assert done.returncode == StorageError.exit_code, done.stderr
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr
    assert len(records(tmp_path / "run")) <= 1
    done = headwater("simulate", "--resume", tmp_path / "run", "--quiet")
    assert done.code == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["adapter_sha256"] == whole["adapter_sha256"]
