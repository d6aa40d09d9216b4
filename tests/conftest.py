"""Every test has a limit of time, and torch has one thread.

A test may take 120 s (pyproject.toml), those that disturb processes more. It is the only limit: Hypothesis'
own (200 ms for an example, seconds for drawing some) depend on what else the machine does. A law is tried on
25 examples a run, new ones each time (``--hypothesis-profile thorough``: 500); a test that needs more to see
what it looks for says so itself.

Models of these tests are too small for two threads: the second waits, and burns a core while it does (a row
of the table of models took 15 to 27 CPU seconds instead of 5). Tests of what must not depend on the number of
threads set it themselves.

The log ends with the CPU seconds of what is dear: tests/support/cpu_seconds.py.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from headwater.process_memory import importing
from tests.support.cpu_seconds import CpuSeconds

LIMITS_S = {"slow": 3600, "faults": 900}

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded, here and by what a test starts
# some tests fork; gRPC 1.85 would start its threads again in the child, and now and then fail there
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
for name, examples in (("headwater", 25), ("thorough", 500)):
    settings.register_profile(
        name, max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
settings.load_profile("headwater")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(CpuSeconds())


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    with importing():  # torch, transformers and hundreds of files of tests
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        own = [limit for mark, limit in LIMITS_S.items() if item.get_closest_marker(mark)]
        if own and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(max(own)))
