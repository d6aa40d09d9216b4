"""Errors over the control port: what they were, or nothing of the daemon's."""

from __future__ import annotations

import socket

import grpc
import pytest

from headwater import errors
from headwater.errors import ConnectionLost, HeadwaterError, Refused, StorageError
from headwater.proto.control import ControlClient
from headwater.proto.control_errors import ANSWERS
from tests.proto.control_channel import channel
from tests.support.control_certificates import certificates
from tests.support.control_port import FAILURES, client_of, serving


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
