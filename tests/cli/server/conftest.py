"""An organiser that only remembers, its control port and a daemon's folder: fixtures of these tests."""

from tests.cli.server.folders import folder
from tests.support.control_port import organiser, server

__all__ = ["folder", "organiser", "server"]
