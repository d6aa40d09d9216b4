"""A client's privacy budget: what its training tells of its rows is written down before it can leave.

The ledger is the client's own and stays on its device (:meth:`ClientStore.load_spent`). A line is written
before the training starts: a process that dies after it has spent without telling anything, which is the safe
side. What a lying server asks must be what the federation file, which the owner can read, promises.
"""

from __future__ import annotations

import secrets

from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import ClientStore
from headwater.config.privacy import ExamplePrivacy
from headwater.config.training import BackpropTraining, Training
from headwater.errors import TrainingError
from headwater.privacy.accounting import Price, price
from headwater.privacy.events import StepsReleased
from headwater.protocol.failures import FailureCode, coded
from headwater.protocol.messages import EvaluateRequest, TrainRequest
from headwater.training.cohort import TrainTask
from headwater.training.private_steps import StepPlan


def spend(request: TrainRequest, task: TrainTask, store: ClientStore, runtime: ClientRuntime) -> None:
    """Write down what this training will tell of each of the client's examples.

    A training whose noise is drawn from the seed is the same when it comes again, and costs nothing then.

    Raises:
        TrainingError: it asks for less privacy than the file, or the budget does not hold it.
        StorageError: the ledger cannot be read or written: nothing may be trained.
        MissingDependency: there is a budget, and no ``dp_accounting`` to hold it.
    """
    training, who = request.plan.training, f"client {request.client}"
    _require_promised(request, runtime, who)
    if not isinstance(training, BackpropTraining) or training.privacy is None or not task.examples:
        return
    assert training.max_grad_norm is not None, "as its settings have it"
    privacy, plan = training.privacy, StepPlan.of(task.examples, training)
    reproducible = privacy.noise == "reproducible"
    event = StepsReleased(
        request.round,
        f"{request.round}-{request.state_sha256}" if reproducible else secrets.token_hex(8),
        plan.steps,
        training.max_grad_norm,
        privacy.noise_multiplier,
        plan.sampling,
        reproducible,
    )
    before = store.load_spent(request.client)
    if reproducible and event in before:
        return
    if privacy.epsilon is not None:
        after = price((*before, event), privacy.delta, "add-or-remove")
        if after.epsilon > privacy.epsilon:
            raise _spent(after, privacy, f"{who}, round {request.round}")
    store.add_spent(request.client, event)


def _spent(after: Price, privacy: ExamplePrivacy, who: str) -> TrainingError:
    error = TrainingError(
        who,
        expected=f"a privacy budget ε of {privacy.epsilon:g} that holds one more round",
        got=f"ε {after.epsilon:.3f} at δ {after.delta:g} after it",
        hint="The client has taken part as often as was promised. More needs a larger epsilon.",
    )
    return coded(error, FailureCode.PRIVACY_SPENT)


def require_unmeasured(request: EvaluateRequest, runtime: ClientRuntime) -> None:
    """Metrics of a client's rows have no noise: no server gets any where the file promises noise.

    Raises:
        TrainingError: it does, and so it has promised that nobody asks.
    """
    if runtime.hides_rows:
        error = TrainingError(
            f"client {request.client}",
            expected="no question for metrics of rows, as the federation file's training.privacy has it",
            got="one",
            hint="Server and client must use the same file.",
        )
        raise coded(error, FailureCode.BAD_REQUEST)


def _require_promised(request: TrainRequest, runtime: ClientRuntime, who: str) -> None:
    """The plan's bound and noise must be those of a method in the file; batches and steps are counted.

    Beside noise nothing else may be asked of the rows: squared gradients (``plan.fisher``) have none.
    """
    promised = {_promise(t) for t in runtime.context.loaded.settings.trainings.values()}
    asks_more = request.plan.fisher is not None and runtime.hides_rows
    if _promise(request.plan.training) not in promised or asks_more:
        error = TrainingError(
            who,
            expected="the noise and max_grad_norm of the federation file's training.privacy, no statistics",
            got="a task with others",
            hint="Server and client must use the same file.",
        )
        raise coded(error, FailureCode.BAD_REQUEST)


def _promise(training: Training) -> tuple[float | None, ExamplePrivacy] | None:
    privacy = training.example_privacy()
    return None if privacy is None else (getattr(training, "max_grad_norm", None), privacy)
