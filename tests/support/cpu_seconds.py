"""What tests cost: the log ends with the tests and files that took the most CPU. It is told, never required.

CPU seconds are those of a test's process and of all that it started, whether ended or not; wall seconds
depend on what else the machine does. A fixture is paid by the test that needs it first.
"""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Generator, Iterator
from os import getpid, sysconf
from pathlib import Path

import pytest

LIMIT_S = 10.0
"""A test above it is named, and a file above three of it."""
_TICKS = sysconf("SC_CLK_TCK")


def _children(pid: int) -> Iterator[int]:
    """Those that run, and theirs."""
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = file.read_text()
        except OSError:  # the thread has ended
            continue
        for child in map(int, found.split()):
            yield child
            yield from _children(child)


def spent() -> float:
    """CPU seconds of this process and of all that it started, so far."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for child in _children(getpid()):
        try:
            fields = Path(f"/proc/{child}/stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        total += sum(map(int, fields[11:15])) / _TICKS  # its own, and those of its ended children
    return total


class CpuSeconds:
    """A plugin of pytest: measures where tests run, and tells where the terminal is."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self.limit_s = limit_s
        self.tests: Counter[str] = Counter()  # seconds by name

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.when == "teardown":
            report.user_properties.append(("cpu_s", round(spent() - self._before, 3)))
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        self._before = spent()
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == "cpu_s" and isinstance(value, float):
                self.tests[report.nodeid] += value

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        files: Counter[str] = Counter()
        for name, seconds in self.tests.items():
            files[name.split("::")[0]] += seconds
        dear = [(n, s) for n, s in files.most_common() if s >= 3 * self.limit_s]
        dear += [(n, s) for n, s in self.tests.most_common() if s >= self.limit_s]
        if dear:
            terminalreporter.section(f"CPU seconds: {files.total():.0f} in all, and of the dearest")
        for name, seconds in dear:
            terminalreporter.write_line(f"{seconds:8.1f}  {name}")
