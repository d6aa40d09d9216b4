"""Nothing that a client learned is lost or counted twice, whatever dies whenever.

A world of one client and one server plays random games: rounds open and close, tasks and replies are
dropped, delayed and duplicated, updates are accepted or refused, the client is killed, loses power or has a
full disk at any file operation. Training is not reproducible: each attempt learns something else. Oracle,
in float64, after every step:

    sum of accepted decoded updates + what the client holds back = sum of what the store took

What the store *took* is read from its file after a crash: it must be the old state or the new one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from headwater.client.execution.store import DirectoryStore
from headwater.compression.feedback import FeedbackState, compensate, is_stale, repeat, sent, settle
from headwater.compression.feedback_file import to_pieces
from headwater.errors import StorageError
from headwater.state import AdapterState, StateSpec, TensorSpec
from tests.support.crash_points import crash_points
from tests.support.faults import CRASHES, Disk, How


def to_bytes(state):
    return b"".join(to_pieces(state))


SPEC = StateSpec.of([TensorSpec("a", (3, 2), "lora_a"), TensorSpec("b", (2,), "vector")])


def state_of(values):
    return AdapterState.from_vector(SPEC, torch.from_numpy(values))


def decode(envelope):
    """What the server reads: the two largest values of eight, in bfloat16-like steps."""
    return np.frombuffer(envelope[8:], np.float32)


def encode(values, serial):
    kept = np.zeros_like(values)
    largest = np.argsort(-np.abs(values))[:2]
    kept[largest] = (values[largest] * 64).round() / 64
    return serial.to_bytes(8, "little") + kept.tobytes()


@dataclass
class World:
    """One game."""

    chance: random.Random
    folder: object
    power: bool
    faults: bool = True
    durable: bool = True
    open: int = 0
    decided: bool = True
    last_accepted: int = 0
    accepted: set = field(default_factory=set)
    total: np.ndarray = field(default_factory=lambda: np.zeros(SPEC.numel))
    learned: np.ndarray = field(default_factory=lambda: np.zeros(SPEC.numel))
    tasks: list = field(default_factory=list)
    replies: list = field(default_factory=list)
    left: dict = field(default_factory=dict)
    largest: float = 0.0
    trainings: int = 0
    crashes: int = 0
    full: int = 0

    def __post_init__(self):
        self.restart()

    def restart(self):
        self.store = DirectoryStore(self.folder, durable=self.durable)

    # --- the server -------------------------------------------------------------------------------

    def next_round(self):
        self.open += self.chance.choice([1, 1, 2])  # the client is not asked in every round
        self.decided = False
        if self.chance.random() < 0.9:
            self.tasks.append((self.open, self.last_accepted))

    def receive(self):
        if not self.replies:
            return
        round, envelope = self.chance.choice(self.replies)
        if self.chance.random() < 0.7:
            self.replies.remove((round, envelope))  # else it comes again
        if round != self.open or self.decided:
            return  # late, or a duplicate
        self.decided = True
        if self.chance.random() < 0.7:
            self.total += decode(envelope)
            self.accepted.add(round)
            self.last_accepted = round

    # --- the client -------------------------------------------------------------------------------

    def work(self):
        """Take a task and do as ``client.execute`` does; anything may go wrong in saving."""
        if not self.tasks:
            return
        task = self.tasks[-1] if self.chance.random() < 0.7 else self.chance.choice(self.tasks)
        if self.chance.random() < 0.7:
            self.tasks.remove(task)
        round, accepted_round = task
        before = self.store.load("ann", SPEC)
        if is_stale(before, round):
            return
        if (envelope := repeat(before, round)) is None:
            envelope = self.train(before, round, accepted_round)
        if envelope is not None:
            assert self.left.setdefault(round, envelope) == envelope  # the same bytes for ever
            if self.chance.random() < 0.8:
                self.replies.append((round, envelope))

    def train(self, before, round, accepted_round):
        """The envelope; None if the client died, or could not save."""
        self.trainings += 1
        rng = np.random.default_rng(self.chance.getrandbits(32))
        delta = state_of(rng.standard_normal(SPEC.numel, dtype=np.float32))
        feedback = settle(before, accepted_round)
        whole = compensate(feedback, delta)
        envelope = encode(whole.vector().numpy(), self.trainings)
        after = sent(feedback, round, whole, state_of(decode(envelope).copy()), envelope)
        self.largest = max(self.largest, whole.max_abs())
        how: How = self.chance.choice([*CRASHES, "full"])
        at = self.chance.randint(1, 5) if self.faults and self.chance.random() < 0.5 else None
        failed, returned = None, False
        with Disk(
            self.folder, at=at, how=how, power=random.Random(self.trainings) if self.power else None
        ) as disk:
            try:
                self.store.save("ann", after)
                returned = True
            except StorageError as error:
                failed = error
            if self.power and at is not None and not disk.filled:
                disk.crashed = True  # at the latest just after it
        self.crashes, self.full = self.crashes + disk.crashed, self.full + disk.filled
        if disk.crashed:
            self.restart()
        now = to_bytes(self.store.load("ann", SPEC))
        assert now in (to_bytes(before), to_bytes(after))
        taken = now == to_bytes(after)
        assert taken or not returned
        assert returned or failed or disk.crashed
        assert not failed or "No space left" in str(failed)
        if taken:
            self.learned += delta.vector().double().numpy()
        return envelope if returned else None

    # --- the oracle -------------------------------------------------------------------------------

    def check(self):
        state = self.store.load("ann", SPEC)
        held = np.zeros(SPEC.numel)
        if state.pending is not None:
            held += state.pending.residual_if_accepted.vector().double().numpy()
            if state.pending.round not in self.accepted:
                held += state.pending.sent.vector().double().numpy()
        elif state.residual is not None:
            held += state.residual.vector().double().numpy()
        # three fp32 roundings a training (compensate, residual, roll back), each of half an ulp
        tolerance = 3 * self.trainings * 2.0**-24 * max(1.0, 2 * self.largest)
        assert np.abs(self.total + held - self.learned).max() <= tolerance


def play(seed, folder, steps=40, **how):
    world = World(random.Random(seed), folder, **how)
    for _ in range(steps):
        world.chance.choices([world.next_round, world.work, world.receive, world.restart], [4, 6, 4, 1])[0]()
        world.check()
    assert len(list(folder.iterdir())) <= 1 + world.crashes  # what the last death left is cleared at a start
    world.restart()
    assert len(list(folder.iterdir())) <= 1
    return world


def games(tmp_path, first, count, **how):
    crashes = full = trainings = 0
    for seed in range(first, first + count):
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            world = play(seed, folder, **how)
        except AssertionError as error:
            raise AssertionError(f"game {seed}: {error}") from error
        crashes, full, trainings = crashes + world.crashes, full + world.full, trainings + world.trainings
    return crashes, full, trainings


@pytest.mark.parametrize("power", [False, True])
def test_nothing_is_lost_or_counted_twice(tmp_path, power):
    crashes, full, trainings = games(tmp_path, 0, 150, power=power)
    assert crashes > 150
    assert full > 60
    assert trainings > 800


@pytest.mark.slow
@pytest.mark.parametrize("power", [False, True])
def test_nothing_is_lost_or_counted_twice_in_thousands_of_games(tmp_path, power, capsys):
    count = 2000
    crashes, full, trainings = games(tmp_path, 10_000, count, power=power)
    with capsys.disabled():
        print(f"\n{count} games: {trainings} trainings, {crashes} crashes, {full} full disks")


def test_a_store_that_is_not_durable_fails_this_test_under_power_cuts(tmp_path):
    """The oracle can say no: what a simulation saves without fsync does not survive."""
    with pytest.raises((AssertionError, StorageError)):
        games(tmp_path, 0, 50, power=True, durable=False)


@pytest.mark.parametrize("power", [None, random.Random(1)])
def test_every_point_of_a_save(tmp_path, power):
    old = FeedbackState(state_of(np.ones(8, np.float32)))
    new = sent(old, 1, old.residual, state_of(np.zeros(8, np.float32)), b"e" * 40_000)
    kept = []

    def save(home):
        kept[:] = [DirectoryStore(home)]  # which writes nothing and cannot fail
        kept[0].save("ann", new)

    operations = []
    for point in crash_points(
        save,
        tmp_path,
        prepare=lambda home: DirectoryStore(home).save("ann", old),
        hows=(*CRASHES, "full"),
        power=power,
    ):
        operations.append(point.operation)
        if point.how == "full" and point.crashed:
            assert isinstance(point.error, StorageError)
            assert "ann.feedback" in str(point.error)
            assert "No space left" in str(point.error)
            found = kept[0].load("ann", SPEC)
            last = point.operation == f"fsync {point.home.name}"  # only then has it taken the old one's place
            assert to_bytes(found) == to_bytes(new if last else old)
            kept[0].save("ann", new)  # there is room again: the same process goes on
            assert to_bytes(kept[0].load("ann", SPEC)) == to_bytes(new)
        store = DirectoryStore(point.home)
        found = to_bytes(store.load("ann", SPEC))
        assert found in (to_bytes(old), to_bytes(new))
        if not point.crashed:
            assert found == to_bytes(new)
        assert [p.name for p in point.home.iterdir()] == ["ann.feedback"]
    assert len([o for o in operations if o]) == 7 + 3 + 7 + 7  # before, torn, after, full; three writes
