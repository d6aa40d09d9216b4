"""A client of seeds' methods and a server's state, made once a file."""

from tests.client.execution.seed_requests import runtime, seeded_state

__all__ = ["runtime", "seeded_state"]
