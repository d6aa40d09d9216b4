"""Whoever is asked, misses, loses or crashes: every client has the server's bits, for at most dense bytes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import MemoryStore
from headwater.compression.since import SINCE, read_since
from headwater.config.codec import BlockCodec, CompeftCodec, DenseCodec, LosslessCodec
from headwater.errors import DecodeError, UpdateRejected
from headwater.protocol.failures import FailureCode, coded, failure_of
from headwater.protocol.messages import ClientProfile, EvaluateRequest
from headwater.seeds.keys import Key
from headwater.server.clients.downlink import Downlink
from headwater.server.metrics import Tracker
from headwater.server.storage.checkpoint import Checkpoint
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.strategies.broadcast import broadcast
from headwater.strategies.strategy import ServerState

SPEC = StateSpec.of([TensorSpec("v", (300,), "vector"), TensorSpec("w", (10, 10), "head")])
ORIGIN = AdapterState.from_vector(SPEC, torch.linspace(-1, 1, SPEC.numel))
RUN, KEY = "r" * 32, Key.root(1)
DENSE, SPARSE = DenseCodec(kind="dense"), CompeftCodec(kind="compeft", density=0.05)
LOSSLESS, EIGHT = LosslessCodec(kind="lossless"), BlockCodec(kind="int8")
NAMES = ("ann", "ben", "cid", "old", "far")
"""``old`` is one format behind; ``far`` makes another initial state, as on another processor."""


class Client:
    """A process of its own, with a store of its own."""

    def __init__(self, name: str) -> None:
        self.name, self.store = name, MemoryStore()
        self.origin = ORIGIN if name != "far" else ORIGIN.map(lambda t: torch.nextafter(t, t + 1))
        self.restart()

    def restart(self) -> None:
        settings = SimpleNamespace(codec=SimpleNamespace(down=DENSE))
        context = SimpleNamespace(
            spec=SPEC, loaded=SimpleNamespace(settings=settings), initial_state=lambda: self.origin
        )
        self.runtime = ClientRuntime(RUN, context, None, KEY)

    @property
    def profile(self) -> ClientProfile:
        reads = () if self.name == "old" else self.runtime.reads
        return ClientProfile(self.name, 1, 1, "0" * 64, SPEC.fingerprint(), reads=reads)

    def has(self, state, payload) -> AdapterState:
        sha256 = state.sha256()
        request = EvaluateRequest(RUN, 7, self.name, SPEC.fingerprint(), sha256, payload)
        return self.runtime.state(request, self.store)


class World:
    """A server and its clients, of which it knows what they answer."""

    def __init__(self, folder, codec=SPARSE) -> None:
        self.clients = {name: Client(name) for name in NAMES}
        self.server, self.codec, self.folder = ServerState(0, ORIGIN), codec, folder
        self.history, self.sent = [self.server], dict.fromkeys(NAMES, 0)
        self.down, self.asks, self.lost = Downlink(KEY, ORIGIN.sha256()), 0, set()
        self.save()

    def save(self) -> None:
        self.checkpoint = Checkpoint(RUN, self.server, Tracker("loss"), down=self.down.record())
        self.checkpoint.save(self.folder / "checkpoint")

    def crash(self) -> None:
        """A new process goes on from what is on disk."""
        loaded = Checkpoint.load(self.folder / "checkpoint", SPEC, RUN)
        assert loaded is not None
        assert loaded.server == self.checkpoint.server
        assert loaded.down == self.checkpoint.down
        self.server, self.down = loaded.server, Downlink(KEY, ORIGIN.sha256())
        self.down.restore(loaded.down)

    def round(self, seed: int) -> None:
        draw = torch.randn(SPEC.numel, generator=torch.Generator().manual_seed(seed)) * 0.1
        target = replace(
            self.server,
            round=self.server.round + 1,
            state=self.server.state + AdapterState.from_vector(SPEC, draw),
        )
        before = self.server
        self.server, increment = broadcast(before, target, self.codec, key=KEY)
        if increment is not None:
            self.down.moved(before.state, self.server.state, increment)
        self.history.append(self.server)
        self.save()

    def back(self, steps: int) -> None:
        state = self.history[max(0, len(self.history) - 1 - steps)].state
        self.server = replace(self.server, state=state, residual=None)
        self.save()

    def ask(self, names, heard: bool = True) -> None:
        """Each is sent the present state; what it lacks is repaired by asking once more."""
        profiles = {name: client.profile for name, client in self.clients.items()}
        out = self.down.open(self.server, self.codec, {}, profiles)
        answered = {}
        for name in names:
            for last in (False, True):
                payload = out.payload(name)
                self.asks += 1
                self.sent[name] += len(payload.body)
                assert len(payload.body) <= SPEC.nbytes
                try:
                    assert self.clients[name].has(out.base, payload).sha256() == self.server.state.sha256()
                    answered[name] = out.base.sha256()
                    break
                except DecodeError as error:
                    assert not last, "asked again it has all of it"
                    assert name == "far" or name in self.lost, "who has lost nothing lacks nothing"
                    self.lost.discard(name)
                    failure = failure_of(error)
                    assert failure.code is FailureCode.NEEDS_FULL_STATE
                    again = coded(UpdateRejected(name), failure.code, *failure.numbers)
                    assert self.down.needs_full(name, again, 0)
        if heard:
            self.down.note_held(answered)


NAMES_OF = st.sets(st.sampled_from(NAMES), min_size=1)
STEPS = st.one_of(
    st.tuples(st.just("ask"), NAMES_OF, st.booleans()),
    st.tuples(st.just("round"), st.integers(0, 1000)),
    st.tuples(st.just("crash")),
    st.tuples(st.just("restart"), st.sampled_from(NAMES)),
    st.tuples(st.just("lose"), st.sampled_from(NAMES)),
    st.tuples(st.just("back"), st.integers(0, 5)),
    st.tuples(st.just("codec"), st.sampled_from([DENSE, SPARSE, LOSSLESS, EIGHT])),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, min_size=3, max_size=25))
def test_every_client_has_the_servers_bits(tmp_path_factory, steps):
    world = World(tmp_path_factory.mktemp("run"))
    for what, *how in steps:
        if what == "ask":
            world.ask(sorted(how[0]), how[1])
        elif what == "round":
            world.round(how[0])
        elif what == "crash":
            world.save()
            world.crash()
        elif what == "restart":
            world.clients[how[0]].restart()
        elif what == "lose":
            world.clients[how[0]].store = MemoryStore()
            world.clients[how[0]].restart()
            world.lost.add(how[0])
        elif what == "back":
            world.back(how[0])
        else:
            world.codec = how[0]
    world.ask(NAMES)
    assert sum(world.sent.values()) <= world.asks * SPEC.nbytes


@pytest.mark.parametrize("codec", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_one_version_travels_once_and_the_initial_one_never(tmp_path, codec):
    world = World(tmp_path, codec)
    for number in range(4):
        for _ in range(3):  # an evaluation, a training, a training that is asked again
            world.ask(("ann", "ben"))
            world.clients["ann"].restart()
        world.round(number)
    nothing, whole = 10, 3 * (SPEC.nbytes + 2 * 10) + 3 * 10
    assert world.sent["ann"] == world.sent["ben"]
    if codec is DENSE:
        assert world.sent["ann"] == whole
    else:
        assert world.sent["ann"] < 3 * (0.25 * SPEC.nbytes) + 9 * nothing


def test_who_lost_its_state_is_sent_changes_again_once_it_has_answered(tmp_path):
    world, sizes = World(tmp_path), []
    world.ask(("ann",))
    world.clients["ann"].store = MemoryStore()
    for number in range(3):
        world.round(number)
        if number == 1:
            world.clients["ann"].store = MemoryStore()
            world.clients["ann"].restart()
            world.lost.add("ann")
        before = world.sent["ann"]
        world.ask(("ann",))
        sizes.append(world.sent["ann"] - before)
    assert sizes[1] > SPEC.nbytes // 2 > 2 * max(sizes[0], sizes[2])


def test_who_missed_rounds_is_sent_the_cheaper_of_catch_up_and_whole(tmp_path):
    world = World(tmp_path)
    world.ask(("ann",))
    kinds = []
    for number in range(60):
        world.round(number)
        out = world.down.open(world.server, SPARSE, {}, {n: c.profile for n, c in world.clients.items()})
        payload = out.payload("ann")
        kinds.append(payload.codec == SINCE)
        if kinds[-1]:
            assert len(read_since(payload, SPEC)[1]) == number + 1
        assert len(payload.body) <= SPEC.nbytes
    assert (kinds[0], kinds[-1]) == (True, False)
    assert sorted(kinds, reverse=True) == kinds
    assert len(world.down.record().links) < 60  # what nobody would be sent is not kept


def test_an_older_client_and_one_behind_an_edge_aggregator(tmp_path):
    world = World(tmp_path)
    profiles = {n: c.profile for n, c in world.clients.items()}
    profiles["ben"] = replace(profiles["ben"], edge="edge-1")
    out = world.down.open(world.server, SPARSE, {}, profiles)
    assert out.payload("ann").codec == SINCE
    assert {out.payload(n).codec for n in ("old", "unknown")} == {"dense-fp32.v1"}
    assert out.payload("ben").codec == "lossless.v1"
    world.down.note_held({"old": out.base.sha256(), "ben": out.base.sha256()})
    assert out.payload("ben").codec == SINCE
    assert out.payload("old").codec == "dense-fp32.v1"
    profiles["ann"] = replace(profiles["ann"], reads=(SINCE, "dense-fp32.v1"))  # without compeft
    world.round(1)
    out = world.down.open(world.server, SPARSE, {}, profiles)
    assert (out.payload("ann").codec, out.payload("cid").codec) == ("dense-fp32.v1", SINCE)


def test_a_damaged_link_in_the_checkpoint_is_found(tmp_path):
    world = World(tmp_path)
    world.round(1)
    (link,) = world.down.record().links
    path = tmp_path / "checkpoint"
    content = path.read_bytes()
    place = content.index(link.body)
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(Exception, match="does not match its hash"):
        Checkpoint.load(path, SPEC, RUN)
