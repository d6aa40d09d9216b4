"""The package whose tracker remembers what it was told."""

from __future__ import annotations

import pytest

from headwater.server.trackers import tracking
from tests.support.plugins import installed_in, write_package
from tests.support.trackers import POINTS, SOURCE


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """The installed package's module; a busy machine gives its thread time."""
    monkeypatch.setattr(tracking, "DRAIN_S", 300.0)
    write_package(tmp_path / "site", "stranger_tracker", SOURCE, POINTS)
    with installed_in(tmp_path / "site"):
        import stranger_tracker

        yield stranger_tracker
