"""Watching over the control port: nothing twice, nothing missing, no thread left behind."""

from __future__ import annotations

import socket
import threading

import pytest

from headwater.errors import ConnectionLost, Refused
from headwater.proto import control_client, control_server
from tests.support.control_port import RUN, FakeOrganiser, client_of, serving, until


def test_events_from_now_on_or_all(organiser, client):
    organiser.tell("early")
    everything = client.watch(-1)
    assert next(everything).text == "early"
    new = client.watch()
    told = []
    thread = threading.Thread(target=lambda: told.append(next(new)))
    thread.start()
    until(lambda: organiser.watching == 2)
    organiser.tell("late", "round", round=2, value=0.5, metric="accuracy")
    thread.join(60)
    assert (told[0].seq, told[0].kind, told[0].text) == (2, "round", "late")
    assert told[0].data == {"round": 2, "value": 0.5, "metric": "accuracy"}
    assert next(everything).text == "late"
    assert next(client.watch(1)).text == "late"


def test_a_watcher_that_leaves_leaves_no_thread_behind(organiser, server):
    """Whether it says goodbye or its process is gone; though nothing happens meanwhile."""
    organiser.tell("one")
    for _ in range(3 * control_server.MOST_STREAMS):  # each would hold a stream, and then none is left
        with client_of(server.address) as client:
            assert next(client.watch(-1)).text == "one"
    until(lambda: organiser.watching == 0)


def test_watchers_leave_room_for_others(organiser, server):
    organiser.tell("one")
    with client_of(server.address) as client:
        watches = [client.watch(-1) for _ in range(control_server.MOST_STREAMS)]
        for watch in watches:
            next(watch)
        with pytest.raises(Refused, match="at most 24"):
            next(client.watch(-1))
        assert client.status().runs[0] == RUN
        watches[0].close()
        until(lambda: organiser.watching < len(watches))
        assert next(client.watch(-1)).text == "one"


def test_the_server_stops_under_its_watchers(organiser):
    before = threading.active_count()
    organiser.tell("one")
    with serving(organiser) as server, client_of(server.address) as client:
        watch = client.watch(-1)
        next(watch)
        server.stop(600)  # longer than a test may take: the watchers do not hold it up
    assert organiser.watching == 0
    watch.close()
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("control")])
    assert threading.active_count() <= before + 2  # gRPC's own pollers


def test_a_watch_goes_on_after_a_restart(organiser):
    gaps = []
    with serving(organiser) as server:
        address = server.address
        client = client_of(address)
        organiser.tell("before")
        watch = client.watch(-1, on_gap=lambda error, wait_s: gaps.append((error, wait_s)))
        assert next(watch).text == "before"
    told = []
    thread = threading.Thread(target=lambda: told.extend(next(watch) for _ in range(3)))
    thread.start()
    until(lambda: len(gaps) >= 2)
    restarted = FakeOrganiser()  # another process: its events count from 1 again
    for text in ("first", "second"):
        restarted.tell(text)
    with serving(restarted, address):
        until(lambda: len(told) == 2)
        restarted.tell("third")
        thread.join(60)
    client.close()
    assert [e.text for e in told] == ["first", "second", "third"]
    assert all(isinstance(e, ConnectionLost) and 0 < w <= control_client.LONGEST_WAIT_S for e, w in gaps)


def test_a_watch_goes_on_where_it_was_cut(organiser):
    """The connection is lost, the daemon is not: nothing comes twice, nothing is missing."""
    with serving(organiser) as server, _Relay(server.address) as relay, client_of(relay.address) as client:
        organiser.tell("one")
        organiser.tell("two")
        watch = client.watch(-1)
        assert [next(watch).seq, next(watch).seq] == [1, 2]
        relay.cut()
        organiser.tell("three")
        assert next(watch).text == "three"


def test_a_watch_ends_when_asked(organiser, client):
    organiser.tell("one")
    for silent in (True, False):
        done = threading.Event()
        watch = client.watch(-1, done.is_set)
        next(watch)
        asked = threading.Timer(0.1 if silent else 0, done.set)
        asked.start()
        if not silent:
            asked.join()
            organiser.tell("two")
        assert list(watch) == []
        until(lambda: organiser.watching == 0)


class _Relay:
    """A TCP relay whose connections can be cut."""

    def __init__(self, target):
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._listener.close()
        self.cut()

    def cut(self):
        for each in self._open:
            each.close() if each.fileno() < 0 else each.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def _accept(self):
        host, port = self._target.split(":")
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection((host, int(port)))
            self._open += [near, far]
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=pair, daemon=True).start()

    @staticmethod
    def _copy(source, target):
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
