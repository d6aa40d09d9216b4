"""Authentication of requests: each refusal by its reason."""

from __future__ import annotations

import pytest

from headwater import __version__
from headwater.flower.fleet_server import ACTIVATE, PATHS, PUSH_OBJECT
from headwater.security.signing import Identity
from headwater.server.agent_port.request_auth import WINDOW_S
from tests.server.agent_port.fake_port import NOW, PULL, refused, silent


def test_a_signed_request_goes_through_under_its_name(fleet_port):
    assert fleet_port.ask(body=b"x" * 100)[:2] == (200, "fine")
    assert fleet_port.through == [("a", PULL, b"x" * 100)]
    assert not fleet_port.authenticator.refused
    assert fleet_port.link.online() == {"a"}


def test_a_body_in_pieces(fleet_port):
    assert fleet_port.ask(body=b"abcdef", pieces=[b"abc", b"", b"def"])[0] == 200
    assert fleet_port.through == [("a", PULL, b"abcdef")]


def test_strangers_get_one_answer_and_nothing_is_read(fleet_port):
    stranger = Identity.create("stranger")
    false = Identity.create("a")
    fleet_port.enrol("gone")
    gone = Identity.create("gone")
    fleet_port.registry.add(gone).revoked_at = "2026-01-01"
    ways = {
        "headers": {"headers": {"content-length": "4"}},
        "unknown": {"identity": stranger},
        "signature": {"identity": false},
        "revoked": {"identity": gone},
        "path": {"path": "/v1/fleet/register-node"},
    }
    for way in ways.values():
        silent(fleet_port.ask(**way))
        assert fleet_port.read == 0
    assert fleet_port.authenticator.refused == dict.fromkeys(ways, 1)
    assert not fleet_port.authenticator.refused_by
    assert not fleet_port.through


@pytest.mark.parametrize("scope", [{"method": "GET"}, {"query_string": b"a=1"}, {"path": PULL + "/"}])
def test_only_the_calls_themselves(fleet_port, scope):
    silent(fleet_port.ask(scope=scope))
    refused(fleet_port, "path")


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("client", "b"), ("version", "0.1.1"), ("instance", "2" * 32), ("time", str(int(NOW * 1000) + 1)),
        ("nonce", "0" * 32), ("length", "5"), ("body", "0" * 64), ("signature", "A" * 86 + "=="),
    ],
)  # fmt: skip
def test_no_header_can_be_altered(fleet_port, header, value):
    fleet_port.enrol("b")
    headers = fleet_port.headers(fleet_port.a, PULL, b"body")
    assert headers[f"x-headwater-{header}"] != value
    silent(fleet_port.ask(headers=headers | {f"x-headwater-{header}": value}))
    refused(fleet_port, "signature")


def test_a_header_that_comes_twice(fleet_port):
    headers = list(fleet_port.headers(fleet_port.a, PULL, b"body").items())
    silent(fleet_port.ask(headers=[*headers, ("x-headwater-client", "b")]))
    refused(fleet_port, "headers")


def test_another_path_than_the_signed_one(fleet_port):
    silent(fleet_port.ask(path=PUSH_OBJECT, headers=fleet_port.headers(fleet_port.a, PULL, b"body")))
    refused(fleet_port, "signature")


def test_a_replayed_request(fleet_port):
    headers = fleet_port.headers(fleet_port.a, PULL, b"body")
    assert fleet_port.ask(headers=headers)[0] == 200
    fleet_port.through.clear()
    for later in (0, WINDOW_S - 1):
        fleet_port.now = NOW + later
        assert fleet_port.ask(headers=headers)[:2] == (403, "")
    refused(fleet_port, "replayed", "a", times=2)
    fleet_port.now = NOW + WINDOW_S + 1
    assert fleet_port.ask(headers=headers)[:2] == (403, "")
    assert fleet_port.authenticator.refused["time"] == 1


def test_nonces_are_kept_for_as_long_as_they_matter_and_no_longer(fleet_port):
    """A time ahead of ours is let in for twice the window: so long its nonce must be known."""
    early = fleet_port.headers(fleet_port.a, PULL, b"body", now_ms=int((NOW + WINDOW_S - 1) * 1000))
    assert fleet_port.ask(headers=early)[0] == 200
    fleet_port.now += 2 * WINDOW_S - 2
    assert fleet_port.ask(headers=early)[0] == 403
    assert fleet_port.authenticator.refused == {"replayed": 1}
    for _ in range(50):
        fleet_port.now += WINDOW_S
        assert fleet_port.ask()[0] == 200
    assert len(fleet_port.authenticator._callers["a"].nonces) <= 4


