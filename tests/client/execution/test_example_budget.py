"""A client's budget: written before anything leaves, kept over restarts, and no server can ask for more."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from headwater.client.execution.execute import evaluate, execute
from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import DirectoryStore, MemoryStore, SharedStore
from headwater.compression.dense import DenseCodec
from headwater.config import load_federation
from headwater.config.codec import DenseCodec as DenseSettings
from headwater.data.federated import ClientData
from headwater.errors import StorageError
from headwater.privacy.accounting import price
from headwater.privacy.events import Everyone, PoissonSample, StepsReleased
from headwater.proto.plan_json import plan_from_json, plan_to_json
from headwater.proto.wire import decode_reply
from headwater.protocol.failures import FailureCode
from headwater.protocol.messages import (
    ClientFailure,
    ClientPlan,
    EncodedUpdate,
    EvaluateRequest,
    FisherPlan,
    TrainRequest,
)
from headwater.seeds.keys import Key
from tests.support.runs import tiny_federation

pytest.importorskip("dp_accounting", reason="the extra headwater[privacy]")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    path = tiny_federation(tmp_path_factory.mktemp("fed"))
    return ClientRuntime.open(load_federation(path, ["data.validation_fraction=0.0", *given()]))


def given(**changes):
    values = {"noise_multiplier": 2.0, "delta": 1e-3, "noise": '"reproducible"'} | changes
    text = ", ".join(f"{name} = {value}" for name, value in values.items())
    return ["training.batch_size=2", f"training.privacy={{{text}}}"]


@pytest.fixture
def runtime(opened, tmp_path):
    """With other settings, on the same model and rows."""

    def of(**changes):
        loaded = opened.context.loaded
        privacy = loaded.settings.training.privacy.model_copy(update=changes)
        training = loaded.settings.training.model_copy(update={"privacy": privacy})
        settings = loaded.settings.model_copy(update={"training": training})
        context = replace(opened.context, loaded=replace(loaded, settings=settings))
        return ClientRuntime(opened.run, context, opened.data, opened.root)

    return of


def request(runtime, round=1, **changes):
    state, settings = runtime.context.initial_state(), runtime.context.loaded.settings
    whole = TrainRequest(
        run=runtime.run,
        round=round,
        client="ann",
        spec=runtime.context.spec.fingerprint(),
        state_sha256=state.sha256(),
        state=DenseCodec("fp32").encode(state, key=Key.root(0)),
        accepted_round=0,
        plan=ClientPlan(settings.training, DenseSettings(kind="dense")),
    )
    return replace(whole, **changes)


def answered(runtime, store, round=1, **changes):
    (answer,) = execute([request(runtime, round, **changes)], store, runtime)
    return decode_reply(answer.data, max_bytes=10**7)


@pytest.mark.parametrize("make", [MemoryStore, DirectoryStore, SharedStore])
def test_a_client_declines_the_round_that_would_overspend(runtime, tmp_path, make):
    place = () if make is MemoryStore else (tmp_path / "kept",)
    store, free = make(*place), runtime()
    assert isinstance(first := answered(free, store), EncodedUpdate)
    assert not {"loss", "first_loss", "last_loss"} & set(first.metrics)  # of the rows, without noise
    (event,) = store.load_spent("ann")
    rows = len(free.data.client("ann").train)
    assert event == StepsReleased(1, event.release, first.steps, 1.0, 2.0, PoissonSample(2 / rows), True)
    two = price([event, replace(event, round=2, release="other")], 1e-3, "add-or-remove").epsilon
    tight = runtime(epsilon=two * 1.001)
    store = make(*place) if place else store  # as after a restart
    assert isinstance(answered(tight, store, 2), EncodedUpdate)
    declined = answered(tight, store, 3)
    assert isinstance(declined, ClientFailure)
    assert declined.failure.code is FailureCode.PRIVACY_SPENT
    assert "budget" in declined.failure.sentence()
    assert [e.round for e in store.load_spent("ann")] == [1, 2]
    assert store.load_spent("bob") == ()


def test_what_is_trained_again_with_new_noise_is_paid_again(runtime):
    for noise, lines in (("reproducible", 1), ("system", 2)):
        store = MemoryStore()
        replies = [answered(runtime(noise=noise), store) for _ in range(2)]
        assert (replies[0].delta == replies[1].delta) == (noise == "reproducible")
        assert len(store.load_spent("ann")) == lines


@pytest.mark.parametrize(
    "lie", [{"privacy": None}, {"max_grad_norm": 2.0}, {"privacy": {"noise_multiplier": 1e-3}}]
)
def test_a_server_cannot_ask_for_less_privacy_than_the_file(runtime, lie):
    honest, store = runtime(), MemoryStore()
    training = honest.context.loaded.settings.training
    if lie.get("privacy"):
        lie = {"privacy": training.privacy.model_copy(update=lie["privacy"])}
    plan = ClientPlan(training.model_copy(update=lie), DenseSettings(kind="dense"))
    refused = answered(honest, store, plan=plan)
    assert isinstance(refused, ClientFailure)
    assert refused.failure.code is FailureCode.BAD_REQUEST
    assert store.load_spent("ann") == ()


def test_a_server_cannot_ask_for_what_has_no_noise(runtime):
    """Squared gradients of the rows beside the noised ones, or metrics of the validation split."""
    honest, store = runtime(), MemoryStore()
    training = honest.context.loaded.settings.training
    refused = answered(
        honest, store, plan=ClientPlan(training, DenseSettings(kind="dense"), fisher=FisherPlan(4, 1.0))
    )
    assert isinstance(refused, ClientFailure)
    assert refused.failure.code is FailureCode.BAD_REQUEST
    assert store.load_spent("ann") == ()
    rows = honest.data.client("ann").train
    honest.data = SimpleNamespace(client=lambda name: ClientData(rows[1:], rows[:1]), has=lambda name: True)
    whole = request(honest)
    asked = EvaluateRequest(whole.run, 0, "ann", whole.spec, whole.state_sha256, whole.state)
    (answer,) = evaluate([asked], store, honest)
    refused = decode_reply(answer.data, max_bytes=10**7)
    assert isinstance(refused, ClientFailure)
    assert refused.failure.code is FailureCode.BAD_REQUEST


def test_rows_are_counted_and_cut_whole(runtime):
    """How many windows a text has hangs on the text: no number that is sent tells it."""
    honest, store = runtime(), MemoryStore()
    first, second, *others = honest.data.client("ann").train
    one = object()
    train = [replace(first, row=one), replace(second, row=one), *others]
    honest.data = SimpleNamespace(client=lambda name: ClientData(train, ()), has=lambda name: True)
    assert honest.profile("ann").train_examples == len(train) - 1
    update = answered(honest, store, plan=replace(request(honest).plan, rows=2))
    assert update.examples == 2
    (event,) = store.load_spent("ann")
    assert event.sampling == Everyone()  # two rows, of which each step expects two


def test_a_smaller_batch_is_priced_as_it_is_drawn(runtime):
    """A planner may cut steps and batches for a weak device."""
    honest, store = runtime(), MemoryStore()
    training = honest.context.loaded.settings.training.cut(1, 1)
    answered(honest, store, plan=ClientPlan(training, DenseSettings(kind="dense")))
    (event,) = store.load_spent("ann")
    rows = len(honest.data.client("ann").train)
    assert (event.steps, event.sampling) == (1, PoissonSample(1 / rows))


def test_nothing_is_trained_without_its_line(runtime, tmp_path):
    """Neither where the ledger cannot be written, nor where it cannot be read."""

    class Full(MemoryStore):
        def add_spent(self, client, event):
            raise StorageError("the ledger", expected="a disk with room", got="a full one")

    assert isinstance(answered(runtime(), Full()), ClientFailure)
    store = DirectoryStore(tmp_path)
    answered(runtime(), store)
    (path,) = tmp_path.glob("*.privacy.jsonl")
    path.write_bytes(b'{"event": "steps"}\n')
    refused = answered(runtime(), store, 2)
    assert isinstance(refused, ClientFailure)
    assert refused.failure.code is FailureCode.STORAGE_FAILED


def test_a_plan_carries_it_and_older_plans_are_as_they_were(runtime):
    plan = request(runtime()).plan
    assert plan_from_json(plan_to_json(plan)) == plan
    without = replace(plan, training=plan.training.model_copy(update={"privacy": None}))
    assert "privacy" not in plan_to_json(without)
