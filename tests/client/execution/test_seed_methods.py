"""The client path of methods without backprop: scalars, covered parts, noise, states made of coefficients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from headwater.client.execution.execute import evaluate, execute
from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import DirectoryStore, MemoryStore
from headwater.compression.compeft import CompeftCodec
from headwater.compression.dense import DenseCodec
from headwater.compression.seed_state import encode_sums
from headwater.compression.seed_update import decode_scalars
from headwater.config import load_federation
from headwater.config.codec import CompeftCodec as CompeftSettings
from headwater.config.codec import DenseCodec as DenseSettings
from headwater.config.training import KseedTraining, MezoTraining
from headwater.errors import ConfigError, ModelError
from headwater.merging.coverage import covered
from headwater.proto.wire import decode_reply
from headwater.protocol.failures import Failure, FailureCode
from headwater.protocol.messages import (
    ClientFailure,
    ClientPlan,
    EncodedUpdate,
    EvaluateRequest,
    Payload,
    TrainRequest,
)
from headwater.seeds.coefficients import FINE_BITS, SeedCoefficients, SeedPlan, directions_of
from headwater.seeds.directions import Directions
from headwater.seeds.keys import Key
from headwater.seeds.seeded_state import SeededState
from headwater.state import AdapterState
from headwater.training.cohort import CohortTrainer, TrainResult
from tests.support.runs import OWNERS, tiny_federation

KSEED = KseedTraining(kind="kseed", seeds=64, max_steps=6, learning_rate=1e-2, batch_size=4)
SEEDS = SeedPlan(0, 64, "rademacher", 15, 6)
COMPEFT = CompeftSettings(kind="compeft", density=0.05)
PLAN = ClientPlan(KSEED, COMPEFT, seeds=SEEDS)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    return ClientRuntime.open(load_federation(tiny_federation(tmp_path_factory.mktemp("fed"))))


@pytest.fixture(scope="module")
def seeded_state(runtime):
    """A server's: all zero."""
    origin = runtime.context.initial_state()
    directions = directions_of(SEEDS, runtime.root, origin.spec.numel)
    return SeededState(origin, directions, SEEDS.unit_bits + FINE_BITS, np.zeros(64, np.int64))


def fresh(runtime):
    """The same runtime after a restart: nothing in memory."""
    return ClientRuntime(runtime.run, runtime.context, runtime.data, runtime.root)


def moved(seeded_state, seed):
    """The span after a round in which ten seeds moved."""
    draw = np.random.default_rng(seed)
    change = np.zeros(64, np.int64)
    change[draw.choice(64, 10, replace=False)] = draw.integers(-(2**20), 2**20, 10)
    return seeded_state.plus(0, change)


def sent(seeded_state, since=None, version=0):
    sums = None if since is None else since.sums
    return encode_sums(
        seeded_state.sums,
        sums,
        version=version,
        distribution=seeded_state.directions.distribution,
        unit_bits=seeded_state.unit_bits,
    )


def request(runtime, state, payload, client="ann", round=1, plan=PLAN, accepted=0):
    return TrainRequest(
        run=runtime.run,
        round=round,
        client=client,
        spec=runtime.context.spec.fingerprint(),
        state_sha256=state.sha256(),
        state=payload,
        accepted_round=accepted,
        plan=plan,
    )


def dense(runtime, **changes):
    state = runtime.context.initial_state()
    return request(runtime, state, DenseCodec("fp32").encode(state, key=Key.root(0)), **changes)


def one(answers):
    (answer,) = answers
    return decode_reply(answer.data, max_bytes=10**6)


class Fixed(CohortTrainer):
    """Trains nothing: gives what it is told to."""

    def __init__(self, delta, noise=0.0):
        self.delta, self.noise = delta, noise

    def train(self, tasks, *, key):
        for task in tasks:
            self.task = task
            yield TrainResult(task.client, self.delta, len(task.examples), noise=self.noise)


@pytest.fixture
def trains(runtime, monkeypatch):
    def as_told(delta, noise=0.0):
        trainer = Fixed(delta, noise)
        monkeypatch.setattr(type(runtime.context), "trainer", lambda self, training: trainer)
        return trainer

    return as_told


# --- scalars --------------------------------------------------------------------------------------


def test_a_kseed_round_costs_some_bytes_and_is_repeated_with_the_same(runtime, tmp_path):
    store = DirectoryStore(tmp_path)
    first = one(execute([dense(runtime)], store, runtime))
    assert isinstance(first, EncodedUpdate)
    assert first.delta.codec == "scalars.v1"
    assert len(first.delta.body) < 40
    found = decode_scalars(first.delta, SEEDS)
    assert len(found.seeds) == first.steps == 6
    assert "noise" not in first.metrics
    again = one(execute([dense(runtime)], DirectoryStore(tmp_path), fresh(runtime)))
    assert again.delta == first.delta
    assert list(tmp_path.iterdir()) == []  # no residual, no file


