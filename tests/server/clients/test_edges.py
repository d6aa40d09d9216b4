"""Clients behind an edge aggregator: what is asked through it, what of its word counts."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from headwater.errors import DecodeError
from headwater.proto.group_wire import decode_group_reply, decode_group_request, encode_group_reply
from headwater.proto.wire import decode_request, encode_reply
from headwater.protocol.messages import (
    ClientFailure,
    ClientProfile,
    EvaluateRequest,
    Evaluation,
    GroupReply,
    Payload,
    ProfileRequest,
    TrainRequest,
)
from headwater.server.clients import discovery, exchange
from headwater.server.clients.discovery import DiscoveredClients, EnrolledClients
from headwater.server.clients.exchange import Exchange, ReceivedReply
from headwater.server.clients.run_control import RunControl
from tests.server.clients.test_exchange_alone import Scripted
from tests.server.clients.test_exchange_alone import scripted as scripted  # the fixture
from tests.strategies.test_federated import federation

BEHIND = {"ann": "edge-1", "ben": "edge-1"}


def evaluation_of(name: str) -> EvaluateRequest:
    return EvaluateRequest("run", 3, name, "0" * 64, "1" * 64, Payload("dense.v1", b"state"))


def exchange_of(grid: Scripted) -> Exchange:
    return Exchange(grid, {"edge-1": 2, "cleo": 3}, edge_of=lambda name: BEHIND.get(name, ""))


def asked(grid: Scripted) -> Exchange:
    """The exchange after ann and ben, who are behind edge-1, and cleo were asked."""
    made = exchange_of(grid)
    sizes = made.send([(name, evaluation_of(name)) for name in ("ann", "ben", "cleo")], 3)
    assert sizes["ann"] == sizes["ben"] == sizes["cleo"] - 1  # its name: each device is sent the same
    return made


def test_one_message_asks_all_who_are_behind_an_edge(scripted: Scripted) -> None:
    asked(scripted)
    edge, cleo = sorted(scripted.pushed, key=lambda message: message.metadata.dst_node_id)
    assert (edge.metadata.dst_node_id, cleo.metadata.dst_node_id) == (2, 3)
    envelope = exchange.unpack(edge.content, "envelope", "state")[0]
    group = decode_group_request(envelope)
    assert group is not None
    assert (group.client, group.run, group.round, group.merge_plan) == ("edge-1", "run", 3, "")
    assert [decode_request(e, b"state") for e in group.envelopes] == [
        evaluation_of("ann"), evaluation_of("ben"),
    ]  # fmt: skip


def answered(grid: Scripted, made: Exchange, reply: GroupReply | bytes) -> dict[str, ReceivedReply]:
    place = next(i for i, m in enumerate(grid.pushed) if m.metadata.dst_node_id == 2)
    grid.answer(place, reply if isinstance(reply, bytes) else encode_group_reply(reply))
    return {incoming.address: incoming for incoming in made.poll()}


ANN = encode_reply(Evaluation("ann", 3, 7, {"loss": 0.5}, "run"))


def test_its_reply_is_a_reply_of_each(scripted: Scripted) -> None:
    made = asked(scripted)
    found = answered(scripted, made, GroupReply("edge-1", "run", 3, (ANN,), {}))
    assert found["ann"].data == ANN
    assert found["ann"].remote
    assert "edge-1 says nothing of it" in found["ben"].error
    assert made.waiting(EvaluateRequest, 3)  # for cleo


def test_who_is_not_waited_for_any_more_takes_nobody_along(scripted: Scripted) -> None:
    made = asked(scripted)
    made.forget_address(EvaluateRequest, "ben")
    assert list(answered(scripted, made, GroupReply("edge-1", "run", 3, (ANN,), {}))) == ["ann"]


SUM = {"ann": {"examples": 7.0}}
WRONG = {
    "no group's reply": ANN,
    "another's": GroupReply("edge-2", "run", 3, (ANN,), {}),
    "another round's": GroupReply("edge-1", "run", 2, (ANN,), {}),
    "two of one client": GroupReply("edge-1", "run", 3, (ANN, ANN), {}),
    "one in two parts": GroupReply("edge-1", "run", 3, (ANN,), SUM),
    "a sum with a client of another": GroupReply("edge-1", "run", 3, (), {"cleo": {"examples": 1.0}}),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_reply_that_is_none_is_a_failure_of_all_by_name(scripted: Scripted, what: str) -> None:
    made = asked(scripted)
    found = answered(scripted, made, WRONG[what])
    assert sorted(found) == ["ann", "ben"]
    assert all(incoming.error and not incoming.rows for incoming in found.values())


def test_an_update_is_summed_and_never_handed_on(scripted: Scripted) -> None:
    incoming = ReceivedReply("edge-1", TrainRequest, 3, b"", "", 0)
    failure = encode_reply(ClientFailure("ben", 3, "no rows", "run"))
    good = GroupReply("edge-1", "run", 3, (failure,), SUM, b"sum", b"gap")
    ben, summed = exchange.opened_group(
        dataclasses.replace(incoming, data=encode_group_reply(good)), frozenset(BEHIND)
    )
    assert (ben.address, ben.data) == ("ben", failure)
    assert (summed.address, summed.data, summed.gap) == ("edge-1", b"sum", b"gap")
    assert (dict(summed.rows), summed.asked) == (SUM, ("ann", "ben"))
    handed = encode_group_reply(GroupReply("edge-1", "run", 3, (ANN,), {}))
    found = exchange.opened_group(dataclasses.replace(incoming, data=handed), frozenset(BEHIND))
    assert [(part.address, "or being in the sum" in part.error) for part in found] == [
        ("ann", True), ("ben", True),
    ]  # fmt: skip


def test_an_edge_without_a_node_is_told_of_each(scripted: Scripted) -> None:
    made = Exchange(scripted, {"cleo": 3}, edge_of=lambda name: BEHIND.get(name, ""))
    made.send([("ann", evaluation_of("ann"))], 3)
    (incoming,) = made.poll()
    assert (incoming.address, incoming.error) == ("ann", "its edge aggregator edge-1 has no node")


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, ANN])
def test_bytes_that_are_no_group(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_group_reply(data, max_bytes=0)


class Site:
    """A pool with an edge aggregator, whose clients' answers a test writes down."""

    def __init__(self, folder, monkeypatch, *, most=2, **tables):
        self.sessions, self.now, self.events, self.replies = {}, 0.0, [], []
        monkeypatch.setattr(discovery, "profile_of", self.profile_of)
        names = ("edge-1", "edge-2", "cleo")
        self.pool = DiscoveredClients(
            self, "run",
            federation(**tables),
            SimpleNamespace(base_sha256="", start=None),
            EnrolledClients(
                lambda: self.sessions,
                lambda name: name in names,
                lambda: names,
                {"edge-1": most, "edge-2": 9},
            ),
            folder / "profiles.json",
            RunControl(self.events.append, clock=lambda: self.now),
        )  # fmt: skip

    def profile_of(self, incoming, context, run, client=""):
        if b"unfit" in incoming.data:
            raise DecodeError(f"client {client}", expected="a profile", got="unfit")
        return ClientProfile(client, 5, 1, "", "")

    def send(self, requests, round, *plan): ...
    def forget_address(self, kind, name): ...

    def poll(self, *kinds):
        while self.replies:
            yield self.replies.pop()

    def comes(self, edge, *clients, unfit=()):
        self.sessions[edge] = self.sessions.get(edge, 0) + 1
        list(self.pool.poll())
        profiles = [
            encode_reply(ClientProfile(c, 5, 1, "0" * 64, "1" * 64, "run", "unfit" if c in unfit else "1"))
            for c in clients
        ]
        data = encode_group_reply(GroupReply(edge, "run", 0, tuple(profiles), {}))
        self.replies.append(ReceivedReply(edge, ProfileRequest, 0, data, "", len(data)))
        list(self.pool.poll())


