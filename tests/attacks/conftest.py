"""One daemon for all attacks that leave it as it was."""

from __future__ import annotations

import pytest

from tests.attacks.grounds import Grounds


@pytest.fixture(scope="session")
def grounds(tmp_path_factory):
    with Grounds.open(tmp_path_factory.mktemp("attacked")) as grounds:
        yield grounds


@pytest.fixture
def unmoved(grounds):
    """Whatever the test does, the daemon's state stays: only refusals are counted."""
    before = grounds.facts()
    yield
    assert grounds.facts() == before
