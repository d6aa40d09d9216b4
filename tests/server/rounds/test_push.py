"""Messages that Flower cannot push are failures by name, not a wait without end."""

from __future__ import annotations

import pytest

from headwater.flower import assume_task_identity
from headwater.protocol.messages import ProfileRequest
from headwater.server.clients.exchange import Exchange


class Refusing:
    """A grid that pushes nothing: Flower answers None per message, or no ids at all (HTTP 413)."""

    def __init__(self, ids):
        self.ids = ids

    def push_messages(self, messages):
        assert len(list(messages)) == 2
        return self.ids

    def pull_messages(self, message_ids):
        return []


@pytest.mark.parametrize(
    ("ids", "lost"), [([None, "m1"], {"a"}), ([None, None], {"a", "b"}), ([], {"a", "b"})]
)
def test_what_could_not_be_pushed_is_named(ids, lost):
    assume_task_identity(run_id=1, node_id=1)
    exchange = Exchange(Refusing(ids), {"a": 2, "b": 3})
    exchange.send([("a", ProfileRequest("r")), ("b", ProfileRequest("r"))], 0)
    assert exchange.waiting(ProfileRequest, 0)
    found = list(exchange.poll())
    assert {i.address for i in found} == lost
    assert all("could not push" in i.error for i in found)
    assert exchange.waiting(ProfileRequest, 0) == (len(lost) < 2)
