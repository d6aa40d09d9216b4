"""``federation.bits = "portable"``: what is set, where, and that the bits are those of the golden run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from headwater import bits
from headwater.client.agent.known_runs import KnownRun
from headwater.client.agent.worker import Worker, WorkerOptions
from headwater.config import load_federation
from headwater.config.daemon import check_daemon, daemon_toml
from headwater.errors import ConfigError
from headwater.server.storage.run_folder import RunFolder
from headwater.server.workspace.run_queue import RunQueue
from headwater.server.workspace.workspace import Workspace
from headwater.training.context import TrainingContext
from tests.bits.run import federation, state_of
from tests.support.federation_text import federation_text, vector_text

GOLDEN = "db70d7db4db9cf6a6b24e9d40b488c505a4dfd2d5c612be5ceb3eb2b240bef6a"
"""With the versions of constraints.txt, on every x86-64 processor."""
HOSTILE = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "AVX2",
    "MKL_VML_MODE": "EP",
    "ONEDNN_MAX_CPU_ISA": "ALL",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_ENABLE_CPU_FEATURES": "X86_V3",
    "GLIBC_TUNABLES": "glibc.malloc.mxfast=64:glibc.cpu.hwcaps=-SSSE3",
}
"""What a machine may say instead."""
PROCESSORS = ("zen2", "zen4", "nehalem", "haswell", "skylake-x")


def test_a_portable_run_has_the_golden_bits_whatever_the_machine_says(tmp_path):
    file = federation(tmp_path / "federation")
    assert state_of(file, tmp_path / "run", HOSTILE) == GOLDEN


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("processor", PROCESSORS)
def test_every_processor_that_a_process_may_take_this_one_for(tmp_path, processor):
    library = tmp_path / "processor.so"
    source = Path(__file__).with_name("processor.c")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    played = {"LD_PRELOAD": str(library), "PLAYED_PROCESSOR": processor}
    asked = subprocess.run(["true"], env={**os.environ, **played}, stderr=subprocess.PIPE, check=True)
    if asked.stderr:
        pytest.skip("this machine's kernel or processor lets nobody answer CPUID in its place")
    file = federation(tmp_path / "federation")
    assert state_of(file, tmp_path / "portable", played) == GOLDEN
    machine = state_of(file, tmp_path / "machine", played, "federation.bits=machine")
    assert machine != GOLDEN  # else the golden bits would prove nothing


def test_what_a_process_is_started_with():
    found = bits.environment("portable", {**HOSTILE, "HOME": "/h"})
    assert found["HOME"] == "/h"
    assert found["GLIBC_TUNABLES"] == "glibc.malloc.mxfast=64:glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4"
    assert found["ATEN_CPU_CAPABILITY"] == "default"
    assert found["CUDA_VISIBLE_DEVICES"] == ""
    assert not {"NPY_ENABLE_CPU_FEATURES", "MKL_VML_MODE", "ONEDNN_DEFAULT_FPMATH_MODE"} & found.keys()
    assert bits.environment("portable", found) == found
    assert bits.environment("machine", HOSTILE) == HOSTILE


def test_a_process_computes_in_its_own_mode_only(monkeypatch):
    bits.require("machine")
    with pytest.raises(ConfigError, match="got one of mode 'machine'"):
        bits.require("portable")
    monkeypatch.setenv("HEADWATER_BITS", "portable")
    with pytest.raises(ConfigError, match=r"got one of mode 'portable'.*without python -m headwater.bits"):
        bits.require("machine")
    with pytest.raises(ConfigError, match="expected ATEN_CPU_CAPABILITY=default, got None"):
        bits.require("portable")


def test_variables_that_are_set_too_late_are_found_out(monkeypatch):
    for name, value in bits.environment("portable", {}).items():
        monkeypatch.setenv(name, value)
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("this process computes like a portable one")
    with pytest.raises(ConfigError, match=r"expected (the bits of glibc|NumPy at|PyTorch without)"):
        bits.require("portable")


def test_any_command_can_be_started_portable():
    script = "import numpy; from headwater.bits import require; require('portable')"
    command = [sys.executable, "-m", "headwater.bits", sys.executable, "-c", script]
    subprocess.run(command, env={**os.environ, **HOSTILE}, check=True)


def test_a_federation_without_the_key_is_named_as_before(tmp_path):
    (tmp_path / "f.toml").write_text(vector_text("v"))
    loaded = load_federation(tmp_path / "f.toml")
    assert "\nbits =" not in loaded.to_toml()
    portable = load_federation(tmp_path / "f.toml", ["federation.bits=portable"])
    assert 'bits = "portable"' in portable.to_toml()
    assert loaded.sha256() != portable.sha256()
    with pytest.raises(ConfigError, match=r"federation\.bits 'portable' with simulation\.cohort 'auto'"):
        load_federation(tmp_path / "f.toml", ["federation.bits=portable", "simulation.cohort=auto"])
    (tmp_path / "g.toml").write_text(federation_text())
    with pytest.raises(ConfigError, match=r"federation\.bits 'portable' with model\.quantization"):
        load_federation(tmp_path / "g.toml", ["federation.bits=portable", "model.quantization=4bit"])


def test_a_run_goes_on_in_the_mode_it_began_with(tmp_path):
    (tmp_path / "f.toml").write_text(vector_text("v"))
    portable = load_federation(tmp_path / "f.toml", ["federation.bits=portable"])
    folder = RunFolder.create(tmp_path / "run", portable, {"engine": "inprocess"})
    assert RunFolder.open(folder.path)[1].settings.federation.bits == "portable"
    file = folder.path / "federation.toml"
    file.write_text(file.read_text().replace('bits = "portable"', 'bits = "machine"'))
    with pytest.raises(ConfigError, match=r"federation\.bits: expected 'portable'.*got 'machine'"):
        RunFolder.open(folder.path)
    (folder.path / "state" / "origin.json").write_text(f'{{"folder": "{tmp_path}", "engine": "inprocess"}}')
    RunFolder.open(folder.path)  # one of a version that had no such key


def test_who_trains_asks_for_the_mode(tmp_path):
    (tmp_path / "f.toml").write_text(vector_text("v"))
    portable = load_federation(tmp_path / "f.toml", ["federation.bits=portable"])
    with pytest.raises(ConfigError, match=r"federation\.bits 'portable'"):
        TrainingContext.open(portable)
    TrainingContext.open(portable, threads=False)  # to export, beside another run


def test_a_server_takes_runs_of_its_own_mode(tmp_path):
    workspace = Workspace.init(tmp_path / "server", bits="portable")
    assert workspace.settings.bits == "portable"
    assert check_daemon({"name": "s", "listen": {"names": ["s"]}}, "s").bits == "machine"
    assert "\nbits" not in daemon_toml(check_daemon({"name": "s", "listen": {"names": ["s"]}}, "s"))
    book = RunQueue(workspace.runs_book, workspace.runs)
    with pytest.raises(ConfigError, match=r"federation\.bits 'portable'.*server\.toml"):
        book.submit(vector_text("v").replace("rounds", 'bits = "portable"\nrounds'), tmp_path)
    assert book.submit(vector_text("v"), tmp_path)[0].state == "queued"


WORKER = """
import os, socket, sys
from headwater.client.agent import frames
connection = socket.socket(fileno=int(sys.argv[1]))
frames.receive(connection)
frames.send(connection, [b"{}"])
while True:
    frames.receive(connection)
    said = os.environ.get("HEADWATER_BITS", "machine") + " " + os.environ.get("MKL_CBWR", "")
    head = b'{"loads": 0, "notice": "", "rows": null, "error": ""}'
    frames.send(connection, [head, said.encode()])
"""


def test_a_devices_worker_starts_again_in_the_runs_mode(tmp_path, monkeypatch):
    real = subprocess.Popen
    monkeypatch.setattr(
        subprocess,
        "Popen",
        lambda command, **options: real([command[0], "-c", WORKER, command[-1]], **options),
    )
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    worker = Worker(WorkerOptions("ann", str(tmp_path), str(tmp_path)))
    runs = {
        mode: KnownRun(mode, f'{{"federation": {{"name": "n"{key}}}}}', "", tmp_path)
        for mode, key in (("machine", ""), ("portable", ', "bits": "portable"'))
    }
    try:
        for mode, starts in (
            ("machine", 1),
            ("machine", 1),
            ("portable", 2),
            ("portable", 2),
            ("machine", 3),
        ):
            cbwr = "COMPATIBLE" if mode == "portable" else "AVX2"
            assert worker.answer(runs[mode], None, b"", b"").decode() == f"{mode} {cbwr}"
            assert worker.starts == starts
    finally:
        worker.close()
    assert KnownRun("r", "no JSON", "", tmp_path).bits == "machine"
