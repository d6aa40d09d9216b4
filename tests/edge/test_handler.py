"""What an edge aggregator answers, without sockets: the server merges its sum to the flat round's bits."""

from __future__ import annotations

import dataclasses
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from headwater.client.agent.known_runs import KnownRuns
from headwater.edge.handler import EdgeHandler
from headwater.edge.members import AWAY_S, EdgeMembers
from headwater.errors import ConnectionLost, DecodeError, UpdateRejected
from headwater.merging import Merged, ProductAggregator
from headwater.proto.group_wire import decode_group_reply, encode_group_request
from headwater.proto.wire import decode_signed, encode_reply, encode_request
from headwater.protocol.coordinator import Coordinator, RoundRules
from headwater.protocol.failures import Failure, FailureCode
from headwater.protocol.machine import Begin, Close
from headwater.protocol.messages import (
    ClientFailure,
    EvaluateRequest,
    Evaluation,
    GroupRequest,
    ProfileRequest,
    TrainRequest,
)
from headwater.server.clients.exchange import Exchange, ReceivedReply, opened_group
from headwater.server.clients.run_control import RunControl
from headwater.server.events import ClientDone
from headwater.server.rounds.base import Rounds
from headwater.server.rounds.open_round import OpenRound
from headwater.server.rounds.round_driver import DrivenRound, RoundDriver
from headwater.server.rounds.synchronous import SynchronousRounds
from headwater.server.storage.update_spool import Spool
from headwater.state import AdapterState
from tests.docs.test_how_to import blocks
from tests.laws.aggregator_laws import lora_spec
from tests.server.rounds import test_open_round
from tests.server.rounds.test_open_round import METHODS, RUN, opened, reply, steps, values
from tests.strategies import test_mixed
from tests.strategies.test_federated import federation
from tests.strategies.test_mixed import SPEC
from tests.support.plugins import installed_in, write_package

BEHIND, DIRECT = ("big", "jvp", "zo"), "other"
PLAIN: dict[str, Any] = {"codec": {"up": {"kind": "compeft", "density": 0.5}}}
RULES: dict[str, dict[str, Any]] = {
    "mean": PLAIN,
    "ties": {**PLAIN, "strategy": {"kind": "ties", "density": 0.4}},
    "median": {**PLAIN, "strategy": {"kind": "median"}},
    "drawn": {**PLAIN, "strategy": {"kind": "dare_ties", "density": 0.4}},
    "kept": {**PLAIN, "strategy": {"kind": "geometric_median"}, "cohort": {"min_clients": 2}},
    "bounded": {**PLAIN, "strategy": {"kind": "mean", "norm_bound": 0.01}},
    "mixed": {
        "methods": METHODS,
        "assignment": {"kind": "clients", "clients": {"jvp": "jvp", "big": "seeds", "zo": "zo"}},
    },
}


class Members:
    """Clients that answer what a test says, at once."""

    def __init__(self, replies: dict[str, ReceivedReply]) -> None:
        self.replies, self.told, self.max_reply_bytes = replies, None, 0
        self.changed = False

    def online(self) -> dict[str, int]:
        return dict.fromkeys(self.replies, 1)

    def settled_change(self, quiet_s: float) -> bool:
        return self.changed

    def ask(self, requests: Any, kind: Any, number: int, patience_s: float, take: Any) -> dict[str, str]:
        self.asked, self.patience_s = dict(requests), patience_s
        for name in requests:
            if name in self.replies:
                take(dataclasses.replace(self.replies[name], kind=kind, round=number))
        return {name: "offline behind its edge aggregator" for name in requests if name not in self.replies}


def sent(round_: OpenRound, name: str, place: int) -> ReceivedReply:
    """A client's update of the round."""
    vector = torch.linspace(-0.02, 0.03, SPEC.numel).roll(place)
    if round_.plan.clients[name].seeds is not None:
        return reply(round_, name, steps(round_, (3, 40 + place), (5, -7)))
    return reply(round_, name, AdapterState.from_vector(SPEC, vector), {"noise": 0.25, "loss": 1.0})


