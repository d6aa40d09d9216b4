"""A user's own Trainer as an agent: the bytes of a simulation, the owner's data and the owner's stop."""

from __future__ import annotations

import pytest
from transformers import TrainerCallback

from headwater.client.agent.device_runtime import DeviceRuntimes
from headwater.client.agent.in_process import InProcessWorker
from headwater.client.agent.task_clock import AgentStopping
from headwater.client.agent.task_handler import TaskHandler
from headwater.client.agent.worker import WorkerOptions
from headwater.client.execution.execute import execute
from headwater.client.execution.store import MemoryStore
from headwater.config import load_federation
from headwater.errors import ModelError
from headwater.hf.learner import TrainerLearner
from headwater.hf.refused import require_rows
from headwater.hf.runs import Script
from headwater.proto.wire import decode_reply
from headwater.protocol.failures import FailureCode, failure_of
from headwater.protocol.messages import ClientFailure, ClientProfile, EncodedUpdate
from headwater.training.context import TrainingContext
from tests.client.agent.devices import TextDevice, ask, sign
from tests.hf.scripts import TABLES, model, script_federation, trainer
from tests.support.runs import rows

ROWS = rows("ann", 10)


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    folder = tmp_path_factory.mktemp("script")
    script_federation(folder)
    return TrainingContext.open(load_federation(folder / "federation.toml"))


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    found = tmp_path_factory.mktemp("device")
    return TextDevice(found / "theirs", found / "ours", TABLES)


def worker(device, script):
    device.settings.state.mkdir(exist_ok=True)
    options = WorkerOptions("ann", str(device.settings.data), str(device.settings.state), nice=0)
    return InProcessWorker(options, script.into, script.examples)


def handler(device, made, **more):
    log = []
    return TaskHandler(device.settings, made, sign, log.append, **more), log


def test_as_an_agent_it_sends_the_bytes_of_a_simulation(device):
    """The rows of the agent file's [data] are those of the simulation's client; so is every bit."""
    theirs = model(device.theirs)
    script = Script(lambda ours: TrainerLearner(lambda c, found: trainer(device.theirs, found, theirs), ours))
    simulated = device.simulated()
    simulated.context = script.into(simulated.context, simulated.data)
    made = worker(device, script)
    answers, log = handler(device, made)
    try:
        assert ask(answers, device.profile()) == simulated.profile("ann"), log
        (ours,) = headwater_answers(device, simulated)
        update = ask(answers, device.train(simulated.context))
    finally:
        made.release()
    assert isinstance(update, EncodedUpdate), log
    assert update.delta == ours.delta
    assert update.examples == ours.examples


def headwater_answers(device, runtime):
    request = device.train(runtime.context)
    return [decode_reply(a.data, max_bytes=10**7) for a in execute([request], MemoryStore(), runtime)]


def test_a_trainer_with_data_of_its_own_weighs_as_many_examples(device, context):
    one = trainer(device.theirs, ROWS, model(device.theirs))
    script = Script(lambda ours: TrainerLearner(lambda c, found: one, ours), examples=require_rows(one))
    made = worker(device, script)
    answers, log = handler(device, made)
    try:
        profile = ask(answers, device.profile())
        assert isinstance(profile, ClientProfile), log
        assert (profile.train_examples, profile.validation_examples) == (len(ROWS), 0)
        update = ask(answers, device.train(context, round=2))
        assert isinstance(update, EncodedUpdate), log
        assert (update.examples, update.steps) == (len(ROWS), 2)
    finally:
        made.release()


def test_an_owner_who_stops_is_heard_between_two_steps(device, context):
    class Late(TrainerCallback):
        steps = 0

        def on_step_end(self, args, state, control, **more):
            Late.steps += 1

    one = trainer(device.theirs, ROWS, model(device.theirs), callbacks=[Late], num_train_epochs=50)
    script = Script(lambda ours: TrainerLearner(lambda c, found: one, ours), examples=len(ROWS))
    made = worker(device, script)
    answers, _ = handler(device, made, should_stop=lambda: Late.steps >= 3)
    try:
        assert isinstance(ask(answers, device.profile()), ClientProfile)
        with pytest.raises(AgentStopping):
            ask(answers, device.train(context, round=3))
    finally:
        made.release()
    assert Late.steps == 3


def test_an_agent_without_a_script_says_so(device):
    with pytest.raises(ModelError, match=r"expected an agent that a script of the owner's starts") as raised:
        DeviceRuntimes("ann", device.settings.data).open(device.joined(), device.theirs / "bert")
    assert failure_of(raised.value).code is FailureCode.SCRIPT_MISSING


def test_a_run_that_leaves_nothing_to_scripts_is_refused_by_one(tmp_path):
    plain = TextDevice(tmp_path / "theirs", tmp_path / "ours", {"model": TABLES["model"]})
    made = worker(plain, Script(lambda ours: None, examples=3))
    answers, log = handler(plain, made)
    try:
        assert isinstance(ask(answers, plain.profile()), ClientFailure)
    finally:
        made.release()
    assert any("expected 'script', which leaves the training to a script" in line for line in log), log