def test_the_trainer_is_given_the_federations_directions(runtime, trains):
    trainer = trains(SeedCoefficients.of(SEEDS, [(3, 5)]))
    update = one(execute([dense(runtime)], MemoryStore(), runtime))
    assert trainer.task.directions == directions_of(SEEDS, runtime.root, runtime.context.spec.numel)
    assert decode_scalars(update.delta, SEEDS).coefficients.tolist() == [5]


def test_scalars_beyond_the_plan_do_not_leave(runtime, trains):
    trains(SeedCoefficients.of(SEEDS, [(3, 40_000)]))
    assert "32767" in one(execute([dense(runtime)], MemoryStore(), runtime)).reason
    trains(AdapterState.zeros(runtime.context.spec))
    assert "expected scalars" in one(execute([dense(runtime)], MemoryStore(), runtime)).reason


def test_a_residual_outlives_rounds_of_scalars(runtime, trains):
    """A client that is switched from deltas to scalars and back loses nothing of what it held back."""
    store, spec = MemoryStore(), runtime.context.spec
    delta = AdapterState.from_vector(spec, torch.linspace(-1, 1, spec.numel))
    plain = replace(PLAN, seeds=None)
    trains(delta)
    one(execute([dense(runtime, plan=plain)], store, runtime))
    held = store.load("ann", spec).pending
    trains(SeedCoefficients.of(SEEDS, [(3, 5)]))
    # round 1 was refused: everything comes back; round 2 says so, not only round 3
    one(execute([dense(runtime, round=2, accepted=0)], store, runtime))
    pending = store.load("ann", spec).pending
    assert pending.round == 2
    assert pending.residual_if_accepted == held.residual_if_accepted + held.sent
    trains(AdapterState.zeros(spec))
    one(execute([dense(runtime, round=3, accepted=2, plan=plain)], store, runtime))
    pending = store.load("ann", spec).pending
    assert (pending.residual_if_accepted + pending.sent - delta).max_abs() < 1e-6


def test_kinds_are_trained_apart_in_one_round(runtime):
    tasks = [
        dense(runtime, client="ann"),
        dense(runtime, client="ben", plan=ClientPlan(runtime.context.loaded.settings.training, COMPEFT)),
        dense(runtime, client="cleo"),
    ]
    answers = {a.client: a.data for a in execute(tasks, MemoryStore(), runtime)}
    assert set(answers) == set(OWNERS)
    for task in tasks:
        alone = one(execute([task], MemoryStore(), runtime))
        assert decode_reply(answers[task.client], max_bytes=10**6).delta == alone.delta


# --- coverage and noise ---------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["tensors", "rank"])
def test_what_is_not_covered_stays_in_the_residual(runtime, trains, part):
    store, spec = MemoryStore(), runtime.context.spec
    delta = AdapterState.from_vector(spec, torch.linspace(-1, 1, spec.numel))
    trains(delta)
    plan = ClientPlan(runtime.context.loaded.settings.training, COMPEFT)
    one(execute([dense(runtime, plan=plan)], store, runtime))  # leaves a residual everywhere
    before = store.load("ann", spec).pending.residual_if_accepted
    limits = {"tensors": (spec.tensors[0].name,)} if part == "tensors" else {"rank": 1}
    mask = covered(spec, limits.get("tensors"), limits.get("rank"))
    trains(AdapterState.zeros(spec))
    update = one(execute([dense(runtime, round=2, accepted=1, plan=replace(plan, **limits))], store, runtime))
    arrived = CompeftCodec(0.05).decode(update.delta, spec).vector()
    assert not arrived[~mask].any()
    assert arrived[mask].any()
    held = store.load("ann", spec).pending.residual_if_accepted.vector()
    assert torch.equal(held[~mask], before.vector()[~mask])
    assert torch.allclose(held + arrived, before.vector(), atol=1e-6)


def test_noise_is_told_by_the_methods_that_have_it(runtime, trains):
    delta = AdapterState.zeros(runtime.context.spec)
    mezo = ClientPlan(MezoTraining(kind="mezo"), COMPEFT)
    trains(delta, noise=0.25)
    assert one(execute([dense(runtime, plan=mezo)], MemoryStore(), runtime)).metrics["noise"] == 0.25
    backprop = ClientPlan(runtime.context.loaded.settings.training, COMPEFT)
    assert "noise" not in one(execute([dense(runtime, plan=backprop)], MemoryStore(), runtime)).metrics
    for bad in (-1.0, float("nan"), float("inf")):
        trains(delta, noise=bad)
        assert "noise" in one(execute([dense(runtime, plan=mezo)], MemoryStore(), runtime)).reason