@pytest.mark.parametrize("seconds", [-WINDOW_S - 1, WINDOW_S + 1, -86400, 10**9])
def test_another_time(fleet_port, seconds):
    assert fleet_port.ask(now_ms=int((NOW + seconds) * 1000))[:2] == (403, "")
    refused(fleet_port, "time", "a")


@pytest.mark.parametrize("body", [b"bodz", b"", b"bod", b"bodyy"])
def test_an_altered_body(fleet_port, body):
    headers = fleet_port.headers(fleet_port.a, PULL, b"body")
    silent(fleet_port.ask(headers=headers, body=body))
    refused(fleet_port, "length" if len(body) > 4 else "body", "a")


def test_a_length_that_was_not_signed(fleet_port):
    headers = fleet_port.headers(fleet_port.a, PULL, b"body") | {"content-length": "5"}
    assert fleet_port.ask(headers=headers, body=b"bodyy")[:2] == (403, "")
    refused(fleet_port, "length", "a")


@pytest.mark.parametrize("length", [None, "", "-1", "+4", "4, 4", "0x4", "9" * 30])
def test_no_length(fleet_port, length):
    headers = fleet_port.headers(fleet_port.a, PULL, b"body")
    del headers["content-length"]
    status, text, more = fleet_port.ask(
        headers=headers | ({} if length is None else {"content-length": length})
    )
    assert (status, text, more[b"connection"]) == (411, "content-length is required\n", b"close")
    assert fleet_port.read == 0
    refused(fleet_port, "no length", "a")


@pytest.mark.parametrize("path", sorted(PATHS))
def test_a_body_beyond_the_limit_of_its_path(fleet_port, path):
    most = fleet_port.authenticator._limits.body_bytes(path)
    status, text, more = fleet_port.ask(path=path, body=bytes(most + 1))
    assert (status, text, more[b"connection"]) == (413, f"at most {most} bytes\n", b"close")
    assert fleet_port.read == 0
    refused(fleet_port, "too large", "a")
    assert fleet_port.ask(path=path, body=bytes(min(most, 2**20)))[0] == 200


@pytest.mark.parametrize("version", ["0.2.0", "1.1.0", "0.0.9", "0", "0.10.0"])
def test_another_minor_version(fleet_port, version):
    status, text, more = fleet_port.ask(version=version)
    assert (status, text) == (426, f"this server is headwater {__version__}, you are {version}\n")
    assert b"connection" not in more
    refused(fleet_port, "version", "a")


def test_another_patch_version(fleet_port):
    assert fleet_port.ask(version="0.1.99")[0] == 200


def test_a_revoked_key_is_out_at_once(fleet_port):
    fleet_port.registry["a"].revoked_at = "2026-01-01"
    silent(fleet_port.ask())
    refused(fleet_port, "revoked")


def test_a_second_process_with_the_same_key_takes_over_for_good(fleet_port):
    old, new = "1" * 32, "2" * 32
    assert fleet_port.ask(instance=new)[:2] == (
        428,
        "the server does not know this session: activate\n",
    )
    fleet_port.activate(instance=new)
    assert fleet_port.ask(instance=new)[0] == 200
    fleet_port.through.clear()
    fleet_port.authenticator.refused.clear()
    fleet_port.authenticator.refused_by.clear()
    for path in (PULL, ACTIVATE):
        status, text, _ = fleet_port.ask(path=path, instance=old)
        assert (status, text) == (409, "another agent with your keys has taken over\n")
    refused(fleet_port, "replaced", "a", times=2)
    assert fleet_port.ask(instance=new)[0] == 200


def test_a_thousand_processes_of_one_key_are_not_remembered(fleet_port):
    for i in range(1000):
        fleet_port.activate(instance=f"{i:032x}")
        fleet_port.now += WINDOW_S
    caller = fleet_port.authenticator._callers["a"]
    assert len(caller.former) == 16
    assert len(caller.nonces) <= 4


def test_one_clients_process_is_not_anothers(fleet_port):
    b = fleet_port.enrol("b")
    assert fleet_port.ask(identity=b)[0] == 428
    fleet_port.activate(identity=b, instance="2" * 32)
    assert fleet_port.ask()[0] == 200
