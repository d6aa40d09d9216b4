"""A lock has one holder, whoever shares it has company, and a process that dies lets go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from headwater.locks import lock_file, take, take_within

HOLD = """
import sys, time
from pathlib import Path
from headwater.locks import lock_file, take
with lock_file(Path(sys.argv[1])) as handle:
    assert take(handle)
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_holds_it_and_the_next_gets_it_when_it_is_closed(tmp_path):
    path = tmp_path / "lock"
    with lock_file(path) as second:
        with lock_file(path) as first:
            assert take(first)
            assert not take(second)
            assert not take(second, shared=True)
            assert not take_within(second, 0.05)
        assert take_within(second, 0.05)


def test_shared_ones_get_along_and_keep_the_exclusive_out(tmp_path):
    path = tmp_path / "lock"
    with lock_file(path) as one, lock_file(path) as two, lock_file(path) as three:
        assert take(one, shared=True)
        assert take(two, shared=True)
        assert not take(three)


def test_what_stands_in_the_file_stays_and_a_new_one_has_its_mode(tmp_path):
    path = tmp_path / "lock"
    path.write_text("42\n")
    with lock_file(path) as handle:
        assert take(handle)
    assert path.read_text() == "42\n"
    with lock_file(tmp_path / "new", mode=0o600):
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


def test_a_killed_process_lets_go(tmp_path):
    path = tmp_path / "lock"
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "held\n"
        with lock_file(path) as handle:
            assert not take(handle)
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            assert take_within(handle, 60)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
