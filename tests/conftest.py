"""No test without a limit of time: 120 s (pyproject.toml), more for those that disturb processes."""

from __future__ import annotations

import pytest

LIMITS_S = {"slow": 3600, "faults": 900}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        own = [limit for mark, limit in LIMITS_S.items() if item.get_closest_marker(mark)]
        if own and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(max(own)))
