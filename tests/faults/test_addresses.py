"""A server that is reached over IPv6 only."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.faults.fleet import Fleet, Trial, vector

pytestmark = pytest.mark.faults


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.fixture
def six(tmp_path) -> Iterator[Fleet]:
    if not has_ipv6():
        pytest.skip("no IPv6 loopback here")
    fleet = Fleet(tmp_path / "fleet", host="[::1]")
    fleet.start()
    yield fleet
    fleet.close()


def test_ipv6_from_end_to_end(six, note, outcome):
    """Agents, commands and certificate by the address ``[::1]``; a device comes back, the daemon too."""
    trial = Trial(six, vector(8))
    trial.reach(2)
    six.agents[0].kill()
    six.restart(six.agents[0])
    trial.reach(4)
    six.daemon.kill()
    six.restart_daemon()
    note("the server listens on [::1] only; kill -9 of an agent, and of the daemon", times=2)
    outcome(trial.ends_right())
