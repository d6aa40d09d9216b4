"""An enrolled device that answers nonsense, or never: no round waits for it, nobody's update is touched."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace

import pytest

from headwater import __version__
from headwater.client.agent.task_handler import TaskHandler
from headwater.client.agent.worker import Worker, WorkerOptions
from headwater.config.agent import load_agent
from headwater.errors import HeadwaterError
from headwater.flower.fleet_client import Delivery, FleetClient
from headwater.proto.wire import decode_reply, decode_request, encode_reply, encode_signed
from headwater.protocol.messages import ClientProfile, EncodedUpdate, ProfileRequest, TrainRequest
from headwater.security.signing import Identity
from tests.faults.fleet import Fleet, Trial, eventually, lines, vector

pytestmark = pytest.mark.faults


class Impostor:
    """Another program with a device's real keys, as its owner may write one."""

    def __init__(self, fleet: Fleet, name: str, trial: Trial) -> None:
        home = fleet.device(name)
        self.name, self._trial = name, trial
        self.identity = Identity.load(home / "state" / "keys")
        self.connection = FleetClient(
            f"localhost:{fleet.network.ports[0]}",
            (home / "ca.pem").read_bytes(),
            self.identity,
            version=__version__,
        )
        self.connection.activate()

    def task(self, within_s: float = 25.0) -> tuple[Delivery, TrainRequest]:
        """The next training task; says who it is on the way."""
        ends_s = time.monotonic() + within_s
        while time.monotonic() < ends_s:
            delivery = self.connection.receive()
            if delivery is None:
                time.sleep(0.1)
                continue
            request = decode_request(delivery.parts["envelope"], delivery.parts["state"])
            if isinstance(request, TrainRequest):
                return delivery, request
            if isinstance(request, ProfileRequest):
                self.introduce(delivery)
        raise AssertionError("no task came")

    def introduce(self, delivery: Delivery) -> None:
        self.connection.reply(delivery, self.signed(encode_reply(self.profile())))

    def profile(self) -> ClientProfile:
        """As its own agent would say it: all three have nothing but the vector."""
        row = json.loads((self._trial.state / "profiles.json").read_text())[0]
        return ClientProfile(**{**row, "client": self.name})

    def signed(self, reply: bytes) -> bytes:
        return encode_signed(reply, self.identity.sign_reply(reply))


def kept(fleet: Fleet, name: str) -> bytes:
    """The last update that a device sent."""
    folder = fleet.device(name) / "state" / "outbox"
    path = max(folder.glob("*.reply"), key=lambda p: p.stat().st_mtime_ns)
    return path.read_bytes()[32:]


def test_lies(fleet, note, outcome):
    """The device's own agent comes back at the end, and the run ends as if nothing had been."""
    trial = Trial(fleet, vector(10))
    trial.reach(3)
    agent, name = fleet.agents[2], fleet.names[2]
    agent.kill()
    time.sleep(1.5)
    held = trial.round
    own, other = kept(fleet, name), kept(fleet, fleet.names[0])
    mine = decode_reply(own, max_bytes=len(own))
    assert isinstance(mine, EncodedUpdate)

    def lies(liar: Impostor, request: TrainRequest) -> dict[str, bytes]:
        now = replace(mine, round=request.round)
        return {
            "random bytes": os.urandom(5000),
            "a signed reply of random bytes": liar.signed(os.urandom(5000)),
            "an update with a wrong signature": encode_signed(own, bytes(64)),
            "its own update of an earlier round": liar.signed(own),
            "another client's update": liar.signed(other),
            "an old update under this round's number": liar.signed(encode_reply(now)),
            "an update of 64 MB": liar.signed(bytes(64 << 20)),
            "nothing at all": b"",
        }

    count, seen = 8, ""
    for number in range(count):
        liar = Impostor(fleet, name, trial)
        delivery, request = liar.task()
        title, lie = list(lies(liar, request).items())[number]
        try:
            if lie:
                liar.connection.reply(delivery, lie)
            seen = _error(fleet, name) if lie else "then it is gone"
        except HeadwaterError as error:
            seen = f"refused: {error.got}"
        liar.connection.close()
        note(f"an enrolled client answers {title}", seen[:90])
        assert trial.round <= held + 1
    fleet.restart(agent)
    outcome(trial.ends_right())


