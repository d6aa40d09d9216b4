"""An organiser that only remembers, its control port, and a client of it: fixtures of these tests."""

from tests.support.control_port import client, organiser, server

__all__ = ["client", "organiser", "server"]
