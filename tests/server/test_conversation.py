"""What goes wrong while a reply is folded is the client's failure, unless it is this machine's disk."""

from __future__ import annotations

import time

import pytest

from headwater.errors import StorageError, UpdateRejected
from headwater.protocol.coordinator import Begin, Coordinator
from headwater.protocol.messages import TrainRequest
from headwater.server.conversation import Conversation
from headwater.server.events import ClientFailed
from headwater.server.exchange import Incoming
from headwater.server.watch import Watch


class One:
    """Members of which one has answered."""

    def ready(self):
        return {"ann": None}

    profiles = ready

    def poll(self, *kinds):
        yield Incoming("ann", TrainRequest, 1, b"", "", 0)


def talk(error):
    coordinator, told = Coordinator(1), []

    def fold(incoming):
        raise error

    watch = Watch(told.append, lambda: False, time.monotonic, None, lambda: False)
    begun = coordinator.receive(Begin(1, ("ann",), 0.0))
    conversation = Conversation(
        coordinator, One(), watch, 1, ("ann",), ("ann",), 1, ask=lambda names: None, fold=fold
    )
    conversation.run(begun)
    return [event for event in told if isinstance(event, ClientFailed)]


def test_a_bad_reply_is_the_clients_failure():
    (failed,) = talk(UpdateRejected("client ann", expected="an update", got="noise"))
    assert failed.client == "ann"


def test_a_full_disk_is_not():
    with pytest.raises(StorageError):
        talk(StorageError("writing spool", expected="room", got="No space left on device"))
