"""The control port: an organiser's client gets what the organiser says; nobody else gets a word."""

from __future__ import annotations

import dataclasses
import math
import re
import socket
import ssl
import threading
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import given
from hypothesis import strategies as st

from headwater import errors
from headwater.errors import ConfigError, ConnectionLost, HeadwaterError, Refused, StorageError
from headwater.proto import control_client, control_rows, control_server
from headwater.proto.control import ControlClient, serve
from headwater.proto.control_errors import ANSWERS
from headwater.proto.v1 import control_pb2 as pb
from headwater.protocol.control import AdapterRow, ClientRow, RunRow, Status, WatchEvent
from headwater.security.certificates import Authority
from tests.support.control_certificates import certificates
from tests.support.control_port import (
    ANN,
    BO,
    FAILURES,
    FIRST,
    RUN,
    SECOND,
    FakeOrganiser,
    client_of,
    serving,
    until,
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


def channel(address, pair=None, ca=None):
    known = certificates()
    pair = (pair.key, pair.cert) if pair else ()
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(ca or known.authority.pem, *pair))


# --- rows -----------------------------------------------------------------------------------------

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


# --- an organiser ---------------------------------------------------------------------------------


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
    assert client.unpin("r1", 2) == SECOND
    assert organiser.calls == [
        ("submit", "a = 1", tmp_path), ("pause", "r1"), ("resume", "r1"), ("resume", "r1", tmp_path),
        ("stop", "r1"),
        ("change", "r1", {"deadline_s": "60", "rounds": "9"}), ("accept", "headwater-enrol-v1:x"),
        ("revoke", "ann"), ("adapters", "r1"), ("adapters", ""), ("export", "r1", 2), ("rollback", "r1", 1),
        ("unpin", "r1", 2),
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
        watch = open_channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            health_pb2.HealthCheckRequest.SerializeToString,
            health_pb2.HealthCheckResponse.FromString,
        )
        watches = [watch(health_pb2.HealthCheckRequest()) for _ in range(2 * control_server.THREADS)]
        for each in watches:
            assert next(each).status == health_pb2.HealthCheckResponse.SERVING


def health(open_channel, service):
    call = open_channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        health_pb2.HealthCheckRequest.SerializeToString,
        health_pb2.HealthCheckResponse.FromString,
    )
    return call(health_pb2.HealthCheckRequest(service=service), timeout=60)


def services(open_channel):
    call = open_channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    answers = call(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=60)
    return [s.name for s in next(answers).list_services_response.service]


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", FAILURES)
def test_errors_arrive_as_what_they_were(organiser, client, failure):
    organiser.error = failure
    for call in (client.status, client.adapters, lambda: list(client.export()), lambda: next(client.watch())):
        with pytest.raises(type(failure)) as caught:
            call()
        for answer in ANSWERS:
            told, meant = getattr(caught.value, answer), getattr(failure, answer)
            assert told == meant or (len(meant) > 1000 and told == meant.encode()[:997].decode() + "…")


def test_every_error_of_the_tree_arrives(organiser, client):
    kinds = {k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, HeadwaterError)}
    assert len(kinds) > 10
    for kind in kinds:
        organiser.error = kind("who", expected="this", got="that", hint="Do.")
        with pytest.raises(kind) as caught:
            client.status()
        assert type(caught.value) is kind


def test_other_exceptions_say_nothing(organiser, client, server, caplog):
    organiser.error = RuntimeError("secret of the daemon")
    for call in (client.status, client.adapters):
        with pytest.raises(Refused, match=r"daemon\.log") as caught:
            call()
        assert "secret" not in repr(caught.value.args)
    assert "secret of the daemon" in caplog.text
    with channel(server.address, certificates().organiser) as open_channel:
        with pytest.raises(grpc.RpcError) as raw:
            open_channel.unary_unary("/headwater.v1.Control/GetStatus")(b"", timeout=60)
        assert (raw.value.code(), raw.value.details()) == (grpc.StatusCode.INTERNAL, "")
        assert raw.value.trailing_metadata() == ()


def test_no_daemon():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            client_of(address) as client,
            pytest.raises(ConnectionLost, match=rf"{address}.*nobody there.*headwater server run"),
        ):
            client.status()
        with client_of(address) as client, pytest.raises(ConnectionLost):
            next(client.watch())


def test_a_daemon_of_another_authority(server):
    known = certificates()
    with (
        ControlClient(
            server.address, known.other_authority.pem, known.organiser.cert, known.organiser.key
        ) as client,
        pytest.raises(ConnectionLost, match="does not fit"),
    ):
        client.status()


def test_a_port_that_is_taken(server, organiser):
    with pytest.raises(StorageError, match=server.address), serving(organiser, server.address):
        pass


def test_a_closed_client(client):
    client.close()
    with pytest.raises(ConnectionLost):
        client.status()


