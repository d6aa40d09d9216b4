"""The state of a round at the server's end: stored once, sealed without the lock."""

from __future__ import annotations

import threading
import time

from flwr.app import Message
from flwr.app.message.arraychunk import ArrayChunk

from headwater.flower import pack, unpack
from headwater.flower.message_objects import CHUNK_BYTES, open_objects
from tests.flower_layer.devices import Device, blocks, send


def test_the_state_of_a_round_is_stored_and_hashed_once(link):
    devices = [Device(link, name) for name in "abc"]
    state = blocks(3)
    messages = [Message(pack(envelope=b"%d" % d.node, state=state), d.node, "train") for d in devices]
    ids = list(link.grid.push_messages(messages))
    held = sum(len(entry.content) for entry in link._link_state.object_store.store.values())
    assert held < 3.02 * CHUNK_BYTES
    link.grid.cancel(ids[:1])
    _, objects = devices[1].fetch()
    assert open_objects(ids[1], objects, max_bytes=10**8)["state"] == state
    link.grid.cancel(ids)
    assert len(link._link_state.object_store) == 0


def test_the_lock_is_free_while_a_state_is_copied(link, device, monkeypatch):
    """Every request of every client needs it, heartbeats too; 300 MB took seconds."""
    free, deflate = [], ArrayChunk.deflate

    def watched(chunk):
        def look():
            if link._link_state.lock.acquire(blocking=False):
                link._link_state.lock.release()
                free.append(True)
            else:
                free.append(False)

        thread = threading.Thread(target=look)  # the lock is reentrant: another one must ask
        thread.start()
        thread.join()
        return deflate(chunk)

    monkeypatch.setattr(ArrayChunk, "deflate", watched)
    send(link, device.node, envelope=b"e", state=blocks(3))
    assert len(free) >= 4
    assert all(free)


def test_a_state_that_leaves_while_another_message_with_it_is_sealed(link, device, monkeypatch):
    other, state, deflate = Device(link, "b"), blocks(3), ArrayChunk.deflate
    first = send(link, other.node, envelope=b"first", state=state)

    def meanwhile(chunk):
        link.grid.cancel([first])
        return deflate(chunk)

    with monkeypatch.context() as patch:
        patch.setattr(ArrayChunk, "deflate", meanwhile)
        second = send(link, device.node, envelope=b"second", state=state)
    _, objects = device.fetch()
    assert open_objects(second, objects, max_bytes=10**8) == {"envelope": b"second", "state": state}


def test_a_client_that_leaves_while_its_message_is_sealed(link, device, monkeypatch):
    deflate = ArrayChunk.deflate

    def meanwhile(chunk):
        link.unregister("a")
        return deflate(chunk)

    monkeypatch.setattr(ArrayChunk, "deflate", meanwhile)
    assert send(link, device.node, envelope=b"e", state=blocks(1)) is None
    assert len(link._link_state.object_store) == 0


def test_equal_messages_are_two(link, device):
    ids = [send(link, device.node, envelope=b"e", state=b"s") for _ in range(20)]
    assert len(set(ids)) == 20


def test_send_and_receive(link, device):
    def answer():
        while (found := device.fetch()) is None:
            time.sleep(0.01)
        device.answer(found[0], b"answer")

    thread = threading.Thread(target=answer)
    thread.start()
    message = Message(pack(envelope=b"e", state=b""), device.node, "train")
    (reply,) = link.grid.send_and_receive([message], timeout=60)
    thread.join()
    assert unpack(reply.content, "reply") == (b"answer",)
    assert list(link.grid.send_and_receive([message], timeout=0.1)) == []