class Tree:
    """A server's open round of four clients, of which three are behind an edge aggregator."""

    def __init__(self, folder: Any, tables: dict[str, Any]) -> None:
        self.server, self.flat = (opened(*BEHIND, DIRECT, **tables) for _ in range(2))
        self.updates = {n: sent(self.flat, n, i) for i, n in enumerate((*BEHIND, DIRECT))}
        self.members, self.said = Members({n: self.updates[n] for n in BEHIND}), list[str]()
        self.handler = EdgeHandler(
            "edge-1", self.members, KnownRuns(folder), lambda data: bytes(64), self.said.append
        )
        tables = {**tables, "cohort": {**tables.get("cohort", {}), "deadline_s": 100.0}}
        settings = federation(**tables).model_dump_json(exclude_none=True)
        profiles = {n: self.server.profiles[n] for n in BEHIND}
        known = {
            n: ReceivedReply(n, ProfileRequest, 0, encode_reply(dataclasses.replace(p, run=RUN)), "", 0)
            for n, p in profiles.items()
        }
        self.introduced = self.answer(
            encode_request(ProfileRequest(RUN, settings, "0" * 64, "1")), Members(known)
        )

    def answer(self, request: tuple[bytes, bytes], members: Members | None = None) -> Any:
        """The edge's reply, decoded."""
        self.handler._members = members or self.members
        signed = self.handler.answer(dict(zip(("envelope", "state"), request, strict=True)))
        self.handler._members = self.members
        self.data = decode_signed(signed, max_bytes=len(signed))[0]
        return decode_group_reply(self.data, max_bytes=len(self.data))

    def group(self, names: tuple[str, ...] = BEHIND) -> tuple[bytes, bytes]:
        requests = [encode_request(self.server.request(name, 0)) for name in names]
        plan = self.server.merge_plan_of(names)
        group = GroupRequest("edge-1", RUN, 1, tuple(envelope for envelope, _ in requests), plan)
        return encode_group_request(group), requests[0][1]

    def received(self) -> list[ReceivedReply]:
        """The last reply's parts as the server's exchange has them."""
        incoming = ReceivedReply("edge-1", TrainRequest, 1, self.data, "", len(self.data), self.data)
        return opened_group(incoming, frozenset(BEHIND))


def merged_alike(tree: Tree) -> tuple[Merged, Merged]:
    """What the server merges with the edge's sum, once it is sure that the flat round gives it too."""
    assert len(tree.introduced.replies) == 3
    tree.answer(tree.group())
    assert tree.members.patience_s == 80.0
    (summed,) = tree.received()
    tree.server.fold(tree.updates[DIRECT])
    tree.server.fold(summed)
    for update in tree.updates.values():
        tree.flat.fold(update)
    ours, theirs = tree.server.merge(), tree.flat.merge()
    assert ours.delta.tobytes() == theirs.delta.tobytes()
    assert (ours.clients, ours.weight, dict(ours.report)) == (
        theirs.clients, theirs.weight, dict(theirs.report),
    )  # fmt: skip
    return ours, theirs


@pytest.mark.parametrize("space", ["product", "fair"])
def test_products_are_added_up_behind_an_edge(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, space: str
) -> None:
    spec = lora_spec(40, 30, 2, head=2)
    base = AdapterState.from_vector(spec, torch.linspace(-0.1, 0.1, spec.numel).roll(7))
    for name, value in {"SPEC": spec, "ZERO": base}.items():
        monkeypatch.setattr(test_open_round, name, value)
    monkeypatch.setattr(test_mixed, "SPEC", spec)  # of the clients' profiles
    monkeypatch.setattr(sys.modules[__name__], "SPEC", spec)
    codec = {"up": {"kind": "compeft", "density": 0.5, "error_feedback": False}}
    tree = Tree(tmp_path, {"codec": codec, "strategy": {"kind": "mean", "space": space}})
    assert type(tree.server._rule) is ProductAggregator
    ours, _ = merged_alike(tree)
    assert ours.delta.norm() > 0


