"""The control port: an organiser's client gets what the organiser says, every method of it."""

from __future__ import annotations

import dataclasses
import math
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import ConfigError, HeadwaterError
from headwater.proto import control_client, control_rows, control_server
from headwater.proto.control import ControlClient
from headwater.proto.v1 import control_pb2 as pb
from headwater.protocol.control import AdapterRow, ClientRow, RunRow, Status, WatchEvent
from tests.proto.control_channel import channel, services
from tests.support.control_certificates import certificates
from tests.support.control_port import ANN, BO, RUN, SECOND

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


NUMBER = st.floats(allow_nan=False)


COUNT = st.integers(-1, 2**50)


KINDS = {"str": TEXT, "int": COUNT, "float": NUMBER, "bool": st.booleans(), "RunState": TEXT}


KINDS |= {"ClientState": TEXT, "float | None": st.none() | NUMBER, "tuple[str, ...]": st.tuples(TEXT, TEXT)}


def anything(kind):
    return st.builds(kind, **{f.name: KINDS[f.type] for f in dataclasses.fields(kind)})


EVENTS = st.builds(
    WatchEvent, COUNT, NUMBER, TEXT, TEXT, TEXT, st.dictionaries(TEXT, TEXT | COUNT | NUMBER, max_size=3)
)


STATUSES = st.builds(
    Status, TEXT, NUMBER, COUNT, COUNT, st.tuples(anything(RunRow)), st.tuples(anything(ClientRow)),
    st.dictionaries(TEXT, COUNT, max_size=3), st.tuples(EVENTS),
)  # fmt: skip


@given(STATUSES, anything(AdapterRow))
def test_rows_survive(status, adapter):
    message = pb.Status.FromString(control_rows.status_to_message(status).SerializeToString())
    assert control_rows.status_from_message(message) == status
    message = pb.AdapterRow.FromString(control_rows.adapter_to_message(adapter).SerializeToString())
    assert control_rows.adapter_from_message(message) == adapter


@pytest.mark.parametrize("kind", [Status, RunRow, ClientRow, AdapterRow, WatchEvent])
def test_schema_and_rows_have_the_same_fields(kind):
    written = [f.name for f in pb.DESCRIPTOR.message_types_by_name[kind.__name__].fields]
    assert written == [f.name for f in dataclasses.fields(kind)]


def test_every_method_is_answered(organiser, client, tmp_path):
    status = client.status()
    assert status == organiser.status() or math.isnan(status.runs[1].value)
    assert status.runs[0] == RUN
    assert status.clients == (ANN, BO)
    assert status.refused == {"unknown key": 12}
    assert status.errors[0].data == {"free": 0}
    organiser.calls.clear()
    assert client.submit("a = 1", tmp_path).state == "queued"
    assert client.pause("r1").note == "pauses after round 4"
    assert client.resume("r1").state == "running"
    assert client.resume("r1", tmp_path).state == "running"
    assert client.stop("r1").state == "stopped"
    changed = client.change("r1", {"rounds": "9", "deadline_s": "60"})
    assert (changed.run, changed.note) == ("r1", "deadline_s 120 → 600, at once")
    assert changed.warnings == ("min_clients is 5, but 2 devices are enrolled",)
    assert client.accept("headwater-enrol-v1:x") == BO
    assert client.revoke("ann").state == "revoked"
    assert [r.version for r in client.adapters("r1")] == [1, 2]
    assert client.adapters()[1] == SECOND
    assert b"".join(client.export("r1", 2)) == b"piece"
    assert client.rollback("r1", 1).note == "rollback to version 1"
    assert client.forget("r1", "ann").note == "without ann"
    assert client.unpin("r1", 2) == SECOND
    assert organiser.calls == [
        ("submit", "a = 1", tmp_path), ("pause", "r1"), ("resume", "r1"), ("resume", "r1", tmp_path),
        ("stop", "r1"),
        ("change", "r1", {"deadline_s": "60", "rounds": "9"}), ("accept", "headwater-enrol-v1:x"),
        ("revoke", "ann"), ("adapters", "r1"), ("adapters", ""), ("export", "r1", 2), ("rollback", "r1", 1),
        ("forget", "r1", "ann"), ("unpin", "r1", 2),
    ]  # fmt: skip


def test_the_tests_know_every_method():
    """So that a new one is tried above and below."""
    known = set(dir(ControlClient)) - set(dir(object)) - {"close", "__enter__", "__exit__"}
    methods = {m.name.lower() for m in control_server.SERVICE.methods}
    assert {m.removeprefix("get").removeprefix("list") for m in methods} == {
        n for n in known if not n.startswith("_")
    }