def _error(fleet: Fleet, name: str) -> str:
    time.sleep(1.0)
    status = fleet.status()
    assert status is not None
    return next(c.last_error for c in status.clients if c.client == name)


def test_answering_twice(fleet, note, outcome):
    """A device that sends every answer twice, and each reply's twin under a fresh signature."""
    agent, name = fleet.agents[2], fleet.names[2]
    agent.end()
    trial = Trial(fleet, vector(6), wait=False)
    settings = load_agent(fleet.device(name) / "agent.toml")
    liar = Impostor(fleet, name, trial)
    state = str(settings.state)
    worker = Worker(WorkerOptions(name, str(settings.data), state, threads=None, nice=0))
    handler = TaskHandler(settings, worker, liar.identity.sign_reply, lambda text: None)
    twice = 0
    try:
        ends_s = time.monotonic() + 60
        while not (trial.folder / "summary.json").exists() and time.monotonic() < ends_s:
            delivery = liar.connection.receive()
            if delivery is None:
                time.sleep(0.05)
                continue
            data = handler.answer(delivery.parts)
            for _ in range(2):
                try:
                    liar.connection.reply(delivery, data)
                    twice += 1
                except HeadwaterError:
                    pass
    finally:
        worker.close()
        liar.connection.close()
        agent.start()
    note("a client answers every task twice", times=twice // 2)
    outcome(trial.ends_right())


def test_one_that_never_answers(fleet, note, outcome):
    """It is asked in every round from the moment it is there; each round ends at its deadline."""
    agent, name = fleet.agents[2], fleet.names[2]
    trial = Trial(fleet, vector(60, least=2, more="deadline_s = 3.0"))
    trial.reach(1)
    agent.kill()
    liar = Impostor(fleet, name, trial)
    liar.task()
    begun, held, asked = time.monotonic(), trial.round, 1
    while trial.round < held + 3:
        assert time.monotonic() < begun + 40, fleet.daemon.tail(40)
        liar.connection.heartbeat()
        delivery = liar.connection.receive()
        if delivery is not None and delivery.kind == "query":
            liar.introduce(delivery)
        asked += delivery is not None and delivery.kind == "train"
        time.sleep(0.2)
    took_s = time.monotonic() - begun
    liar.connection.close()
    fleet.restart(agent)
    note(
        "a client that is there and never answers, with a deadline of 3 s: rounds close without it",
        f"asked {asked} times, three rounds in {took_s:.0f} s",
    )
    assert asked >= 3
    assert took_s > 5
    trial.end()
    outcome({"said": "60 rounds, none waits longer"})


def test_one_that_never_answers_in_a_round_of_the_fewest(fleet, note, outcome):
    """Two are needed and two are there when the round begins; one is mute, and a third comes."""
    note(
        "a client that never answers in a round that began with no more clients than it needs; a third comes"
    )
    first, _, last = fleet.agents
    first.kill()
    last.kill()
    trial = Trial(fleet, vector(4, least=2, more="deadline_s = 3.0"), wait=False)
    eventually(lambda: (trial.state / "profiles.json").exists(), 60, "who the other one is")
    liar = Impostor(fleet, fleet.names[2], trial)
    try:
        liar.task()
        fleet.restart(first)
        trial.reach(1, 25)
        outcome({"said": "the third takes its place"})
    finally:
        liar.connection.close()
        fleet.restart(first)
        fleet.restart(last)


def test_revoked_in_the_middle(fleet, note, outcome):
    guest = fleet.network.add_device("guest", fleet.folder / "data" / "nothing.jsonl")
    guest.start()
    eventually(
        lambda: any(c.client == "guest" and c.state == "online" for c in fleet.status().clients),
        60,
        "the guest",
        0.2,
    )
    trial = Trial(fleet, vector(10))
    trial.reach(3)
    eventually(lambda: trial.open_round > trial.saved, 30, "an open round")
    with fleet.network.control() as control:
        control.revoke("guest")
    held = trial.round
    trial.end()
    guest.end()
    took_part = [r["round"] for r in lines(trial.folder / "rounds.jsonl") if "guest" in r["clients"]]
    note(
        "a client is revoked in the middle of a round",
        f"revoked in round {held + 1}, last in {took_part[-1]}",
    )
    assert 1 in took_part
    assert max(took_part) <= held + 1
    outcome({"said": "10 rounds, none waits for it"})