def test_a_rule_of_a_package_is_added_up_behind_an_edge(tmp_path: Any) -> None:
    source = blocks("add-a-rule")["clipped_mean.py"]
    points = {"rules": {"clipped_mean": "clipped_mean:ClippedMean"}}
    write_package(tmp_path / "site", "clipped_mean", source, points)
    with installed_in(tmp_path / "site"):
        tree = Tree(tmp_path, {**PLAIN, "strategy": {"kind": "clipped_mean", "norm": 0.01}})
        ours, _ = merged_alike(tree)
        assert 0 < ours.delta.norm() <= 0.01


@pytest.mark.parametrize("name", RULES)
def test_the_server_merges_its_sum_to_the_flat_rounds_bits(tmp_path: Any, name: str) -> None:
    tree = Tree(tmp_path, RULES[name])
    ours, theirs = merged_alike(tree)
    end = Close(1, ours.clients, (), last=False)
    lines = [r.draft(end, m, r.base + m.delta).record(1.0).content for r, m in (
        (tree.server, ours), (tree.flat, theirs),
    )]  # fmt: skip
    assert lines[0]["gap"] == lines[1]["gap"]
    assert {**lines[0]["clients"]["jvp"], "bytes_down": 0} == {**lines[1]["clients"]["jvp"], "bytes_down": 0}
    assert lines[0]["edges"] == {"edge-1": {"bytes_up": len(tree.data)}}
    assert "edges" not in lines[1]


def test_who_fails_behind_it_fails_by_name_and_the_others_count(tmp_path: Any) -> None:
    tree = Tree(tmp_path, PLAIN)
    told = ClientFailure.coded("jvp", 1, Failure(FailureCode.OUT_OF_MEMORY), RUN)
    tree.members.replies["jvp"] = dataclasses.replace(tree.updates["jvp"], data=encode_reply(told))
    del tree.members.replies["zo"]
    tree.answer(tree.group())
    jvp, zo, summed = tree.received()
    assert (jvp.data, zo.address) == (encode_reply(told), "zo")
    assert list(summed.rows) == ["big"]
    tree.server.fold(summed)
    for failed in (jvp, zo):
        with pytest.raises(UpdateRejected, match="failure"):
            tree.server.fold(failed)
    assert tree.server.merge().clients == ("big",)


def test_a_sum_in_the_spool_is_folded_again_after_a_crash(tmp_path: Any) -> None:
    """With it came that zo is away, which has come back by itself since: its own reply stays in the spool."""
    tree, spool = Tree(tmp_path, PLAIN), Spool(tmp_path / "spool")
    del tree.members.replies["zo"]
    tree.answer(tree.group())
    *_, summed = tree.received()
    pool = SimpleNamespace(exchange=Exchange(cast(Any, None), {}))
    daemon = cast(Any, SimpleNamespace(_durability=SimpleNamespace(spool=spool), _pool=pool, told=[]))
    daemon._spooled = partial(Rounds._spooled, daemon)
    daemon._refused = lambda number, part, error: Rounds._refused(daemon, number, part, error)
    daemon._control, daemon._kept = SimpleNamespace(observer=daemon.told.append, simulated=False), {}
    alone = [dataclasses.replace(tree.updates[name], raw=tree.updates[name].data) for name in ("zo", DIRECT)]
    for part in (summed, *alone):
        SynchronousRounds._fold(daemon, tree.server, part)
    for start in range(2):
        again = opened(*BEHIND, DIRECT, **PLAIN)
        assert sorted(SynchronousRounds._refold(daemon, again)) == sorted((*BEHIND, DIRECT)), start
        assert again.merge().delta.tobytes() == tree.server.merge().delta.tobytes()
    assert not daemon.told