@pytest.fixture
def site(tmp_path, monkeypatch):
    return Site(tmp_path, monkeypatch)


def test_who_is_behind_an_edge_takes_part_by_name(site):
    site.comes("edge-1", "ann", "ben")
    assert list(site.pool.ready()) == ["ann", "ben"]
    assert [site.pool.edge_of(name) for name in ("ann", "cleo")] == ["edge-1", ""]
    assert "edge-1" not in site.pool.missing()
    site.comes("edge-1", "ben")
    assert list(site.pool.ready()) == ["ben"]
    assert site.pool.missing()["ann"] == "not at its edge aggregator edge-1"


def test_when_an_edge_is_lost_its_clients_are_by_name(site):
    site.comes("edge-1", "ann", "ben")
    del site.sessions["edge-1"]
    assert not site.pool.ready()
    assert site.pool.missing()["ann"] == "offline: its edge aggregator edge-1"
    assert site.pool.is_away("ann")
    assert set(site.pool.profiles()) == {"ann", "ben"}


def test_after_a_restart_they_are_known_again(site, tmp_path, monkeypatch):
    site.comes("edge-1", "ann")
    again = Site(tmp_path, monkeypatch)
    assert again.pool.edge_of("ann") == "edge-1"
    assert set(again.pool.profiles()) == {"ann"}
    assert not again.pool.ready()


