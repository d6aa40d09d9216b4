"""A control port in front of an organiser that only remembers: for tests of the port and the command line."""

from __future__ import annotations

import math
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest

from headwater.errors import ConfigError, StorageError
from headwater.proto.control import ControlClient, serve
from headwater.protocol.control import AdapterRow, ClientRow, RunRow, Status, WatchEvent
from tests.support.control_certificates import certificates

RUN = RunRow(
    run="r1", name="sentiment", state="running", reason="", round=3, rounds=20, accepted=2, asked=4,
    metric="accuracy", value=0.8125, best_round=2, best_value=0.825, bytes_up=1_234_567, bytes_down=2_500,
    submitted=1_700_000_000.25, seconds_per_round=12.5, privacy="ε 1.234 of 4 at δ 1e-05, 12 more rounds",
)  # fmt: skip
PAUSED = replace(RUN, run="r0", name="glosses", state="paused", value=math.nan, seconds_per_round=math.nan)
ANN = ClientRow(
    client="ann", state="online", fingerprint="ab12", seen_s_ago=1.5, doing="train 4", examples=120,
    accepted_rounds=3, failed_rounds=0, bytes_up=1_000_000, bytes_down=2_000, version="0.1.0", last_error="",
)  # fmt: skip
BO = replace(ANN, client="bo", state="offline", seen_s_ago=None, doing="idle", last_error="no answer in 60 s")
FIRST = AdapterRow(
    run="r1", version=1, round=0, parent=0, sha256="1" * 64, config_sha256="2" * 64, cohort=(),
    metric="accuracy", value=math.nan, best=False, kept=True, created=1_700_000_000.0, note="initial",
)  # fmt: skip
SECOND = replace(
    FIRST, version=2, round=1, parent=1, cohort=("ann", "bo"), value=0.75, best=True, note="round 1"
)


class FakeOrganiser:
    """Answers from constants, notes every call in ``calls``; ``tell`` makes an event."""

    def __init__(self):
        self.calls = []
        self.runs = (RUN, PAUSED)
        self.archive = [b"piece"]
        self.error = None
        self.watching = 0
        self._events = []
        self._news = threading.Condition()

    def tell(self, text, kind="notice", **data):
        with self._news:
            seq = len(self._events) + 1
            self._events.append(WatchEvent(seq, 1_700_000_000.0 + seq, kind, "r1", text, data))
            self._news.notify_all()

    def status(self):
        self._note("status")
        events = (WatchEvent(7, 1_700_000_000.0, "error", "r1", "disk is full", {"free": 0}),)
        return Status(
            "0.1.0", 1_700_000_000.0, 123_000_000, 390, self.runs, (ANN, BO), {"unknown key": 12}, events
        )

    def watch(self, after=0, ended=lambda: False):
        self._note("watch", after)
        with self._news:
            seen = len(self._events) if after == 0 else max(after, 0)
            self.watching += 1
        try:
            while not ended():
                with self._news:
                    if len(self._events) <= seen:
                        self._news.wait(0.05)
                    new = self._events[seen:]
                for event in new:
                    seen = event.seq
                    yield event
        finally:
            with self._news:
                self.watching -= 1

    def submit(self, toml, folder):
        self._note("submit", toml, folder)
        return replace(RUN, state="queued", round=0)

    def pause(self, run):
        self._note("pause", run)
        return replace(RUN, run=run or "r1", state="running", note="pauses after round 4")

    def resume(self, run, folder=None):
        self._note("resume", run, *[f for f in [folder] if f is not None])
        return replace(RUN, run=run or "r1")

    def stop(self, run):
        self._note("stop", run)
        return replace(RUN, run=run or "r1", state="stopped", reason="by the organiser")

    def change(self, run, changes):
        self._note("change", run, changes)
        warning = "min_clients is 5, but 2 devices are enrolled"
        return replace(RUN, run=run or "r1", note="deadline_s 120 → 600, at once", warnings=(warning,))

    def accept(self, request):
        self._note("accept", request)
        return BO

    def revoke(self, client):
        self._note("revoke", client)
        return replace(ANN, client=client, state="revoked")

    def adapters(self, run=""):
        self._note("adapters", run)
        return (FIRST, SECOND)

    def export(self, run="", version=0):
        self._note("export", run, version)
        yield from self.archive

    def rollback(self, run, version):
        self._note("rollback", run, version)
        return replace(SECOND, version=3, parent=version, note=f"rollback to version {version}")

    def forget(self, run, client):
        self._note("forget", run, client)
        return replace(SECOND, note=f"without {client}")

    def unpin(self, run, version):
        self._note("unpin", run, version)
        return replace(SECOND, version=version)

    def _note(self, *call):
        self.calls.append(call)
        if self.error is not None:
            raise self.error


@contextmanager
def serving(organiser, address="127.0.0.1:0"):
    """A control port in front of ``organiser``."""
    known = certificates()
    server = serve(
        organiser, address, server_cert=known.server.cert, server_key=known.server.key,
        ca=known.authority.pem,
    )  # fmt: skip
    try:
        yield server
    finally:
        server.stop(0.5)


def client_of(address, pair=None):
    """An organiser's client of the control port at ``address``."""
    known = certificates()
    pair = pair or known.organiser
    return ControlClient(address, known.authority.pem, pair.cert, pair.key)


def write_folder(folder, address):
    """A daemon's folder, as far as its organiser's commands need it."""
    secrets = write_identity(folder / "secrets")
    secrets.chmod(0o700)
    (folder / "server.toml").write_text(
        f'name = "test"\n[listen]\nnames = ["localhost"]\ncontrol = "{address}"\n', encoding="utf-8"
    )
    return folder


def write_identity(folder):
    """An organiser's identity, for a daemon elsewhere."""
    known = certificates()
    folder.mkdir(parents=True)
    for name, data in {
        "ca.pem": known.authority.pem, "organiser.pem": known.organiser.cert,
        "organiser.key": known.organiser.key,
    }.items():  # fmt: skip
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o600)
    return folder


def until(condition, seconds=60.0):
    """Wait for something that happens in another thread."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


FAILURES = (
    ConfigError("run r9", expected="a run of this daemon", got="none", hint="See: headwater server status"),
    StorageError("writing ü", expected="room", got="disk full – " + "x" * 3000),
)


@pytest.fixture
def organiser():
    return FakeOrganiser()


@pytest.fixture
def server(organiser):
    with serving(organiser) as server:
        yield server


@pytest.fixture
def client(server):
    with client_of(server.address) as client:
        yield client