def test_noise_is_that_of_the_update_as_it_is_sent(runtime, trains):
    """A clipped update has less of it: the square of what it was shortened by."""
    spec = runtime.context.spec
    delta = AdapterState.from_vector(spec, torch.full((spec.numel,), 2.0 / spec.numel**0.5))
    trains(delta, noise=0.25)
    plan = ClientPlan(MezoTraining(kind="mezo"), DenseSettings(kind="dense"), clip_l2=0.5)
    update = one(execute([dense(runtime, plan=plan)], MemoryStore(), runtime))
    assert update.metrics["noise"] == pytest.approx(0.25 / 16, rel=1e-6)


def test_what_a_trainer_refuses_ends_that_task_only(runtime, monkeypatch):
    """An error out of the trainer ends its generator: the clients after it are trained all the same."""

    class Choosy(CohortTrainer):
        def train(self, tasks, *, key):
            for task in tasks:
                if task.client == "ben":
                    raise ModelError("adapter", expected="forward mode", got="none")
                yield TrainResult(task.client, SeedCoefficients.of(SEEDS, [(3, 5)]), len(task.examples))

    monkeypatch.setattr(type(runtime.context), "trainer", lambda self, training: Choosy())
    tasks = [dense(runtime, client=name) for name in OWNERS]
    answers = [decode_reply(a.data, max_bytes=10**6) for a in execute(tasks, MemoryStore(), runtime)]
    assert [a.client for a in answers] == list(OWNERS)
    assert [a.client for a in answers if isinstance(a, ClientFailure)] == ["ben"]
    assert "forward mode" in answers[list(OWNERS).index("ben")].reason


# --- states made of coefficients ------------------------------------------------------------------


def stores(tmp_path):
    return [MemoryStore(), DirectoryStore(tmp_path)]


@pytest.mark.parametrize("kind", ["memory", "directory"])
def test_full_then_incremental_over_restarts(runtime, seeded_state, tmp_path, kind):
    """Each form, in a process that has the last state and in one that has not: the server's bits."""
    store = MemoryStore() if kind == "memory" else DirectoryStore(tmp_path)
    now, before = moved(seeded_state, 1), None
    living = fresh(runtime)
    for round in range(2, 7):
        payload = sent(now) if before is None else sent(now, before, round - 2)
        wanted = now.state()
        task = request(runtime, wanted, payload, round=round)
        assert living.state(task, store) == wanted
        assert fresh(runtime).state(task, store) == wanted
        before, now = now, moved(now, round)
    assert sorted(store.load_sums("ann")) == [3, 4, 5]


def test_only_what_changed_is_drawn(runtime, seeded_state, monkeypatch):
    drawn = []
    combine = Directions.combine
    count = lambda self, seeds, *rest: drawn.append(len(seeds)) or combine(self, seeds, *rest)  # noqa: E731 - short
    first = seeded_state
    for seed in range(9):
        first = moved(first, seed)
    second = moved(first, 10)
    monkeypatch.setattr(Directions, "combine", count)
    living, store = fresh(runtime), MemoryStore()
    living.state(request(runtime, first.state(), sent(first), round=2), store)
    living.state(request(runtime, second.state(), sent(second, first, 1), round=3), store)
    living.state(request(runtime, second.state(), sent(second), client="ben", round=3), store)
    assert drawn == [64, 10]


def test_sums_that_no_member_could_rebuild_are_refused_by_those_that_followed_too(runtime, seeded_state):
    """The change can be added up, what it makes could not: else two members would disagree."""
    sums = np.ones(64, np.int64)
    sums[3] = 2**45
    change = np.zeros(64, np.int64)
    change[3] = 2**45 + 2**44
    first = SeededState(seeded_state.origin, seeded_state.directions, seeded_state.unit_bits, sums)
    second = SeededState(
        seeded_state.origin, seeded_state.directions, seeded_state.unit_bits, sums + change, first.total
    )
    living, store = fresh(runtime), MemoryStore()
    living.state(request(runtime, first.state(), sent(first), round=2), store)
    task = request(runtime, first.state(), sent(second, first, 1), round=3)
    for member in (living, fresh(runtime)):
        with pytest.raises(ConfigError, match="seed coefficients"):
            member.state(task, store)


def test_a_member_that_was_away_and_another_clients_state(runtime, seeded_state):
    """One process, two clients: what one has told helps nobody to a wrong state."""
    store, one_, two = MemoryStore(), moved(seeded_state, 1), moved(moved(seeded_state, 1), 2)
    three = moved(two, 3)
    living = fresh(runtime)
    living.state(request(runtime, one_.state(), sent(one_), client="ben", round=2), store)
    living.state(request(runtime, two.state(), sent(two, one_, 1), client="ben", round=3), store)
    living.state(request(runtime, one_.state(), sent(one_), client="ann", round=2), store)
    late = request(runtime, three.state(), sent(three, one_, 1), client="ann", round=4)
    assert living.state(late, store) == three.state()
    assert sorted(store.load_sums("ann")) == [1, 3]
    assert sorted(store.load_sums("ben")) == [1, 2]


