"""BatchedBackpropTrainer: the clients of a cohort trained as one batch over one frozen base."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headwater.adapters.stacked.layer import Dropping
from headwater.adapters.stacked.stack import drops, stacked
from headwater.adapters.trained_tensors import unit_of
from headwater.config.training import BackpropTraining
from headwater.errors import TrainingError
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.tasks.batches import Batch
from headwater.training.backprop import HINT, BackpropTrainer
from headwater.training.batched.fisher import Estimated, fishers
from headwater.training.batched.groups import groups_of
from headwater.training.batched.joined import joined
from headwater.training.batched.optimisers import stacked_optimiser
from headwater.training.batched.part import StackedPart, covers_something, only_covered
from headwater.training.batched.trial import require_stackable
from headwater.training.cohort import CohortTrainer, TrainResult, TrainTask
from headwater.training.fisher import scaled
from headwater.training.minibatches import contained, diverged, minibatches, summary

if TYPE_CHECKING:  # not to load Transformers, which takes seconds, where there is no base model
    from headwater.adapters.model import AdaptedModel


class BatchedBackpropTrainer(CohortTrainer):
    """:class:`BackpropTrainer` for many clients at once: the same algebra, one pass over the base for all.

    Clients whose plans have the same training are joined, as many as the cohort may have and as a batch
    has room for (:mod:`.groups`), in the order of their tasks: who trains beside whom is a function of
    the tasks alone, and so are all bits. What each learns is what it learns alone, up to rounding; alone,
    to the bit. A training with a ``micro_batch_size`` or ``privacy`` is by itself; one with checkpointing if
    the adapter drops units, for what is computed again must drop the same; and one with a trunk cache if its
    plan names tensors, for others of the client's lie below them.

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
        found = groups_of(tasks, self._most, self._joins, self._model.virtual_tokens)
        groups = {group[0].client: group for group in found}
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

    def _joins(self, task: TrainTask) -> bool:
        """Whether a task is one of those that can be trained beside others."""
        training = task.plan.training
        return (
            isinstance(training, BackpropTraining)
            and training.privacy is None
            and not (training.micro_batch_size or (training.trunk_cache_mb and task.plan.tensors is not None))
            and not (training.gradient_checkpointing and drops(self._model))
            and len(task.examples) > 0
            and covers_something(self._model.spec, task.plan)
        )

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
        for at, seat in enumerate(seats):
            seat.ended(self._model, {name: value[at] for name, value in values.items()})
        self._estimate(seats)
        by_client = {seat.task.client: contained(seat.task, seat.result) for seat in seats}
        return [by_client[task.client] for task in tasks]

    def _estimate(self, seats: list[_Seat]) -> None:
        """Fisher information of those who are asked for it, where their trainings ended."""
        asked = [(seat, seat.trained) for seat in seats if seat.task.plan.fisher and seat.trained is not None]
        if not asked:
            return
        found = fishers(
            self._model,
            [seat.task for seat, _ in asked],
            [state for _, state in asked],
            pad=self._pad,
            keys=[seat.key.child("fisher") for seat, _ in asked],
        )
        for (seat, _), estimated in zip(asked, found, strict=True):
            seat.estimated = estimated

    def _descend(self, seats: list[_Seat], training: BackpropTraining, values: dict[str, Tensor]) -> None:
        """All steps of all; ``values`` and the seats hold what came of them."""
        model, factor = self._model, seats[0].task.plan.learning_rate_factor
        part = StackedPart.of(model.spec, [seat.task.plan for seat in seats], values)
        trained = {name: values[name] for name in part.trained}
        specs = [spec for spec in model.spec if spec.name in trained]
        optimiser = stacked_optimiser(trained, specs, training, factor)
        start = {n: v.clone() for n, v in trained.items()} if training.proximal_mu else {}
        corrections = _corrections(seats, trained)
        batches = [minibatches(s.task.examples, training, s.key, pad=self._pad) for s in seats]
        with self._caching_prefix(training), model.training(checkpointing=training.gradient_checkpointing):
            for step in range(seats[0].steps):
                active = sum(seat.steps > step for seat in seats)
                own = [next(stream) for stream in batches[:active]]
                losses, gradients = self._gradients(seats[:active], own, values, part.trained)
                for name, origin in start.items():
                    if name in gradients:
                        drift = trained[name][:active] - origin[:active]
                        gradients[name].add_(drift, alpha=training.proximal_mu)
                part.mask(gradients)
                norms = _clip(gradients, training.max_grad_norm, active)
                for seat, loss, norm in zip(seats, losses, norms, strict=False):
                    seat.note(loss, norm)
                _correct(gradients, corrections, active)
                optimiser.step(gradients)
                part.put_back(values)

    def _caching_prefix(self, training: BackpropTraining) -> AbstractContextManager[None]:
        """Nobody trains, or has of its own, what lies below."""
        if not training.trunk_cache_mb:
            return nullcontext()
        return self._model.caching_prefix(budget_bytes=training.trunk_cache_mb * 2**20)

    def _gradients(
        self, seats: list[_Seat], own: list[Batch], values: dict[str, Tensor], trained: tuple[str, ...]
    ) -> tuple[list[float], dict[str, Tensor]]:
        """Each client's loss, and the gradients [clients, *shape] of the tensors that losses depend on."""
        model, clients = self._model, len(seats)
        batch = joined(own, self._pad, by_token=model.by_token)
        dropping = Dropping([seat.dropout for seat in seats], [(len(b), b.tokens.shape[1]) for b in own])
        now = {n: v[:clients].detach().requires_grad_(n in trained) for n, v in values.items()}
        with stacked(model, now, clients, dropping):
            output = model.forward(batch.batch)
            losses = batch.losses(output.losses, output.counts)
            # in here, for what a checkpoint computes again
            found = torch.autograd.grad(losses.sum(), [now[n] for n in trained], allow_unused=True)
        gradients = {n: g for n, g in zip(trained, found, strict=True) if g is not None}
        return losses.tolist(), gradients


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
        self.trained: AdapterState | None = None
        self.estimated: Estimated | None = None

    def note(self, loss: float, norm: float) -> None:
        """A step was made; the first that was not finite is the client's error."""
        self.losses.append(loss)
        if self.error is None and not math.isfinite(loss):
            self.error = diverged(self.task, len(self.losses), "loss", str(loss), HINT)
        elif self.error is None and not math.isfinite(norm):
            self.error = diverged(self.task, len(self.losses), "gradient", str(norm), HINT)

    def ended(self, model: AdaptedModel, values: Mapping[str, Tensor]) -> None:
        """All steps are made, and ``values`` came of them; none but an error if they are not finite."""
        spec = model.spec
        found = AdapterState(
            spec, {s.name: values[s.name].to("cpu", torch.float32, copy=True) / unit_of(s) for s in spec}
        )
        if found.isfinite():
            self.trained = None if self.error else found
        elif self.error is None:
            self.error = diverged(self.task, len(self.losses), "adapter", "non-finite values", HINT)

    def result(self) -> TrainResult:
        """What came of it.

        Raises:
            TrainingError: a number that is not finite.
        """
        task, plan, metrics = self.task, self.task.plan, summary(self.losses)
        if self.error is not None or self.trained is None:
            raise self.error or TrainingError(f"client {task.client}", expected="an end", got="none")
        statistics = {}
        if self.estimated is not None and plan.fisher is not None:
            metrics["fisher_seconds"] = self.estimated.seconds
            fisher = scaled(self.estimated.mean, plan.fisher, who=f"client {task.client}")
            statistics["fisher"] = only_covered(fisher, plan)
        steps, delta = len(self.losses), self.trained - task.state
        return TrainResult(task.client, delta, len(task.examples), steps, statistics, metrics)


def _clip(gradients: dict[str, Tensor], most: float | None, clients: int) -> list[float]:
    """Cut each client's gradient to norm ``most``, in place; the norms before, or zeros where none is cut."""
    if most is None or not gradients:
        return [0.0] * clients
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0)
    shares = (most / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients.values():
        gradient.mul_(shares.view(-1, *[1] * (gradient.dim() - 1)))
    return [float(norm) for norm in norms]


def _corrections(seats: list[_Seat], trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is added to the gradients [clients, *shape] (SCAFFOLD); empty where no client has any."""
    given = [seat.task.correction for seat in seats]
    if all(correction is None for correction in given):
        return {}
    found = {}
    for name, value in trained.items():
        nothing = torch.zeros(value.shape[1:])
        rows = [nothing if own is None else own[name] for own in given]
        found[name] = torch.stack(rows).to(value.device, value.dtype)
    return found


def _correct(gradients: dict[str, Tensor], corrections: Mapping[str, Tensor], clients: int) -> None:
    """Add them, also where a step has no gradient."""
    for name, change in corrections.items():
        own = change[:clients]
        gradients[name] = own.clone() if name not in gradients else gradients[name].add_(own)
