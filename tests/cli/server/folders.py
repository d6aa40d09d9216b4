"""A daemon's folder for its organiser's commands, and what stands in it."""

from __future__ import annotations

import io
import tarfile

import pytest

from tests.support.control_port import write_folder
from tests.support.federation_text import federation_text

NOW = 1_700_003_600.0
HOSTILE = "[red]x[/red] :smile:\x1b[2J\x07\nann  online  \u202egood"
FEDERATION = federation_text()


@pytest.fixture
def folder(server, tmp_path):
    return write_folder(tmp_path / "srv", server.address)


def tar_of(*members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            else:
                member.type, member.linkname = content
                tar.addfile(member)
    return stream.getvalue()
