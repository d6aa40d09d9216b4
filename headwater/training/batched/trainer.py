"""BatchedBackpropTrainer: the clients of a cohort trained as one batch over one frozen base."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headwater.adapters.stacked_lora import Dropping, stacked
from headwater.adapters.trained_tensors import unit_of
from headwater.config.training import BackpropTraining
from headwater.errors import TrainingError
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.training.backprop import HINT, BackpropTrainer
from headwater.training.batched.adamw import StackedAdamW
from headwater.training.batched.groups import groups_of
from headwater.training.batched.joined import joined
from headwater.training.batched.trial import require_stackable
from headwater.training.cohort import CohortTrainer, TrainResult, TrainTask
from headwater.training.minibatches import contained, diverged, minibatches, summary

if TYPE_CHECKING:  # not to load Transformers, which takes seconds, where there is no base model
    from headwater.adapters.model import AdaptedModel


class BatchedBackpropTrainer(CohortTrainer):
    """:class:`BackpropTrainer` for many clients at once: the same algebra, one pass over the base for all.

    Clients whose plans have the same training are joined, as many as the cohort may have and as a batch has
    room for (:mod:`.groups`), in the order of their tasks: who trains beside whom is a function of the tasks
    alone, and so are all bits. What each learns is what it learns alone, up to rounding; alone, to the bit. A
    plan that trains a part of the adapter, estimates Fisher information or has a correction, and a training
    with another optimiser than AdamW, checkpointing or a cache, is trained by itself.

    Args:
        model: the adapted model; the trainer owns its values while it trains.
        pad: token id that fills a batch.
        most: clients in a batch.

    Raises:
        ModelError: an adapter that cannot be stacked.
    """

    def __init__(self, model: AdaptedModel, pad: int, most: int) -> None:
        require_stackable(model)
        self._model, self._pad, self._most = model, pad, most
        self._alone = BackpropTrainer(model, pad)

    def train(self, tasks: Sequence[TrainTask], *, key: Key) -> Iterator[TrainResult]:
        """Train the tasks; their results come in order.

        What :meth:`BackpropTrainer.train` says holds here: a loss, gradient or value that is not finite ends
        its own task. Want of memory ends those of its batch.

        Raises:
            TrainingError, SpecMismatch: as there.
        """
        done: dict[str, TrainResult] = {}
        groups = {group[0].client: group for group in groups_of(tasks, self._most, _joins)}
        for task in tasks:
            if task.client in groups:
                done |= {result.client: result for result in self._together(groups[task.client], key)}
            if task.client in done:
                yield done.pop(task.client)
            else:
                yield from self._alone.train([task], key=key)

    def _together(self, tasks: list[TrainTask], key: Key) -> list[TrainResult]:
        first = tasks[0].plan.training
        assert isinstance(first, BackpropTraining)
        try:
            return self._results(tasks, first, key)
        except (RuntimeError, MemoryError, ArithmeticError) as error:  # torch's own, out of memory above all
            failure = error

        def fails() -> TrainResult:
            raise failure

        return [contained(task, fails) for task in tasks]

    def _results(self, tasks: list[TrainTask], training: BackpropTraining, key: Key) -> list[TrainResult]:
        for task in tasks:
            task.state.require_spec(self._model.spec, f"client {task.client}, state")
        steps = {task.client: training.steps(len(task.examples)) for task in tasks}
        # who leaves first is last in the stack, so that those who stay are always its beginning
        seats = [
            _Seat(task, key.child("client", task.client), steps[task.client])
            for task in sorted(tasks, key=lambda t: -steps[t.client])
        ]
        values = {
            spec.name: torch.stack([seat.task.state[spec.name] for seat in seats]).to(p.device, p.dtype)
            * unit_of(spec)
            for spec, p in self._model.parameters()
        }
        self._descend(seats, training, values)
        by_client = {seat.task.client: self._result(seat, values, at) for at, seat in enumerate(seats)}
        return [by_client[task.client] for task in tasks]

    def _descend(self, seats: list[_Seat], training: BackpropTraining, values: dict[str, Tensor]) -> None:
        """All steps of all; ``values`` and the seats hold what came of them."""
        model, factor = self._model, seats[0].task.plan.learning_rate_factor
        specs = [spec for spec, _ in model.parameters()]
        rates = {s.name: training.rate_of("head" if s.role == "head" else "") * factor for s in specs}
        optimiser = StackedAdamW(values, rates, weight_decay=training.weight_decay)
        start = {n: v.clone() for n, v in values.items()} if training.proximal_mu else {}
        batches = [minibatches(s.task.examples, training, s.key, pad=self._pad) for s in seats]
        with model.training():
            for step in range(seats[0].steps):
                active = sum(seat.steps > step for seat in seats)
                own = [next(stream) for stream in batches[:active]]
                batch = joined(own, self._pad, by_token=model.language_model)
                dropping = Dropping(
                    [seat.dropout for seat in seats[:active]], [(len(b), b.tokens.shape[1]) for b in own]
                )
                leaves = {n: v[:active].detach().requires_grad_() for n, v in values.items()}
                with stacked(model, leaves, active, dropping):
                    output = model.forward(batch.batch)
                losses = batch.losses(output.losses, output.counts)
                found = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
                gradients = {
                    n: torch.zeros_like(leaves[n]) if g is None else g
                    for n, g in zip(leaves, found, strict=True)
                }
                for name, origin in start.items():
                    gradients[name].add_(values[name][:active] - origin[:active], alpha=training.proximal_mu)
                norms = _clip(gradients, training.max_grad_norm)
                for seat, loss, norm in zip(seats, losses.tolist(), norms, strict=False):
                    seat.note(loss, norm)
                optimiser.step(gradients)

    def _result(self, seat: _Seat, values: dict[str, Tensor], at: int) -> TrainResult:
        task, count = seat.task, len(seat.task.examples)
        if seat.error is not None:
            return TrainResult(task.client, None, count, error=seat.error)
        spec = self._model.spec
        trained = AdapterState(
            spec, {s.name: values[s.name][at].to("cpu", torch.float32, copy=True) / unit_of(s) for s in spec}
        )
        if not trained.isfinite():
            error = diverged(task, len(seat.losses), "adapter", "non-finite values", HINT)
            return TrainResult(task.client, None, count, error=error)
        return TrainResult(
            task.client, trained - task.state, count, len(seat.losses), metrics=summary(seat.losses)
        )


class _Seat:
    """A client's place in a stack.

    Args:
        task: its.
        key: of its random numbers.
        steps: that it makes.
    """

    def __init__(self, task: TrainTask, key: Key, steps: int) -> None:
        self.task, self.key, self.steps = task, key, steps
        self.dropout = torch.Generator().manual_seed(key.child("dropout").seed())
        self.losses: list[float] = []
        self.error: TrainingError | None = None

    def note(self, loss: float, norm: float) -> None:
        """A step was made; the first that was not finite is the client's error."""
        self.losses.append(loss)
        if self.error is None and not math.isfinite(loss):
            self.error = diverged(self.task, len(self.losses), "loss", str(loss), HINT)
        elif self.error is None and not math.isfinite(norm):
            self.error = diverged(self.task, len(self.losses), "gradient", str(norm), HINT)


def _joins(task: TrainTask) -> bool:
    """Whether a task is one of those that can be trained beside others."""
    plan, training = task.plan, task.plan.training
    return (
        isinstance(training, BackpropTraining)
        and training.optimizer == "adamw"
        and not training.gradient_checkpointing
        and not training.trunk_cache_mb
        and plan.tensors is None
        and plan.rank is None
        and plan.fisher is None
        and task.correction is None
        and len(task.examples) > 0
    )


def _clip(gradients: dict[str, Tensor], most: float | None) -> list[float]:
    """Cut each client's gradient to norm ``most``, in place; the norms before, or zeros where none is cut."""
    clients = len(next(iter(gradients.values())))
    if most is None:
        return [0.0] * clients
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0)
    shares = (most / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients.values():
        gradient.mul_(shares.view(-1, *[1] * (gradient.dim() - 1)))
    return [float(norm) for norm in norms]
