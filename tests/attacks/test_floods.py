"""Strangers who send much, or hold what they can: the daemon stays small, and an agent gets through."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

from tests.attacks.grounds import HONEST, UNKNOWN, Device, Grounds, http_request, memory, open_files

PUSH = "/v1/fleet/push-object"
GB = 10**9


def pour(connection, frame: bytes, seconds: float) -> int:
    """Send until the server hangs up; the bytes that it took, or that its buffers did."""
    sent, until = 0, time.monotonic() + seconds
    with contextlib.suppress(OSError):
        while sent < GB and time.monotonic() < until:
            connection.sendall(frame)
            sent += len(frame)
    return sent


def test_a_gigabyte_without_a_key(grounds, unmoved):
    zeros = bytes(2**16)
    heads = {
        "no key": http_request("POST", PUSH, {"content-length": str(GB)}),
        "chunked": http_request("POST", PUSH, {"transfer-encoding": "chunked"}),
        "unknown": grounds.request(UNKNOWN, PUSH, b"x", late_content_length=str(GB)),
        "an endless head": b"POST / HTTP/1.1\r\nx: ",
        "no TLS": b"",
    }
    with grounds.tls() as warm_up:
        pour(warm_up, heads["no key"], 1)
    before = memory(grounds.pid, reset=True)[0]
    for name, head in heads.items():
        frame = b"10000\r\n" + zeros + b"\r\n" if name == "chunked" else zeros
        opened = grounds.tcp() if name == "no TLS" else grounds.tls()
        with opened as connection:
            connection.sendall(head)
            pour(connection, frame, 5)
    grown = memory(grounds.pid)[1] - before
    print("GROWN", grown)
    assert grown < 20 * 1024, f"{grown} KiB"


def hold(
    grounds: Grounds, stack: contextlib.ExitStack, count: int, full: threading.Event, stop: threading.Event
) -> None:
    """Open ``count`` connections of three kinds, and keep what the server lets live."""
    kinds = (grounds.tcp, grounds.tls, grounds.tls)
    held = []
    for i in range(count):
        if stop.is_set():
            return
        with contextlib.suppress(OSError):
            one = stack.enter_context(kinds[i % 3](timeout=5))
            if i % 3 == 1:
                one.sendall(b"POST /v1/fleet/push-object HT")  # a head that will not end
            held.append(one)
    full.set()
    while not stop.wait(0.2):
        for one in held[1::3]:
            with contextlib.suppress(OSError):
                one.send(b"T")


def crowded_round(grounds: Grounds, folder, count: int, rounds: int) -> tuple[int, int]:
    """(KiB by which the daemon grew, most open files) while rounds end in a crowd of ``count``."""
    # a run before: what a first run loads is not the crowd's doing
    honest = [Device(grounds, name, folder) for name in HONEST]
    full, stop = threading.Event(), threading.Event()
    with honest[0].working(), honest[1].working(), contextlib.ExitStack() as stack:
        grounds.finish(grounds.network.submit(grounds.federation(1)), 90)
        before = memory(grounds.pid, reset=True)[0]
        crowd = threading.Thread(target=hold, args=(grounds, stack, count, full, stop), daemon=True)
        crowd.start()
        files = 0
        run = grounds.network.submit(grounds.federation(rounds))
        for _ in grounds.network.watch(run, 180):
            files = max(files, open_files(grounds.pid))
        late = Device(grounds, HONEST[0], folder)  # one that has no connection yet gets in, too
        late.connection.activate()
        late.connection.close()
        assert full.wait(120)
        files = max(files, open_files(grounds.pid))
        grown = memory(grounds.pid)[1] - before
        stop.set()
        crowd.join(60)
    grounds.finish(run)
    return grown, files


def test_rounds_end_in_a_crowd(grounds, tmp_path):
    grown, files = crowded_round(grounds, tmp_path, 400, 3)
    print("CROWD", grown, files)
    assert files < 400
    assert grown < 100 * 1024, f"{grown} KiB"


@pytest.mark.slow
def test_rounds_end_in_a_crowd_of_thousands(grounds, tmp_path):
    grown, files = crowded_round(grounds, tmp_path, 3000, 100)
    print("CROWD", grown, files)
    assert files < 400
    assert grown < 100 * 1024, f"{grown} KiB"
