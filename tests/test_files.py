"""Appending to a file: all of it or nothing."""

from __future__ import annotations

import contextlib
import resource

import pytest

from headwater.files import append_whole


@contextlib.contextmanager
def no_file_beyond(size):
    """As on a full disk: a write is cut short there, and the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_it_is_added_at_the_end(tmp_path):
    append_whole(tmp_path / "f", b"ab")
    append_whole(tmp_path / "f", b"c")
    assert (tmp_path / "f").read_bytes() == b"abc"


def test_what_a_full_disk_took_of_it_is_taken_away(tmp_path):
    append_whole(tmp_path / "f", b"abc")
    with no_file_beyond(10), pytest.raises(OSError, match="too large"):
        append_whole(tmp_path / "f", b"d" * 100)
    assert (tmp_path / "f").read_bytes() == b"abc"