def test_an_evaluation_continues_and_counts_its_own_round(runtime, seeded_state):
    store, first = MemoryStore(), moved(seeded_state, 1)
    second = moved(first, 2)
    train = request(runtime, first.state(), sent(first), round=2)
    one(execute([train], store, fresh(runtime)))
    task = EvaluateRequest(train.run, 2, "ann", train.spec, second.state().sha256(), sent(second, first, 1))
    assert one(evaluate([task], store, fresh(runtime))).examples > 0
    np.testing.assert_array_equal(store.load_sums("ann")[2], second.sums)


@pytest.mark.parametrize("lost", ["all", "damaged", "another"])
def test_a_lost_base_asks_for_everything(runtime, seeded_state, tmp_path, lost):
    store, first = DirectoryStore(tmp_path), moved(seeded_state, 1)
    second = moved(first, 2)
    full = request(runtime, first.state(), sent(first), round=2)
    fresh(runtime).state(full, store)
    (path,) = tmp_path.iterdir()
    if lost == "all":
        path.unlink()
    elif lost == "damaged":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        store.save_sums("ann", 1, second.sums)
    task = request(runtime, second.state(), sent(second, first, 1), round=3)
    failure = one(execute([task], store, fresh(runtime)))
    assert isinstance(failure, ClientFailure)
    assert failure.failure == Failure(FailureCode.NEEDS_FULL_STATE, (1,))
    whole = request(runtime, second.state(), sent(second), round=3)
    assert isinstance(one(execute([whole], store, fresh(runtime))), EncodedUpdate)


def test_a_wrong_hash_is_refused_and_nothing_kept(runtime, seeded_state):
    store, first = MemoryStore(), moved(seeded_state, 1)
    living = fresh(runtime)
    task = replace(request(runtime, first.state(), sent(first), round=2), state_sha256="0" * 64)
    assert "global state" in one(execute([task], store, living)).reason
    assert not store.load_sums("ann")
    hostile = request(runtime, first.state(), Payload("seeds.v1", b"\1\0\0\3"), round=2)
    assert isinstance(one(execute([hostile], store, living)), ClientFailure)
    assert living.state(request(runtime, first.state(), sent(first), round=2), store) == first.state()


def test_the_base_stays_while_answers_do_not_arrive(runtime, seeded_state, tmp_path):
    """Killed after storing, before answering, ten times: the server goes on from the same base."""
    base = moved(seeded_state, 1)
    fresh(runtime).state(request(runtime, base.state(), sent(base), round=2), DirectoryStore(tmp_path))
    now = base
    for round in range(3, 13):
        now = moved(now, round)
        task = request(runtime, now.state(), sent(now, base, 1), round=round)
        for _ in range(2):  # the same task again after the kill
            assert fresh(runtime).state(task, DirectoryStore(tmp_path)) == now.state()
    assert sorted(DirectoryStore(tmp_path).load_sums("ann")) == [1, 10, 11]


def test_coefficients_are_kept_before_anything_is_answered(runtime, seeded_state):
    class Full(MemoryStore):
        def save_sums(self, client, version, sums, base=0):
            raise KeyboardInterrupt  # the process ends here

    first = moved(seeded_state, 1)
    task = request(runtime, first.state(), sent(first), round=2)
    with pytest.raises(KeyboardInterrupt):
        list(execute([task], Full(), fresh(runtime)))


def test_a_task_that_comes_again_writes_nothing(runtime, seeded_state, tmp_path):
    store, first = DirectoryStore(tmp_path), moved(seeded_state, 1)
    task = request(runtime, first.state(), sent(first), round=2)
    fresh(runtime).state(task, store)
    (path,) = tmp_path.iterdir()
    before = path.stat()
    fresh(runtime).state(task, store)
    assert path.stat().st_ino == before.st_ino


def test_more_seeds_from_round_to_round(runtime, seeded_state):
    """decomfl's coefficients grow by the round's seeds."""
    store, short = MemoryStore(), moved(seeded_state, 1)
    longer = short.plus(64, np.array([3, -4, 5], np.int64))
    living = fresh(runtime)
    living.state(request(runtime, short.state(), sent(short), round=2), store)
    task = request(runtime, longer.state(), sent(longer, short, 1), round=3)
    assert living.state(task, store) == longer.state() == fresh(runtime).state(task, store)
    again = request(runtime, short.state(), sent(short), client="ben", round=2)
    assert living.state(again, store) == short.state()
