"""Both local grids keep Flower's Grid contract and give the same replies."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import pytest
from flwr.app import Message, MessageType

from headwater.client.execution import execute as client_path
from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import MemoryStore, SharedStore
from headwater.compression.dense import DenseCodec
from headwater.config import load_federation
from headwater.errors import DataError
from headwater.flower import pack, unpack
from headwater.proto.wire import decode_reply, encode_request
from headwater.protocol.messages import (
    ClientPlan,
    EncodedUpdate,
    EvaluateRequest,
    Evaluation,
    ProfileRequest,
    TrainRequest,
)
from headwater.seeds.keys import Key
from headwater.simulation.grid import FIRST_NODE, InProcessGrid, WorkersGrid
from headwater.simulation.workers import WorkerPool
from tests.support.federation_text import vector_text
from tests.support.runs import bare_federation

NAMES = ("client-0000", "client-0001", "client-0002")
TYPES = {
    ProfileRequest: MessageType.QUERY,
    TrainRequest: MessageType.TRAIN,
    EvaluateRequest: MessageType.EVALUATE,
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_federation(bare_federation(tmp_path_factory.mktemp("fed")))


@pytest.fixture(scope="module")
def runtime(loaded):
    return ClientRuntime.open(loaded)


@pytest.fixture(scope="module")
def pool(loaded, tmp_path_factory):
    with WorkerPool(2, loaded, tmp_path_factory.mktemp("store")) as pool:
        yield pool


@pytest.fixture(params=["inprocess", "workers"])
def grid(request, runtime):
    if request.param == "inprocess":
        return InProcessGrid(NAMES, runtime, MemoryStore())
    return WorkersGrid(NAMES, request.getfixturevalue("pool"))


@pytest.fixture
def inprocess(runtime):
    return InProcessGrid(NAMES, runtime, MemoryStore())


def message(request, node):
    envelope, state = encode_request(request)
    return Message(pack(envelope=envelope, state=state), node, TYPES[type(request)])


def node(client):
    return FIRST_NODE + int(client.removeprefix("client-"))


def profile(runtime, client):
    return message(ProfileRequest(runtime.run), node(client))


def train(runtime, client, round=1, *, feedback=True):
    state, settings = runtime.context.initial_state(), runtime.context.loaded.settings
    encoded = DenseCodec("fp32").encode(state, key=Key.root(0))
    codec = settings.codec.up.model_copy(update={"error_feedback": feedback})
    plan = ClientPlan(settings.training, codec)
    spec = runtime.context.spec.fingerprint()
    task = TrainRequest(runtime.run, round, client, spec, state.sha256(), encoded, 0, plan)
    return message(task, node(client))


def evaluation(runtime, client):
    state = runtime.context.initial_state()
    encoded = DenseCodec("fp32").encode(state, key=Key.root(0))
    spec = runtime.context.spec.fingerprint()
    return message(EvaluateRequest(runtime.run, 1, client, spec, state.sha256(), encoded), node(client))


def content(reply):
    return decode_reply(unpack(reply.content, "reply")[0], max_bytes=10**6)


def timeless(found):
    """A reply without the seconds it took."""
    if isinstance(found, EncodedUpdate):
        return replace(found, metrics={n: v for n, v in found.metrics.items() if "seconds" not in n})
    return found


def pull_all(grid, ids):
    """Replies by the id they answer."""
    left, found = set(ids), {}
    while left:
        for reply in grid.pull_messages(left):
            answered = reply.metadata.reply_to_message_id
            assert answered in left
            left.remove(answered)
            found[answered] = reply
    return found


def test_nodes_are_there_from_the_start(grid):
    assert list(grid.get_node_ids()) == [node(client) for client in NAMES]


def test_every_reply_says_which_message_it_answers(grid, runtime):
    messages = [profile(runtime, NAMES[2]), train(runtime, NAMES[0]), evaluation(runtime, NAMES[1])]
    ids = list(grid.push_messages(messages))
    assert len(set(ids)) == 3
    found = pull_all(grid, ids)
    for message_id, asked in zip(ids, messages, strict=True):
        reply = found[message_id]
        assert reply.metadata.reply_to_message_id == message_id == asked.metadata.message_id
        assert reply.metadata.src_node_id == asked.metadata.dst_node_id
        assert reply.metadata.message_type == asked.metadata.message_type
        assert not reply.has_error()
    assert content(found[ids[0]]).client == NAMES[2]
    assert isinstance(content(found[ids[1]]), EncodedUpdate)
    assert isinstance(content(found[ids[2]]), Evaluation)


def test_a_pull_gives_only_what_was_asked_for_and_only_once(grid, runtime):
    ids = list(grid.push_messages([profile(runtime, client) for client in NAMES]))
    for message_id, client in reversed(list(zip(ids, NAMES, strict=True))):
        (reply,) = pull_all(grid, [message_id]).values()
        assert content(reply).client == client
    assert list(grid.pull_messages(ids)) == []
    assert list(grid.pull_messages(["unheard-of"])) == []
    assert list(grid.pull_messages([])) == []


def test_nothing_is_executed_before_a_pull(inprocess, runtime, monkeypatch):
    done = []
    original = runtime.context.trainer

    def trainer(training):
        done.append(training)
        return original(training)

    monkeypatch.setattr(
        "headwater.training.context.TrainingContext.trainer", lambda self, training: trainer(training)
    )
    ids = list(inprocess.push_messages([train(runtime, client) for client in NAMES]))
    assert done == []
    assert len(list(inprocess.pull_messages(ids))) == 1  # one at a time, so that replies never pile up
    assert len(done) == 1


def test_a_failure_to_profile_is_a_failure_by_name(inprocess, runtime, monkeypatch):
    def refuse(self, name):
        raise DataError(f"client {name}", expected="rows", got="none")

    monkeypatch.setattr(ClientRuntime, "profile", refuse)
    (message_id,) = inprocess.push_messages([profile(runtime, NAMES[0])])
    (reply,) = inprocess.pull_messages([message_id])
    found = content(reply)
    assert (found.client, found.reason) == (NAMES[0], f"client {NAMES[0]}: expected rows, got none")


def test_send_and_receive_waits_for_all(grid, runtime):
    replies = list(grid.send_and_receive([profile(runtime, client) for client in NAMES]))
    assert sorted(content(reply).client for reply in replies) == list(NAMES)
    assert list(grid.send_and_receive([])) == []


def test_a_thousand_messages_in_the_order_of_pulling(inprocess, runtime):
    clients = [NAMES[i % 3] for i in range(1000)]
    ids = list(inprocess.push_messages([profile(runtime, client) for client in clients]))
    assert len(set(ids)) == 1000
    for message_id, client in reversed(list(zip(ids, clients, strict=True))):
        (reply,) = inprocess.pull_messages([message_id])
        assert reply.metadata.reply_to_message_id == message_id
        assert content(reply).client == client


def test_workers_reply_what_this_process_replies(inprocess, runtime, pool):
    spread = WorkersGrid(NAMES, pool)
    for make in (profile, partial(train, feedback=False), evaluation):
        replies = []
        for grid in (inprocess, spread):
            ids = list(grid.push_messages([make(runtime, client) for client in NAMES]))
            found = pull_all(grid, ids)
            replies.append([timeless(content(found[i])) for i in ids])
        assert replies[0] == replies[1]


class Names(tuple):
    """Counts who walks through all of them."""

    walks = 0

    def __contains__(self, name):
        Names.walks += 1
        return super().__contains__(name)

    def __iter__(self):
        Names.walks += 1
        return super().__iter__()


def test_work_for_a_few_looks_at_no_other_client(tmp_path, monkeypatch):
    """With ten asked of 30,000, walks through all names took more than half of the time."""
    loaded = load_federation(bare_federation(tmp_path, size=10, data={"clients": 300}))
    runtime = ClientRuntime.open(loaded)
    names = runtime.data.clients
    grid = InProcessGrid(names, runtime, MemoryStore())
    runtime.data.clients = Names(names)
    monkeypatch.setattr(Names, "walks", 0)
    asked = [f"client-{k:04}" for k in (299, 17, 150)]
    work = (profile, train, evaluation)
    replies = list(grid.send_and_receive([make(runtime, name) for name in asked for make in work]))
    assert sorted(content(reply).client for reply in replies) == sorted(asked * len(work))
    assert Names.walks == 0
    assert asked[0] in runtime.data.clients  # it counts
    assert Names.walks == 1


def test_what_is_cancelled_is_not_done(inprocess, runtime, monkeypatch):
    trained = []
    original = client_path._update

    def update(member, *rest):
        trained.append(member.request.client)
        return original(member, *rest)

    monkeypatch.setattr(client_path, "_update", update)
    ids = list(inprocess.push_messages([train(runtime, client) for client in NAMES]))
    inprocess.cancel(ids[1:])
    assert len(pull_all(inprocess, ids[:1])) == 1
    assert list(inprocess.pull_messages(ids)) == []
    assert trained == [NAMES[0]]


def test_a_cancelled_round_leaves_nothing_to_the_next(grid, runtime):
    first = list(grid.push_messages([train(runtime, client) for client in NAMES]))
    answered = []
    while not answered:
        answered = [reply.metadata.reply_to_message_id for reply in grid.pull_messages(first)]
    grid.cancel(set(first) - set(answered))
    second = list(grid.push_messages([train(runtime, client, round=2) for client in NAMES]))
    found = pull_all(grid, second)
    assert {content(reply).round for reply in found.values()} == {2}
    assert list(grid.pull_messages(first)) == []


def test_tasks_of_overlapping_rounds_wait_together(inprocess, runtime):
    """As in buffered rounds, whose clients are asked while others are at work."""
    ids = list(
        inprocess.push_messages([train(runtime, n, round=r) for n, r in zip(NAMES, (1, 2, 1), strict=True)])
    )
    found = pull_all(inprocess, ids)
    assert [(content(found[i]).client, content(found[i]).round) for i in ids] == [
        *zip(NAMES, (1, 2, 1), strict=True)
    ]
    assert all(isinstance(content(found[i]), EncodedUpdate) for i in ids)


def test_a_store_outlives_its_grid(runtime, tmp_path):
    replies = []
    for _ in range(2):  # as after a restart: the same task, the same bytes
        grid = InProcessGrid(NAMES, runtime, SharedStore(tmp_path))
        (reply,) = grid.send_and_receive([train(runtime, NAMES[0])])
        replies.append(unpack(reply.content, "reply"))
    assert replies[0] == replies[1]


def test_bytes_that_are_no_request_are_an_error_not_a_crash(grid, runtime):
    broken = Message(pack(envelope=b"\xff" * 9, state=b""), node(NAMES[0]), MessageType.TRAIN)
    replies = {
        r.metadata.reply_to_message_id: r for r in grid.send_and_receive([broken, profile(runtime, NAMES[1])])
    }
    assert sorted(r.has_error() for r in replies.values()) == [False, True]


def test_an_error_does_not_wait_for_running_work(tmp_path):
    """As after a second Ctrl-C: the workers are gone, whatever they were doing."""
    (tmp_path / "f.toml").write_text(vector_text("cut off"))
    loaded, began = load_federation(tmp_path / "f.toml"), []

    def interrupted():
        with WorkerPool(1, loaded, tmp_path) as pool:
            began.append(pool._executor.submit(time.sleep, 600))
            while not began[0].running():
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert began[0].exception() is not None
