"""An organiser that only remembers and its control port: fixtures of these tests."""

from tests.support.control_port import organiser, server

__all__ = ["organiser", "server"]