def test_an_edge_speaks_for_nobody_else(site):
    """Not for who is enrolled here, nor for another edge's clients, nor for more than it may."""
    site.comes("edge-1", "ann", "cleo", "edge-2")
    assert list(site.pool.profiles()) == ["ann"]
    site.comes("edge-2", "ann", "dora")
    assert list(site.pool.profiles()) == ["ann", "dora"]
    assert site.pool.edge_of("ann") == "edge-1"
    site.comes("edge-1", "a1", "a2", "a3", "ann")
    told = "\n".join(str(event) for event in site.events)
    assert "one that is enrolled here" in told
    assert "one of edge aggregator edge-1" in told
    assert "at most 2 clients behind it" in told
    assert sorted(site.pool.ready()) == ["a1", "a2", "dora"]


def test_what_does_not_fit_is_a_failure_by_its_own_name(site):
    site.comes("edge-1", "ann", "ben", unfit=["ben"])
    assert list(site.pool.ready()) == ["ann"]
    assert "unfit" in site.pool.lost()["ben"]


def test_an_edge_that_is_taken_out_of_the_file_brings_nobody(tmp_path, monkeypatch):
    Site(tmp_path, monkeypatch).comes("edge-2", "ann")
    plain = Site(tmp_path, monkeypatch)
    plain.pool._enrolled = dataclasses.replace(plain.pool._enrolled, edges={})
    assert not plain.pool.profiles()


NO_SUMS = {
    "buffered": {"schedule": {"kind": "buffered", "buffer": 2}},
    "upload_s": {"cohort": {"upload_s": 9.0}, "codec": {"up": {"kind": "compeft"}}},
    "control_variates": {
        "strategy": {"kind": "mean", "control_variates": True},
        "training": {"kind": "backprop", "optimizer": "sgd"},
        "codec": {"up": {"kind": "dense"}},
    },
    "several times": {"strategy": {"kind": "consensus"}, "cohort": {"min_clients": 2}},
}


@pytest.mark.parametrize("what", NO_SUMS)
def test_rounds_that_need_each_update_take_no_sums(tmp_path, monkeypatch, what):
    site = Site(tmp_path, monkeypatch, **NO_SUMS[what])
    site.comes("edge-1", "ann")
    assert not site.pool.ready()
    assert what in site.pool.lost()["ann"]


def test_an_edge_that_sends_anything_else_is_named(site):
    site.sessions["edge-1"] = 1
    list(site.pool.poll())
    site.replies.append(ReceivedReply("edge-1", ProfileRequest, 0, b"profile", "", 7))
    list(site.pool.poll())
    assert "edge aggregator" in str(site.events[-1])