def test_what_the_server_would_refuse_is_refused_here(tmp_path: Any) -> None:
    tree = Tree(tmp_path, PLAIN)
    far = reply(tree.flat, "jvp", values(1e30))
    other = dataclasses.replace(tree.updates["zo"], data=tree.updates["big"].data)
    tree.members.replies |= {"jvp": far, "zo": other}
    tree.answer(tree.group())
    *failures, summed = tree.received()
    assert [failed.address for failed in failures] == ["jvp", "zo"]
    assert list(summed.rows) == ["big"]
    nobody = Tree(tmp_path / "2", PLAIN)
    nobody.members.replies.clear()
    assert nobody.answer(nobody.group()).sum == b""
    assert [failed.address for failed in nobody.received()] == list(BEHIND)


def test_a_lie_of_the_edge_is_refused_whole_and_by_name(tmp_path: Any) -> None:
    """Other examples, a client beside the round, a sum without its sketch, of others, or twice."""
    tree = Tree(tmp_path, PLAIN)
    tree.answer(tree.group())
    (summed,) = tree.received()
    rows = {name: dict(row) for name, row in summed.rows.items()}
    lies = [
        dataclasses.replace(summed, rows={**rows, "big": {**rows["big"], "examples": 10**6}}),
        dataclasses.replace(summed, rows={**rows, DIRECT: {"examples": 13.0}}),
        dataclasses.replace(summed, asked=(*summed.asked, "stranger")),
        dataclasses.replace(summed, asked=(*summed.asked, DIRECT)),
        dataclasses.replace(summed, gap=b""),
        dataclasses.replace(summed, data=summed.data[:-1]),
    ]
    for lie in lies:
        with pytest.raises(DecodeError):
            tree.server.fold(lie)
    tree.server.fold(summed)
    with pytest.raises(UpdateRejected, match="disjoint"):
        tree.server.fold(summed)
    assert tree.server.merge().clients == tuple(sorted(BEHIND))


def test_evaluations_are_handed_on_as_they_came(tmp_path: Any) -> None:
    tree = Tree(tmp_path, PLAIN)
    came = encode_reply(Evaluation("big", 1, 4, {"loss": 1.0}, RUN))
    tree.members.replies = {"big": ReceivedReply("big", EvaluateRequest, 1, came, "", 0)}
    tree.members.replies["jvp"] = dataclasses.replace(tree.members.replies["big"], address="jvp")  # big's
    train = tree.server.request("big", 0)
    requests = [
        encode_request(EvaluateRequest(RUN, 1, n, train.spec, train.state_sha256, train.state))
        for n in BEHIND
    ]
    group = GroupRequest("edge-1", RUN, 1, tuple(envelope for envelope, _ in requests))
    found = tree.answer((encode_group_request(group), requests[0][1]))
    assert found.replies[0] == came
    assert len(found.replies) == 2  # of jvp nothing that could be used came, zo is offline


@pytest.mark.parametrize("what", ["unknown run", "another edge", "two kinds", "no plan", "another state"])
def test_a_group_that_cannot_be_asked_is_a_failure_of_all(tmp_path: Any, what: str) -> None:
    tree = Tree(tmp_path, PLAIN)
    requests = [encode_request(tree.server.request(name, 0)) for name in BEHIND]
    envelopes = tuple(envelope for envelope, _ in requests)
    group = GroupRequest("edge-1", RUN, 1, envelopes, tree.server.merge_plan_of(BEHIND))
    evaluate = EvaluateRequest(RUN, 1, "zo", "0" * 64, "1" * 64, tree.server.request("zo", 0).state)
    wrong = {
        "unknown run": dataclasses.replace(group, run="f" * 32),
        "another edge": dataclasses.replace(group, client="edge-2"),
        "two kinds": dataclasses.replace(group, envelopes=(*envelopes[:2], encode_request(evaluate)[0])),
        "no plan": dataclasses.replace(group, merge_plan="{}"),
        "another state": group,
    }[what]
    state = bytes(len(requests[0][1])) if what != "another state" else b"\1" + requests[0][1][1:]
    found = tree.answer((encode_group_request(wrong), state))
    assert len(found.replies) == 3
    assert not found.rows


def test_a_client_enrolled_as_an_edge_by_nobody_says_so(tmp_path: Any) -> None:
    tree = Tree(tmp_path, PLAIN)
    assert not tree.answer(encode_request(tree.server.request("big", 0))).replies
    assert "[edges] edge-1" in tree.said[-1]