def test_the_page_describes_every_method_and_its_fields():
    page = (Path(__file__).parents[2] / "docs/reference/control-api.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^- `(\w+)` (\(.*?\) → .*?): ", page, re.MULTILINE))
    assert set(rows) == {m.name for m in control_server.SERVICE.methods}
    for method in control_server.SERVICE.methods:
        request, answer = rows[method.name].split(" → ")
        assert re.findall(r"`(\w+)`", request) == [f.name for f in method.input_type.fields]
        assert f"`{method.output_type.name}`" in answer
        assert ("stream" in answer) == method.server_streaming


def test_large_exports_come_in_pieces(organiser, client):
    organiser.archive = [b"x" * (5 << 20), b"", b"y"]
    pieces = list(client.export())
    assert b"".join(pieces) == b"".join(organiser.archive)
    assert max(map(len, pieces)) == 1 << 20


def test_a_large_list_of_adapters(organiser, client, monkeypatch):
    rows = tuple(
        dataclasses.replace(SECOND, version=v, cohort=tuple(f"client-{i:05}" for i in range(500)))
        for v in range(1, 400)
    )
    monkeypatch.setattr(organiser, "adapters", lambda run: rows)
    assert client.adapters() == rows


def test_a_submission_is_at_most_one_mebibyte(organiser, client, tmp_path, monkeypatch):
    assert client.submit("x" * (1 << 20), tmp_path).run == "r1"
    with pytest.raises(ConfigError, match="at most 1 MiB"):
        client.submit("x" * (1 << 20) + "y", tmp_path)
    calls = len(organiser.calls)
    monkeypatch.setattr(control_client, "MAX_TOML", 1 << 30)
    with pytest.raises(HeadwaterError, match="RESOURCE_EXHAUSTED"):
        client.submit("x" * (2 << 20), tmp_path)
    assert len(organiser.calls) == calls


def test_a_submission_says_where_its_paths_start(client):
    with pytest.raises(ConfigError, match="an absolute path"):
        client.submit("", Path("here"))


def test_what_no_message_can_hold_is_refused_here(organiser, client):
    for call in (lambda: client.rollback("r", 2**70), lambda: client.pause("\udc80")):
        with pytest.raises(ConfigError):
            call()
    assert organiser.calls == []


def test_health_and_reflection(server):
    with channel(server.address, certificates().organiser) as open_channel:
        for service in ("", "headwater.v1.Control"):
            assert health(open_channel, service).status == health_pb2.HealthCheckResponse.SERVING
        assert "headwater.v1.Control" in services(open_channel)


def test_watching_the_health_holds_no_thread(server):
    with channel(server.address, certificates().organiser) as open_channel:
        watch = health_watch(open_channel)
        watches = [watch(health_pb2.HealthCheckRequest()) for _ in range(2 * control_server.THREADS)]
        for each in watches:
            assert next(each).status == health_pb2.HealthCheckResponse.SERVING


def test_health_of_what_is_not_served(server):
    with channel(server.address, certificates().organiser) as open_channel:
        with pytest.raises(grpc.RpcError) as refused:
            health(open_channel, "elsewhere")
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND
        watch = health_watch(open_channel)
        answer = next(watch(health_pb2.HealthCheckRequest(service="elsewhere")))
        assert answer.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def test_watchers_of_the_health_that_leave_hold_up_nobody(server):
    """Each leaves while others come: the port goes on answering."""

    def come_and_go():
        for _ in range(20):
            with channel(server.address, certificates().organiser) as open_channel:
                watch = health_watch(open_channel)
                for each in [watch(health_pb2.HealthCheckRequest()) for _ in range(8)]:
                    assert next(each).status == health_pb2.HealthCheckResponse.SERVING

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(come_and_go) for _ in range(4)]:
            done.result(100)
    with channel(server.address, certificates().organiser) as open_channel:
        assert health(open_channel, "").status == health_pb2.HealthCheckResponse.SERVING


def health_watch(open_channel):
    return open_channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        health_pb2.HealthCheckRequest.SerializeToString,
        health_pb2.HealthCheckResponse.FromString,
    )


def health(open_channel, service):
    call = open_channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        health_pb2.HealthCheckRequest.SerializeToString,
        health_pb2.HealthCheckResponse.FromString,
    )
    return call(health_pb2.HealthCheckRequest(service=service), timeout=60)
