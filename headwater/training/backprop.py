"""BackpropTrainer: AdamW on the adapter of one client after another."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from headwater.adapters.model import AdaptedModel
from headwater.config.training import BackpropTraining
from headwater.errors import TrainingError
from headwater.protocol.keys import Key
from headwater.training.cohort import CohortTrainer, TrainResult, TrainTask
from headwater.training.fisher import client_fisher
from headwater.training.passes import batches_of, contained, diverged, summary

_HINT = "Lower training.learning_rate, or set max_grad_norm."


class BackpropTrainer(CohortTrainer):
    """Trains with AdamW (arXiv 1711.05101; β = 0.9, 0.999, ε = 1e-8), a fresh optimiser for each task.

    Order of the examples and dropout masks come from ``key.child("client", name)``. With
    ``proximal_mu`` the gradient of ½μ‖w − w₀‖² is added (FedProx, arXiv 1812.06127, eq. 2). The loss
    of a step is the mean over the targets of its batch.

    Args:
        model: the adapted model; the trainer owns its values while it trains.
        pad: token id that fills a batch.
        language_model: whether targets are tokens.
    """

    def __init__(self, model: AdaptedModel, pad: int, *, language_model: bool) -> None:
        self._model, self._pad, self._language_model = model, pad, language_model

    def train(self, tasks: Sequence[TrainTask], *, key: Key) -> Iterator[TrainResult]:
        """Train each task by itself, in order.

        A loss, gradient or value that is not finite, a client without examples, or what torch cannot do
        (want of memory), ends that task with an error; a task of another training or spec raises.

        Raises:
            TrainingError: a plan of another kind of training.
            SpecMismatch: a state of another spec.
            ModelError: gradient checkpointing with an adapter that cannot.
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
        losses = self._descend(task, training, key)
        trained = self._model.read()
        if not trained.isfinite():
            raise diverged(task, len(losses), "adapter", "non-finite values", _HINT)
        statistics, metrics = {}, summary(losses)
        if task.plan.fisher is not None:
            began = time.perf_counter()
            statistics["fisher"] = client_fisher(
                self._model,
                task.examples,
                task.plan.fisher,
                who=f"client {task.client}",
                batch_size=training.batch_size,
                pad=self._pad,
                key=key.child("fisher"),
            )
            metrics["fisher_seconds"] = time.perf_counter() - began
        delta = trained - task.state
        return TrainResult(task.client, delta, len(task.examples), len(losses), statistics, metrics)

    def _descend(self, task: TrainTask, training: BackpropTraining, key: Key) -> list[float]:
        """All steps of one client; the losses, one for each step."""
        model, parameters = self._model, [p for _, p in self._model.parameters()]
        optimiser = _optimiser(model, training, task.plan.learning_rate_factor)
        start = [p.detach().clone() for p in parameters] if training.proximal_mu else []
        losses: list[float] = []
        with _seeded(key), model.training(checkpointing=training.gradient_checkpointing):
            for batch in batches_of(
                task.examples, training, key, pad=self._pad, language_model=self._language_model
            ):
                optimiser.zero_grad(set_to_none=True)
                loss = model.forward(batch).loss
                losses.append(loss.item())
                if not math.isfinite(losses[-1]):
                    raise diverged(task, len(losses), "loss", str(losses[-1]), _HINT)
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                if start:
                    _pull_back(parameters, start, training.proximal_mu)
                if training.max_grad_norm is not None:
                    norm = torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
                    if not bool(torch.isfinite(norm)):
                        raise diverged(task, len(losses), "gradient", str(norm.item()), _HINT)
                optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return losses


def _optimiser(model: AdaptedModel, training: BackpropTraining, factor: float) -> torch.optim.Optimizer:
    head_rate = training.head_learning_rate or training.learning_rate
    heads = [p for spec, p in model.parameters() if spec.role == "head"]
    others = [p for spec, p in model.parameters() if spec.role != "head"]
    groups = [
        {"params": others, "lr": training.learning_rate * factor},
        {"params": heads, "lr": head_rate * factor},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=training.weight_decay,
        fused=True,
    )


def _pull_back(parameters: list[torch.nn.Parameter], start: list[Tensor], mu: float) -> None:
    """Add μ(w − w₀) to every gradient."""
    with torch.no_grad():
        for parameter, origin in zip(parameters, start, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - origin, alpha=mu)


@contextlib.contextmanager
def _seeded(key: Key) -> Iterator[None]:
    """Torch's global generators, which dropout uses, from ``key``; as they were afterwards."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(key.child("dropout").seed())
        yield
