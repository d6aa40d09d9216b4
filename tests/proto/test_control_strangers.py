"""Strangers at the control port are refused without a word."""

from __future__ import annotations

import socket
import ssl

import grpc
import pytest
from google.protobuf import descriptor_pool

from headwater.errors import ConnectionLost
from headwater.proto import control_server
from headwater.proto.control import ControlClient, serve
from headwater.security.certificates import Authority
from tests.proto.control_channel import channel, services
from tests.support.control_certificates import certificates
from tests.support.control_port import FIRST, RUN, FakeOrganiser, serving, until


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
