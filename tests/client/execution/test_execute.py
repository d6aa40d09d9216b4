"""The one client path: repeats, refusals, strangers, and cohorts that change no bit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headwater.client.execution.execute import evaluate, execute
from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import DirectoryStore, MemoryStore, SharedStore
from headwater.compression.compeft_gaps import CompeftGapsCodec
from headwater.compression.dense import DenseCodec
from headwater.compression.table import codec_for
from headwater.config import load_federation
from headwater.config.codec import CompeftCodec as CompeftSettings
from headwater.config.codec import DenseCodec as DenseSettings
from headwater.errors import DataError, StorageError
from headwater.proto.wire import decode_reply
from headwater.protocol.messages import (
    ClientFailure,
    ClientPlan,
    EncodedUpdate,
    EvaluateRequest,
    TrainRequest,
)
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from tests.support.runs import OWNERS, tiny_federation


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    return ClientRuntime.open(load_federation(tiny_federation(tmp_path_factory.mktemp("fed"))))


def request(runtime, client="ann", round=1, accepted=0, **changes):
    state = runtime.context.initial_state()
    settings = runtime.context.loaded.settings
    whole = TrainRequest(
        run=runtime.run,
        round=round,
        client=client,
        spec=runtime.context.spec.fingerprint(),
        state_sha256=state.sha256(),
        state=DenseCodec("fp32").encode(state, key=Key.root(0)),
        accepted_round=accepted,
        plan=ClientPlan(settings.training, settings.codec.up),
    )
    return replace(whole, **changes)


def one(answers):
    (answer,) = answers
    return answer.data


def decoded(data):
    return decode_reply(data, max_bytes=10**6)


def delta(runtime, data):
    return CompeftGapsCodec().decode(decoded(data).delta, runtime.context.spec)


@pytest.mark.parametrize("make", [MemoryStore, DirectoryStore, SharedStore])
def test_a_repeated_task_gives_the_same_bytes(runtime, tmp_path, make):
    place = () if make is MemoryStore else (tmp_path,)
    store = make(*place)
    first = one(execute([request(runtime)], store, runtime))
    assert isinstance(decoded(first), EncodedUpdate)
    assert one(execute([request(runtime)], store, runtime)) == first
    other = make(*place) if place else store  # as after a restart
    assert one(execute([request(runtime)], other, runtime)) == first


def test_what_is_sent_plus_what_is_held_back_is_what_was_learned(runtime):
    """Over accepted and refused rounds: nothing is lost, nothing is counted twice."""
    store = MemoryStore()
    plain = replace(request(runtime), plan=replace(request(runtime).plan, codec=DenseSettings(kind="dense")))
    learned = AdapterState.zeros(runtime.context.spec)
    arrived = AdapterState.zeros(runtime.context.spec)
    accepted = 0
    for number, taken in enumerate([True, False, True, True, False], start=1):
        dense = one(execute([replace(plain, round=number)], MemoryStore(), runtime))
        learned = learned + DenseCodec("fp32").decode(decoded(dense).delta, runtime.context.spec)
        data = one(execute([request(runtime, round=number, accepted=accepted)], store, runtime))
        if taken:
            arrived, accepted = arrived + delta(runtime, data), number
    last = store.load("ann", runtime.context.spec)
    held = last.pending.residual_if_accepted + last.pending.sent  # the last one was refused
    assert (arrived + held - learned).max_abs() < 1e-6
    assert held.max_abs() > 0


def test_the_same_round_from_another_base_is_trained_anew(runtime):
    """The organiser went back in the middle of the round: the old bytes would be refused for ever."""
    store, spec = MemoryStore(), runtime.context.spec
    first = one(execute([request(runtime)], store, runtime))
    pending = store.load("ann", spec).pending
    back = runtime.context.initial_state().map(lambda tensor: tensor + 0.25)
    state = {"state_sha256": back.sha256(), "state": DenseCodec("fp32").encode(back, key=Key.root(0))}
    again = one(execute([request(runtime, **state)], store, runtime))
    assert again != first
    assert decoded(again).base_sha256 == back.sha256()
    assert one(execute([request(runtime, **state)], store, runtime)) == again
    plain = replace(
        request(runtime, **state),
        plan=ClientPlan(request(runtime).plan.training, DenseSettings(kind="dense")),
    )
    dense = DenseCodec("fp32").decode(decoded(one(execute([plain], MemoryStore(), runtime))).delta, spec)
    held = store.load("ann", spec).pending
    # what was learned from the first base is not lost: it was held back, and is now among what is
    learned = pending.residual_if_accepted + pending.sent + dense
    assert (held.residual_if_accepted + held.sent - learned).max_abs() < 1e-6


def test_an_older_round_than_the_pending_one_is_refused(runtime):
    store = MemoryStore()
    one(execute([request(runtime, round=2)], store, runtime))
    assert "round 1" in decoded(one(execute([request(runtime, round=1)], store, runtime))).reason


def test_a_task_that_ends_after_a_newer_one_was_answered_is_refused(runtime, monkeypatch):
    """Past a deadline two tasks of one client may train at once; the older must not undo the newer."""
    store = MemoryStore()
    trainer = runtime.context.trainer(request(runtime).plan.training)
    newer = []

    class Slow(type(trainer)):
        def train(self, tasks, *, key):
            results = list(super().train(tasks, key=key))
            if tasks[0].plan == request(runtime).plan and not newer:
                newer.append(None)
                newer[0] = one(execute([request(runtime, round=2)], store, runtime))
            yield from results

    slow = Slow(runtime.context.model, runtime.context.pad)
    monkeypatch.setattr(type(runtime.context), "trainer", lambda self, training: slow)
    late = decoded(one(execute([request(runtime, round=1)], store, runtime)))
    assert isinstance(late, ClientFailure)
    assert "after those answered" in late.reason
    assert one(execute([request(runtime, round=2)], store, runtime)) == newer[0]


CODECS = (CompeftSettings(kind="compeft", density=0.05), DenseSettings(kind="dense"))


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_sent_is_within_the_clip_in_every_round(runtime, codec):
    """The residual grows while updates are refused; the bound holds for what leaves all the same."""
    store, bound = MemoryStore(), 0.02
    plan = replace(request(runtime).plan, codec=codec, clip_l2=bound)
    for number in range(1, 8):
        data = one(execute([request(runtime, round=number, plan=plan)], store, runtime))
        update = codec_for(codec).decode(decoded(data).delta, runtime.context.spec)
        assert 0 < update.norm() <= bound * (1 + 1e-6)


def test_a_cohort_gives_the_bits_of_cohorts_of_one(runtime):
    together = execute([request(runtime, c) for c in OWNERS], MemoryStore(), runtime)
    apart = [one(execute([request(runtime, c)], MemoryStore(), runtime)) for c in OWNERS]
    for data, other in zip(together, apart, strict=True):
        assert decoded(data.data).delta == decoded(other).delta


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"run": "another"}, "expected run"),
        ({"spec": "0" * 64}, "adapter spec"),
        ({"client": "zoe"}, "unknown name"),
        ({"state_sha256": "0" * 64}, "global state"),
        ({"round": 2}, "expected round 1"),
    ],
)
def test_a_wrong_task_fails_alone(runtime, changes, match):
    tasks = [request(runtime, "ben"), request(runtime, **changes)]
    answers = [decoded(a.data) for a in execute(tasks, MemoryStore(), runtime)]
    failures = [a for a in answers if isinstance(a, ClientFailure)]
    assert len(answers) == 2
    assert len(failures) == 1
    assert match in failures[0].reason


def test_hostile_state_bytes_are_a_failure(runtime):
    bad = request(runtime)
    bad = replace(bad, state=replace(bad.state, body=bad.state.body[:-1]))
    assert isinstance(decoded(one(execute([bad], MemoryStore(), runtime))), ClientFailure)
    bad = replace(bad, state=replace(bad.state, codec="nonsense.v9"))
    assert isinstance(decoded(one(execute([bad], MemoryStore(), runtime))), ClientFailure)


def test_a_damaged_store_is_a_devices_failure_and_a_simulations_end(runtime, tmp_path):
    device = replace(runtime, simulated=False)
    store = DirectoryStore(tmp_path)
    one(execute([request(runtime)], store, runtime))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StorageError):
        store.load("ann", runtime.context.spec)
    answer = decoded(one(execute([request(runtime, round=2)], store, device)))
    assert isinstance(answer, ClientFailure)
    with pytest.raises(StorageError):
        list(execute([request(runtime, round=2)], store, runtime))


@pytest.mark.parametrize("simulated", [False, True])
def test_data_that_show_themselves_wrong_in_a_round_are_told_as_at_the_start(runtime, monkeypatch, simulated):
    """An owner cannot change the federation file; an organiser, who simulates, can."""
    wrong = DataError("row 3", expected="fewer tokens", got="99", hint="Raise data.max_tokens.")

    def client(name):
        raise wrong

    monkeypatch.setattr(runtime.data, "client", client)
    answers = execute([request(runtime)], MemoryStore(), replace(runtime, simulated=simulated))
    ask = "Only the organiser can change data.max_tokens: ask for it."
    assert (ask in decoded(one(answers)).reason) == (not simulated)


def test_evaluation(runtime):
    train = request(runtime)
    task = EvaluateRequest(train.run, 3, "ann", train.spec, train.state_sha256, train.state)
    good, bad = (
        decoded(a.data) for a in evaluate([task, replace(task, client="zoe")], MemoryStore(), runtime)
    )
    assert good.examples == len(runtime.data.client("ann").validation) > 0
    assert 0 <= good.metrics["accuracy"] <= 1
    assert isinstance(bad, ClientFailure)


def test_evaluations_of_a_cohort_share_passes(runtime, monkeypatch):
    """And each measures what it measures alone; a stranger among them fails alone."""
    train = request(runtime)
    tasks = [
        EvaluateRequest(train.run, 3, client, train.spec, train.state_sha256, train.state)
        for client in ("ann", "zoe", "ben", "cleo")
    ]
    alone = {
        found.client: found
        for task in tasks
        for found in (decoded(one(evaluate([task], MemoryStore(), runtime))),)
    }
    model, passes = runtime.context.model, []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda batch: passes.append(len(batch)) or forward(batch))
    answers = list(evaluate(tasks, MemoryStore(), replace(runtime, cohort=8)))
    assert len(passes) == 1
    assert sorted(a.client for a in answers) == sorted(alone)
    for answer in answers:
        found, before = decoded(answer.data), alone[answer.client]
        if answer.client == "zoe":
            assert found == before
            continue
        assert found.examples == before.examples > 0
        assert found.metrics == pytest.approx(before.metrics, rel=1e-5)


def test_profile_tells_sizes_only(runtime):
    profile = runtime.profile("ann")
    assert profile.train_examples + profile.validation_examples == OWNERS["ann"]
    assert profile.model_sha256 == runtime.context.base_sha256
