"""The organiser's port: every gRPC method, listed by the running daemon, with every certificate but his."""

from __future__ import annotations

import grpc
import pytest

from headwater.security.certificates import Authority
from tests.attacks.grounds import HONEST
from tests.attacks.organiser import channel, methods


@pytest.fixture(scope="module")
def all_methods(grounds):
    found = methods(grounds)
    assert {"headwater.v1.Control/Submit", "headwater.v1.Control/Revoke"} <= set(found)
    assert any("Health" in m for m in found)
    assert any("Reflection" in m for m in found)
    return [*found, "headwater.v1.Control/Nothing", "flwr.proto.Control/StartRun", "x.Y/Z"]


def certificates(grounds):
    """Whatever an attacker may hold: nothing, another authority's, the server's own."""
    credentials = grounds.network.workspace.credentials
    stranger = Authority.create(grounds.network.workspace.settings.name)
    yield "none", None, None
    yield "of another authority", *stranger.issue_organiser("organiser")
    yield "of another server", *stranger.issue_server(["localhost"])
    yield "the server's own", *credentials.server()


def test_no_method_answers_without_the_organisers_certificate(grounds, unmoved, all_methods):
    for why, certificate, key in certificates(grounds):
        seen = set()
        with channel(grounds, certificate, key) as open_channel:
            for method in all_methods:
                with pytest.raises(grpc.RpcError) as refusal:
                    open_channel.unary_unary(f"/{method}")(b"", timeout=60)
                seen.add(refusal.value.code())
                if refusal.value.code() is grpc.StatusCode.PERMISSION_DENIED:
                    assert not refusal.value.details(), method
        # in the handshake, or by role: for every method the same
        assert seen <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED}, (why, seen)
        assert len(seen) == 1, (why, seen)


def test_the_port_speaks_nothing_without_tls(grounds, unmoved):
    for data in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"):
        with grounds.tcp(1) as plain:
            plain.sendall(data)
            received = plain.recv(1000)
        assert len(received) <= 7
        assert b"HTTP" not in received


def test_with_the_certificate_garbage_is_refused(grounds, unmoved, all_methods):
    """The organiser's own mistakes: no answer is a traceback, and nothing changes."""
    certificate, key = grounds.network.workspace.credentials.organiser()
    with channel(grounds, certificate, key) as open_channel:
        for method in all_methods:
            if "GetStatus" in method or "Watch" in method or "grpc." in method:
                continue
            for data in (b"\xff" * 50, bytes(range(256)), b"\x0a\x05../.."):
                call = open_channel.unary_stream(f"/{method}")(data, timeout=60)
                with pytest.raises(grpc.RpcError) as refusal:
                    list(call)
                assert "Traceback" not in (refusal.value.details() or "")


def test_the_organiser_cannot_be_led_astray_by_names(grounds, unmoved):
    from headwater.errors import HeadwaterError

    with grounds.network.control() as control:
        for name in ("../../etc/passwd", "/etc/passwd", "a/b", "\x00", "", HONEST[0] + "\n", "x" * 5000):
            for act in (control.revoke, control.pause, control.accept):
                with pytest.raises(HeadwaterError):
                    act(name)
            with pytest.raises(HeadwaterError):
                list(control.export(name or "../x", 1))
