"""The log: one stream, readable lines, bounded, whoever writes to it."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import threading
import warnings
from logging.handlers import RotatingFileHandler

import pytest

from headwater.errors import StorageError
from headwater.server.daemon import logs
from headwater.server.daemon.logs import MOST_ALIKE, MOST_LINE, log_to
from headwater.server.monitoring.monitor import Monitor

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (DEBUG|INFO|WARNING|ERROR|CRITICAL) +\S+ +\S.*")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "logs" / "daemon.log"


def test_everybody_s_lines_come_once_to_file_and_stderr(path, capsys):
    """In a process of its own, as pytest has handlers: Flower with its handler, uvicorn with its setup."""
    program = f"""
import logging, warnings, sys, threading
from pathlib import Path
import flwr.supercore.logger, uvicorn
uvicorn.Config(lambda: None)            # sets up uvicorn's own handlers
from headwater.server.daemon.logs import log_to
from headwater.server.monitoring.monitor import Monitor
with log_to(Path({str(path)!r})):
    logging.getLogger("flwr").info("flower speaks")
    logging.getLogger("uvicorn.error").warning("uvicorn speaks")
    logging.getLogger("uvicorn.access").info("GET /")
    logging.getLogger("some.library").error("library speaks")
    Monitor(version="1").error("the daemon speaks")
    warnings.warn("a warning speaks")
    thread = threading.Thread(target=lambda: 1 / 0, name="worker"); thread.start(); thread.join()
logging.getLogger("flwr").info("flower after")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    text = path.read_text()
    for who, words in (
        ("INFO     flower", "flower speaks"),
        ("WARNING  web", "uvicorn speaks"),
        ("ERROR    some", "library speaks"),
        ("ERROR    server", "the daemon speaks"),
        ("WARNING  python", "a warning speaks"),
        ("ERROR    server", "thread worker ended"),
    ):
        assert len(re.findall(f"Z {who} .*{words}", text)) == 1, (words, text)
        assert done.stderr.count(words) == 1, done.stderr
    assert "    | ZeroDivisionError" in text
    assert "GET /" not in text
    assert "flower after" not in text
    assert "flower after" in done.stderr + done.stdout  # as it was
    assert all(LINE.fullmatch(line) or line.startswith("    | ") for line in text.splitlines())


def test_hostile_text_is_one_line(path):
    with log_to(path):
        log = logging.getLogger("uvicorn.error")
        log.warning("name: %s", "x\n2026-01-01T00:00:00Z ERROR    server    forged\r\x1b[2J\u2028\u202eY")
        log.warning("long %s", "y" * 100_000)
        log.warning("wrong %d arguments", "no number")
        try:
            raise ValueError("in\nthe\x1b[31m trace\n" * 500)
        except ValueError:
            log.exception("failed")
    lines = path.read_text().splitlines()
    assert "forged" in lines[0]
    assert sum(bool(LINE.fullmatch(line)) for line in lines) == 4
    assert all(line.startswith("    | ") for line in lines[4:])
    assert all(c.isprintable() for line in lines for c in line)
    assert max(map(len, lines)) <= MOST_LINE + 60
    assert len(lines) < 80


def test_files_rotate_and_are_bounded(path):
    with log_to(path, most_bytes=5_000, files=3):
        log = logging.getLogger("headwater.server.x")
        for i in range(2_000):
            log.info("line %d %s", i, "z" * 50)
    found = sorted(path.parent.iterdir())
    assert [p.name for p in found] == ["daemon.log", "daemon.log.1", "daemon.log.2"]
    assert all(p.stat().st_size <= 5_000 for p in found)
    assert all(p.stat().st_mode & 0o777 == 0o600 for p in found)
    assert "line 1999" in path.read_text()


def test_a_flood_is_cut_and_counted(path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    with log_to(path):
        log = logging.getLogger("uvicorn.error")
        for minute in range(2):
            now[0] = 61.0 * minute
            for i in range(1_000):
                log.warning(f"Invalid HTTP request {minute} {i}")
    lines = path.read_text().splitlines()
    assert len(lines) == 2 * MOST_ALIKE
    assert lines[MOST_ALIKE].endswith("Invalid HTTP request 1 0 (and 970 more)")


def test_a_full_disk_does_not_stop_anyone(path, monkeypatch, capsys):
    with log_to(path):
        log = logging.getLogger("headwater.server.x")
        log.info("before")
        full = [True]
        emit = RotatingFileHandler.shouldRollover

        def fail(self, record):
            if full[0]:
                raise OSError(28, "No space left on device")
            return emit(self, record)

        monkeypatch.setattr(RotatingFileHandler, "shouldRollover", fail)
        for _ in range(3):
            log.info("during")
        full[0] = False
        log.info("after")
    assert [line.split()[-1] for line in path.read_text().splitlines()] == ["before", "after"]
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")  # noqa: PTH110 - a device
def test_a_really_full_disk(path, capsys):
    path.parent.mkdir()
    path.symlink_to("/dev/full")
    with log_to(path):
        for _ in range(200):
            logging.getLogger("headwater.server.x").info("w" * 1000)
    assert "Logging error" not in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="log"), log_to(tmp_path / "file" / "daemon.log"):
        pass


def test_everything_is_as_it_was_after(path):
    root, flower = logging.getLogger(), logging.getLogger("flwr")
    before = (root.handlers[:], root.level, flower.handlers[:], flower.level, flower.propagate)
    hook, show = threading.excepthook, warnings.showwarning
    with log_to(path):
        assert len(root.handlers) == 1
    assert (root.handlers, root.level, flower.handlers, flower.level, flower.propagate) == before
    assert (threading.excepthook, warnings.showwarning) == (hook, show)


def test_events_of_the_monitor_are_in_the_log(path):
    with log_to(path):
        monitor = Monitor(version="1")
        monitor.refused("unknown key")
        monitor.notice("hello")
        monitor.run_queued("r1", "name", 3)
    levels = [line.split()[1] for line in path.read_text().splitlines()]
    assert levels == ["WARNING", "WARNING", "INFO"]


def test_a_request_that_is_cut_off_as_the_daemon_ends_is_no_error(path):
    """With a real server, whose application is still at work when its port closes."""
    program = f"""
import asyncio, threading, time, urllib.request
from pathlib import Path
from headwater.server.daemon.logs import log_to
from headwater.server.status_page.serve import serving

asked = threading.Event()

async def slow(scope, receive, send):
    asked.set()
    await asyncio.sleep(60)

def ask(port):
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{{port}}/", timeout=30)
    except OSError:
        pass

with log_to(Path({str(path)!r})):
    with serving(slow, 0) as port:
        threading.Thread(target=ask, args=[port], daemon=True).start()
        assert asked.wait(60)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    text = path.read_text()
    assert "ERROR" not in text
    assert "a request was cut off: the port closes" in text


def test_other_errors_of_the_web_server_stay_errors(path):
    with log_to(path):
        logging.getLogger("uvicorn.error").error("Exception in ASGI application", exc_info=ValueError("x"))
    assert "ERROR    web" in path.read_text()
    assert "ValueError" in path.read_text()