def test_the_adapter_that_a_run_starts_from_is_handed_on(tmp_path: Any) -> None:
    tree = Tree(tmp_path, PLAIN)
    settings = federation(**PLAIN).model_dump_json(exclude_none=True)
    asked = ProfileRequest(RUN, settings, "0" * 64, "1", b"a safetensors file")
    tree.answer(encode_request(asked))
    assert set(tree.members.asked) == set(BEHIND)
    assert all(request.start == asked.start for request in tree.members.asked.values())


def test_when_others_are_here_it_comes_back_as_a_device_does(tmp_path: Any) -> None:
    tree = Tree(tmp_path, PLAIN)
    tree.handler.recheck()
    tree.members.changed = True
    with pytest.raises(ConnectionLost, match="those that the server was told of"):
        tree.handler.recheck()


class Link:
    def __init__(self) -> None:
        self.here = {"ann": 1, "ben": 1}

    def sessions(self) -> dict[str, int]:
        return dict(self.here)


class Silent:
    """An exchange whose clients never answer."""

    def forget_address(self, kind: Any, name: str) -> None: ...
    def forget(self, kind: Any, number: int) -> None: ...
    def send(self, requests: Any, number: int) -> None: ...

    def poll(self, kind: Any) -> Any:
        return iter(())


def test_members_are_waited_for_until_they_are_away_or_late() -> None:
    link, now = Link(), [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    members = EdgeMembers(link, Silent(), lambda: None, lambda: False, clock)
    del link.here["ben"]
    lost = members.ask({"ann": None, "ben": None}, TrainRequest, 1, 40.0, lambda incoming: None)
    assert lost == {
        "ann": "no answer to its edge aggregator within 40 s", "ben": "offline behind its edge aggregator",
    }  # fmt: skip
    assert now[0] > AWAY_S
    assert not members.settled_change(3.0)  # nobody was told of anybody
    members.told = {"ann": 1}
    assert not members.settled_change(3.0)
    link.here["ben"] = 2
    assert [members.settled_change(3.0) for _ in range(4)] == [False, False, False, True]


def test_a_sum_is_folded_for_all_its_clients_or_for_none() -> None:
    """A client that is not waited for any more makes the whole sum one that cannot be taken."""
    names, told = ("ann", "ben", "cleo"), list[Any]()
    rows = {"ann": {"bytes_up": 11.0}, "ben": {"bytes_up": 12.0}}

    class Pool:
        def __init__(self, *incoming: ReceivedReply) -> None:
            self.incoming = list(incoming)

        def ready(self) -> dict[str, None]:
            return dict.fromkeys(names)

        profiles = ready

        def missing(self) -> dict[str, str]:
            return {}

        def poll(self, *kinds: Any) -> Any:
            while self.incoming:
                yield self.incoming.pop(0)

    def driven(*incoming: ReceivedReply) -> tuple[Any, list[ReceivedReply]]:
        coordinator, folded = Coordinator(RoundRules(1, min_clients=1, target=2)), list[ReceivedReply]()
        begun = coordinator.receive(Begin(1, names, 0.0))
        control = RunControl(told.append)
        driver = DrivenRound(
            coordinator, Pool(*incoming), control, 1, dict.fromkeys(names), names, 1,
            ask=lambda asked: None, fold=folded.append,
        )  # fmt: skip
        return RoundDriver(driver).run(begun), folded

    whole = ReceivedReply("edge-1", TrainRequest, 1, b"sum", "", 3, rows=rows)
    end, folded = driven(whole)
    assert (end.accepted, folded) == (("ann", "ben"), [whole])
    assert ClientDone(1, "ann", 11) in told
    alone = ReceivedReply("ann", TrainRequest, 1, b"", "", 1)
    last = ReceivedReply("cleo", TrainRequest, 1, b"", "", 1)
    end, folded = driven(alone, whole, last)
    assert (end.accepted, folded) == (("ann", "cleo"), [alone, last])
    assert "ann among them" in dict(end.failed)["ben"]
