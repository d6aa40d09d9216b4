"""The seconds of children count, those that ended and those that run; what is dear is named, nothing else."""

from __future__ import annotations

import os

import pytest

from tests.support.cpu_seconds import CpuSeconds

TESTS = """
import subprocess, sys, time

BURN = "import time\\nwhile time.process_time() < 0.3: pass\\nprint(flush=True)\\n"

def test_cheap():
    time.sleep(0.3)

def test_waits_for_its_child():
    subprocess.run([sys.executable, "-ISc", BURN], check=True)

def test_leaves_its_child():
    global child
    child = subprocess.Popen(
        [sys.executable, "-ISc", BURN + "sys = input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    child.stdout.readline()

def test_ends_it():
    child.communicate(b"\\n")
"""


def test_processes_count_and_waiting_does_not(tmp_path, capsys):
    (tmp_path / "test_costs.py").write_text(TESTS)
    costs = CpuSeconds(limit_s=0.2)
    options = ["-c", os.devnull, "--rootdir", str(tmp_path), "-p", "no:cacheprovider", "-p", "no:xdist"]
    assert pytest.main([*options, str(tmp_path)], plugins=[costs]) == 0
    said = capsys.readouterr().out
    found = {name.split("::")[1]: seconds for name, seconds in costs.tests.items()}
    assert len(found) == 4
    dear = {"test_waits_for_its_child", "test_leaves_its_child"}
    assert {name for name, seconds in found.items() if seconds >= 0.2} == dear
    assert {name for name in found if f"::{name}" in said.split("CPU seconds: ")[1]} == dear
