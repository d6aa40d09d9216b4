"""No test without a limit of time: 120 s (pyproject.toml), more for those that disturb processes.

It is the only one: Hypothesis' own (200 ms for an example, seconds for drawing some) depend on what else the
machine does.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

LIMITS_S = {"slow": 3600, "faults": 900}

settings.register_profile("headwater", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("headwater")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        own = [limit for mark, limit in LIMITS_S.items() if item.get_closest_marker(mark)]
        if own and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(max(own)))
