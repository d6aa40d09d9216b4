"""BackpropTrainer: AdamW, or SGD, on the adapter of one client after another."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headwater.adapters.adamw8bit import adamw8bit
from headwater.config.training import BackpropTraining
from headwater.errors import TrainingError
from headwater.seeds.keys import Key
from headwater.state import AdapterState, TensorSpec
from headwater.tasks.batches import Batch, by_row
from headwater.training.cohort import CohortTrainer, TrainResult, TrainTask
from headwater.training.example_gradients import ExampleGradients
from headwater.training.fisher import client_fisher
from headwater.training.minibatches import contained, diverged, minibatches, summary
from headwater.training.private_steps import PrivateSteps, StepPlan
from headwater.training.trainable_part import TrainablePart

if TYPE_CHECKING:  # not to load Transformers, which takes seconds, where there is no base model
    from headwater.adapters.model import AdaptedModel

HINT = "Lower training.learning_rate, or set max_grad_norm."


class BackpropTrainer(CohortTrainer):
    """Trains with AdamW (arXiv 1711.05101; β = 0.9, 0.999, ε = 1e-8), a fresh optimiser for each task.

    Order of the examples and dropout masks come from ``key.child("client", name)``. With ``proximal_mu``
    the gradient of ½μ‖w − w₀‖² is added (FedProx, arXiv 1812.06127, eq. 2). The loss of a step is the
    mean over the targets of its batch; with ``micro_batch_size`` its rows are computed some at a time and
    their gradients added up, which is the same but for the order of sums and what is dropped. With
    ``plan.tensors`` or ``plan.rank`` only what they cover is trained, and the norm that ``max_grad_norm``
    cuts is that of its gradient; delta and Fisher are zero outside. ``optimizer = "adamw8bit"`` is
    bitsandbytes' AdamW8bit; ``"sgd"`` has one rate for the whole task, and a task's ``correction``
    (SCAFFOLD) is added to the gradient that ``max_grad_norm`` has cut. With ``privacy`` the steps are those
    of :class:`~headwater.training.private_steps.PrivateSteps`, and no result tells of losses.

    Args:
        model: the adapted model; the trainer owns its values while it trains.
        pad: token id that fills a batch.
    """

    def __init__(self, model: AdaptedModel, pad: int) -> None:
        self._model, self._pad = model, pad

    def train(self, tasks: Sequence[TrainTask], *, key: Key) -> Iterator[TrainResult]:
        """Train each task by itself, in order.

        A loss, gradient or value that is not finite, a client without examples, or what torch cannot do
        (want of memory), ends that task with an error; a task of another training or spec raises.

        Raises:
            TrainingError: a plan of another kind of training.
            SpecMismatch: a state of another spec.
            ModelError: gradient checkpointing with an adapter that cannot.
            MissingDependency: 8-bit moments without what they need.
        """
        for task in tasks:
            yield self._train(task, key.child("client", task.client))

    def _train(self, task: TrainTask, key: Key) -> TrainResult:
        training = task.plan.training
        if not isinstance(training, BackpropTraining):
            raise TrainingError(
                f"client {task.client}", expected="training.kind 'backprop'", got=training.kind
            )
        self._model.load(task.state)
        return contained(task, lambda: self._result(task, training, key))

    def _result(self, task: TrainTask, training: BackpropTraining, key: Key) -> TrainResult:
        part = TrainablePart.of(self._model, task.plan, who=f"client {task.client}")
        steps, losses = self._descend(task, training, part, key)
        trained = self._model.read()
        if not trained.isfinite():
            raise diverged(task, steps, "adapter", "non-finite values", HINT)
        statistics, metrics = {}, summary(losses) if losses else {}
        if task.plan.fisher is not None:
            began = time.perf_counter()
            fisher = client_fisher(
                self._model,
                task.examples,
                task.plan.fisher,
                who=f"client {task.client}",
                batch_size=training.batch_size,
                pad=self._pad,
                key=key.child("fisher"),
            )
            statistics["fisher"] = part.only(fisher)
            metrics["fisher_seconds"] = time.perf_counter() - began
        delta = trained - task.state
        examples = task.examples if training.privacy is None else by_row(task.examples)
        return TrainResult(task.client, delta, len(examples), steps, statistics, metrics)

    def _descend(
        self, task: TrainTask, training: BackpropTraining, part: TrainablePart, key: Key
    ) -> tuple[int, list[float]]:
        """All steps of one client: how many, and the losses, one for each step, of those that may be told."""
        model, parameters = self._model, [p for _, p in part.trained]
        optimiser = optimiser_of(part.trained, training, task.plan.learning_rate_factor)
        start = [p.detach().clone() for p in parameters] if training.proximal_mu else []
        steps, losses = 0, list[float]()
        private = self._private_steps(task, training, part, key) if training.privacy else None
        with (
            _seeded(key),
            self._caching_prefix(task, training),
            model.training(checkpointing=training.gradient_checkpointing),
            part.alone(),
        ):
            for loss in private or self._steps(task, training, part, key):
                steps += 1
                losses += [] if loss is None else [loss]
                if start:
                    _pull_back(parameters, start, training.proximal_mu)
                part.mask_gradients()
                if training.privacy is None and training.max_grad_norm is not None:
                    norm = torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
                    if not bool(torch.isfinite(norm)):
                        raise diverged(task, steps, "gradient", str(norm.item()), HINT)
                if task.correction is not None:
                    _correct(part.trained, task.correction)
                optimiser.step()
                part.put_back()
        optimiser.zero_grad(set_to_none=True)
        return steps, losses

    def _steps(
        self, task: TrainTask, training: BackpropTraining, part: TrainablePart, key: Key
    ) -> Iterator[float]:
        """The loss of each step, whose gradient is then in the parameters."""
        parameters = [p for _, p in part.trained]
        for number, batch in enumerate(minibatches(task.examples, training, key, pad=self._pad), 1):
            for parameter in parameters:
                parameter.grad = None
            loss = self._backward(batch, training.micro_batch_size or len(batch), parameters)
            if not math.isfinite(loss):
                raise diverged(task, number, "loss", str(loss), HINT)
            yield loss

    def _private_steps(
        self, task: TrainTask, training: BackpropTraining, part: TrainablePart, key: Key
    ) -> Iterable[None]:
        """The same with noise; what losses the examples have is not told.

        To be called before anything is switched for training: whether the model can be stacked is tried.
        """
        assert training.privacy is not None, "or there is no noise"
        assert training.max_grad_norm is not None, "as settings have it"
        gradients = ExampleGradients.of(
            self._model,
            part,
            training.max_grad_norm,
            pad=self._pad,
            micro_batch_size=training.micro_batch_size,
            checkpointing=training.gradient_checkpointing,
        )
        return PrivateSteps(StepPlan.of(task.examples, training), gradients, training.privacy, key)

    def _backward(self, batch: Batch, rows: int, parameters: list[torch.nn.Parameter]) -> float:
        """The loss of a step; its gradient is left in ``parameters``, unless the loss is not finite.

        Args:
            batch: all of the step.
            rows: computed at once.
            parameters: what is trained, without gradients.
        """
        if rows >= len(batch):
            loss = self._model.forward(batch).loss
            if math.isfinite(found := loss.item()):
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            return found
        total, count = 0.0, 0
        for part in batch.parts(rows):
            output = self._model.forward(part)
            summed = output.losses.sum()
            total, count = total + summed.item(), count + int(output.counts.sum())
            if not math.isfinite(total):
                return total
            summed.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.div_(max(count, 1))
        return total / max(count, 1)

    def _caching_prefix(
        self, task: TrainTask, training: BackpropTraining
    ) -> contextlib.AbstractContextManager[None]:
        """Within a step the layers below are passed once anyway: only a cache saves something."""
        if not training.trunk_cache_mb:
            return contextlib.nullcontext()
        return self._model.caching_prefix(task.plan.tensors, training.trunk_cache_mb * 2**20)


def optimiser_of(
    trained: list[tuple[TensorSpec, torch.nn.Parameter]], training: BackpropTraining, factor: float
) -> torch.optim.Optimizer:
    """A fresh optimiser of a training.

    Args:
        trained: the parameters, with what they are.
        training: names it, with its rates and weight decay.
        factor: of the rates.

    Raises:
        MissingDependency: 8-bit moments without what they need.
    """
    by_rate: dict[float, list[torch.nn.Parameter]] = {}
    for spec, parameter in trained:
        by_rate.setdefault(training.rate_of(spec.role) * factor, []).append(parameter)
    groups = [{"params": parameters, "lr": rate} for rate, parameters in by_rate.items()]
    if training.optimizer == "adamw8bit":
        return adamw8bit(groups, weight_decay=training.weight_decay, device=trained[0][1].device)
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, weight_decay=training.weight_decay)
    return torch.optim.AdamW(
        groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=training.weight_decay, fused=True
    )


def _pull_back(parameters: list[torch.nn.Parameter], start: list[Tensor], mu: float) -> None:
    """Add μ(w − w₀) to every gradient."""
    with torch.no_grad():
        for parameter, origin in zip(parameters, start, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - origin, alpha=mu)


def _correct(trained: list[tuple[TensorSpec, torch.nn.Parameter]], correction: AdapterState) -> None:
    """Add c − c_i to every gradient, also where a step has none."""
    for spec, parameter in trained:
        change = correction[spec.name].to(parameter.device, parameter.dtype)
        parameter.grad = change.clone() if parameter.grad is None else parameter.grad.add_(change)


@contextlib.contextmanager
def _seeded(key: Key) -> Iterator[None]:
    """Torch's global generators, which dropout uses, from ``key``; as they were afterwards."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(key.child("dropout").seed())
        yield
