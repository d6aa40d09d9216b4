"""In which order replies arrive, whatever order they were asked for and answered in."""

from __future__ import annotations

import pytest
from flwr.app import Message, MessageType
from hypothesis import given
from hypothesis import strategies as st

from headwater.config.codec import DenseCodec
from headwater.config.devices import DeviceSettings
from headwater.config.training import NoopTraining
from headwater.flower import assume_task_identity, pack
from headwater.proto.wire import encode_request
from headwater.protocol.messages import ClientPlan, Payload, TrainRequest
from headwater.seeds.keys import Key
from headwater.simulation.devices.certain import CertainTasks
from headwater.simulation.devices.clock import VirtualClock
from headwater.simulation.devices.fleet import Fleet
from headwater.simulation.devices.grid import DeviceGrid
from headwater.simulation.devices.tasks import SimulatedTask

NAMES = ("ann", "ben", "cleo", "dora")


class Inner:
    """Answers what it is asked for, with messages numbered as they come."""

    def __init__(self):
        self.sent, self.executed = {}, []

    def push_messages(self, messages):
        ids = [f"m{len(self.sent) + i}" for i in range(len(messages))]
        for message_id, message in zip(
            ids, messages, strict=True
        ):  # as Flower's links: they know it by its id
            assert not message.metadata.message_id
            message.metadata.__dict__["_message_id"] = message_id
            self.sent[message_id] = message
        return ids

    def pull_messages(self, ids):
        assert all(self.sent[i].metadata.message_id == i for i in ids)
        self.executed += ids
        return [Message(pack(reply=b"x" * 100), reply_to=self.sent[i]) for i in ids]


def message(client):
    plan = ClientPlan(NoopTraining(kind="noop"), DenseCodec(kind="dense"))
    request = TrainRequest("run", 1, client, "0" * 64, "0" * 64, Payload("dense-fp32.v1", b"state"), 0, plan)
    envelope, state = encode_request(request)
    return Message(pack(envelope=envelope, state=state), 2 + NAMES.index(client), MessageType.TRAIN)


def world(seconds, certain=None):
    """A grid on which the computation of each client takes so long."""
    assume_task_identity(run_id=1, node_id=1)
    settings = DeviceSettings.model_validate({"tokens_per_s": 1.0})
    clock, inner = VirtualClock(), Inner()
    fleet = Fleet(settings, Key.root(0), 1, None, {})
    return (
        clock,
        inner,
        DeviceGrid(inner, clock, fleet, lambda request: seconds[request.client], certain=certain),
    )


def arrivals(order, seconds):
    clock, _, grid = world(seconds)
    ids = {message_id: c for c in order for message_id in grid.push_messages([message(c)])}
    found = []
    while len(found) < len(order):
        if (message_id := grid.arrived([MessageType.TRAIN])) is None:
            clock.sleep(float("inf"))
            continue
        (reply,) = grid.pull_messages([message_id])
        assert reply.metadata.reply_to_message_id == message_id
        found.append((ids[message_id], clock()))
    return found


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1], ("cleo", "ann", "dora", "ben")])
def test_of_replies_that_arrive_together_the_first_by_name_comes_first(order):
    assert arrivals(order, dict.fromkeys(NAMES, 3.0)) == [(name, 3.0) for name in NAMES]
    seconds = {"ann": 5.0, "ben": 2.0, "cleo": 5.0, "dora": 1.0}
    assert arrivals(order, seconds) == [("dora", 1.0), ("ben", 2.0), ("ann", 5.0), ("cleo", 5.0)]


def test_what_is_given_up_before_its_computation_ends_is_not_executed():
    clock, inner, grid = world({"ann": 1.0, "ben": 9.0, "cleo": 1.0, "dora": 9.0})
    ids = dict(zip(grid.push_messages([message(c) for c in NAMES]), NAMES, strict=True))
    clock.sleep(4.0)
    assert clock() == 1.0
    while (message_id := grid.arrived([MessageType.TRAIN])) is not None:
        grid.pull_messages([message_id])
        del ids[message_id]
    clock.sleep(4.0)
    grid.cancel(ids)
    assert sorted(ids.values()) == ["ben", "dora"]
    assert len(inner.executed) == 2
    spent = {s.client: (s.ended, s.compute, s.answered) for s in grid.take_spent()}
    assert spent["ann"] == spent["cleo"] == (1_000_000, 1_000_000, True)
    assert spent["ben"] == spent["dora"] == (4_000_000, 4_000_000, False)


@pytest.mark.parametrize("rules", [CertainTasks(target=2), CertainTasks(deadline_s=2.5)])
def test_what_may_not_be_wanted_is_given_to_no_engine_before_its_time(rules):
    """Or what a client keeps would hang on how far the engine came before the round was closed."""
    clock, inner, grid = world({"ann": 1.0, "ben": 2.0, "cleo": 3.0, "dora": 9.0}, rules)
    ids = dict(zip(NAMES, grid.push_messages([message(c) for c in NAMES]), strict=True))

    def given():
        return {m.metadata.dst_node_id - 2 for m in inner.sent.values()}

    assert given() == {0, 1}
    for name in ("ann", "ben"):
        clock.sleep(float("inf"))
        (reply,) = grid.pull_messages([ids[name]])
    grid.cancel([ids["cleo"]])
    assert given() == {0, 1}
    clock.sleep(float("inf"))
    assert given() == {0, 1, 3}
    (reply,) = grid.pull_messages([ids["dora"]])
    assert not reply.has_error()


@given(
    seconds=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    target=st.integers(1, 4),
    fails=st.sets(st.sampled_from(NAMES), max_size=2),
)
def test_what_is_certain_is_computed_before_the_round_can_close(seconds, target, fails):
    """Whoever failed may be asked again and be in at once: the round closes no earlier than so."""
    device = Fleet(DeviceSettings(), Key.root(0), 1, None, {}).device("ann")
    tasks = [
        SimulatedTask(c, "train", device, 0, 0, s * 1_000_000) for c, s in zip(NAMES, seconds, strict=True)
    ]
    for task in tasks:
        task.drops_after = 0 if task.client in fails else None
        task.begin(resumes=False)
    arrivals = sorted((0 if t.failure else t.computed, t.client) for t in tasks)
    certain = CertainTasks(target).among(tasks, [], round=1, now=0)
    expected = [not t.failure and (t.computed, t.client) <= arrivals[target - 1] for t in tasks]
    assert certain == expected