# --- watching -------------------------------------------------------------------------------------


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


# --- strangers ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded():
    organiser = FakeOrganiser()
    with serving(organiser) as server:
        yield organiser, server


def all_methods(address):
    """Every path of the running server, as its reflection tells an organiser; and one that is not there."""
    with channel(address, certificates().organiser) as open_channel:
        pool = descriptor_pool.Default()
        found = [pool.FindServiceByName(name) for name in services(open_channel)]
    paths = [(f"/{s.full_name}/{m.name}", m) for s in found for m in s.methods]
    assert len(paths) >= 15
    return [*paths, ("/headwater.v1.Control/Nothing", None), ("/", None)]


STRANGERS = ["without a certificate", *certificates().strangers]


@pytest.mark.parametrize("who", STRANGERS)
def test_strangers_are_refused_without_a_word(guarded, who):
    organiser, server = guarded
    organiser.calls.clear()
    organiser.tell("who takes part")
    answers = set()
    with channel(server.address, certificates().strangers.get(who)) as open_channel:
        for path, method in all_methods(server.address):
            code, details, metadata = ask(open_channel, path, method)
            assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED), path
            assert metadata == ()
            answers.add((code, details if code is grpc.StatusCode.PERMISSION_DENIED else ""))
    assert len(answers) == 1  # the same for what is there and what is not
    assert answers.pop()[1] == ""
    assert organiser.calls == []
    in_handshake = who in STRANGERS[:5]
    with channel(server.address, certificates().strangers.get(who)) as open_channel:
        code, _, _ = ask(open_channel, "/headwater.v1.Control/GetStatus", None)
    assert (code is grpc.StatusCode.UNAVAILABLE) == in_handshake, code


def ask(open_channel, path, method):
    """How the call ends; any answer at all fails the test."""
    streams = (method.client_streaming, method.server_streaming) if method else (False, False)
    kind = {
        (False, False): open_channel.unary_unary, (False, True): open_channel.unary_stream,
        (True, False): open_channel.stream_unary, (True, True): open_channel.stream_stream,
    }[streams]  # fmt: skip
    try:
        answer = kind(path)(iter([b""]) if streams[0] else b"", timeout=60)
        pytest.fail(f"{path}: {list(answer)}")
    except grpc.RpcError as error:
        return error.code(), error.details(), tuple(error.trailing_metadata() or ())


def test_the_listing_of_methods_would_notice_an_open_method(guarded):
    """The same calls with an organiser's certificate do get answers."""
    _, server = guarded
    with channel(server.address, certificates().organiser) as open_channel:
        for path, method in all_methods(server.address)[:3]:
            if method.server_streaming:
                continue
            with pytest.raises(pytest.fail.Exception):
                ask(open_channel, path, method)


def test_without_tls_there_is_nothing(guarded):
    organiser, server = guarded
    organiser.calls.clear()
    with grpc.insecure_channel(server.address) as open_channel:
        code, _, metadata = ask(open_channel, "/headwater.v1.Control/GetStatus", None)
    assert (code, metadata) == (grpc.StatusCode.UNAVAILABLE, ())
    assert organiser.calls == []


def test_a_bare_tls_client_reads_nothing(guarded):
    """TLS 1.3 ends the client's handshake before the server has looked: no byte of HTTP/2 may follow."""
    _, server = guarded
    context = ssl.create_default_context(cadata=certificates().authority.pem.decode())
    context.set_alpn_protocols(["h2"])
    host, port = server.address.split(":")
    with (
        socket.create_connection((host, int(port)), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        try:
            read = tls.recv(65536)
        except (ssl.SSLError, ConnectionError):
            read = b""
    assert read == b""


def test_silent_connections_are_few_and_do_not_disturb(organiser, server, client):
    assert client.status().runs[0] == RUN
    host, port = server.address.split(":")
    silent = [
        socket.create_connection((host, int(port))) for _ in range(control_server.MOST_CONNECTIONS + 30)
    ]
    try:
        until(lambda: sum(map(_is_closed, silent)) >= 30)
        assert client.status().runs[0] == RUN
    finally:
        for each in silent:
            each.close()


def _is_closed(connection):
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_certificates_as_the_authority_of_a_federation_issues_them(organiser):
    authority = Authority.create("test")
    cert, key = authority.issue_server(["127.0.0.1"])
    mine = authority.issue_organiser("Ann Organiser, Inc.")
    server = serve(organiser, "127.0.0.1:0", server_cert=cert, server_key=key, ca=authority.certificate_pem)
    try:
        with ControlClient(server.address, authority.certificate_pem, *mine) as client:
            assert client.adapters()[0].note == FIRST.note
        with (
            ControlClient(server.address, authority.certificate_pem, cert, key) as client,
            pytest.raises(ConnectionLost),
        ):
            client.status()
    finally:
        server.stop(0)
