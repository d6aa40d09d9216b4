"""BlackboxTrainer: CMA-ES over a random subspace of the prompt, by a model that only tells losses."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headwater.config.training import BlackboxTraining
from headwater.errors import TrainingError
from headwater.seeds.coefficients import SeedCoefficients, SeedPlan
from headwater.seeds.directions import Directions, Integers
from headwater.seeds.keys import Key
from headwater.state import StateSpec
from headwater.tasks.batches import Batch, Example, batches
from headwater.training.cohort import CohortTrainer, TrainResult, TrainTask
from headwater.training.evolution import evolution, silent
from headwater.training.minibatches import contained, diverged
from headwater.training.seeded import LARGEST, seeds_of

Floats: TypeAlias = npt.NDArray[np.float64]


class LossOf(Protocol):
    """All that is known of the model: what it loses on a batch with this prompt.

    It may be at the other end of a wire. Nothing is differentiated, and nothing inside is looked at.
    """

    def __call__(self, prompt: Tensor, batch: Batch) -> float:
        """The mean loss of ``batch``; prompt: float32 [n], the adapter's values in name order."""


@runtime_checkable
class Loadable(Protocol):
    """A model in this process, such as ``headwater.adapters.model.AdaptedModel``."""

    @property
    def spec(self) -> StateSpec:
        """Of its trained values."""

    def write(self, vector: Tensor) -> None:
        """Set them: float32 [spec.numel]."""

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The losses of a batch and their counts, both [b]."""


def asking(model: Loadable) -> LossOf:
    """``model`` as a function of its input, under inference mode."""

    def ask(prompt: Tensor, batch: Batch) -> float:
        with torch.inference_mode():
            model.write(prompt)
            losses, counts = model.losses(batch)
            return float(losses.sum() / counts.sum().clamp(min=1))

    return ask


class BlackboxTrainer(CohortTrainer):
    """BBT (arXiv 2201.03514; Fed-BBPT, arXiv 2310.03123): minimise loss(start + scale·Σ x_j·z_j) over x.

    x starts at 0 in each round and has ``dimensions`` coordinates, z_j are the plan's directions, and
    CMA-ES (Hansen, arXiv 1604.00772; pycma) searches. All candidates of a generation are asked about the
    same batch. A candidate is rounded to the coefficients that it would be sent as before it is asked
    about, so what is measured is what can be sent. Sent is the mean of the search distribution after the
    last generation: with a fresh batch for each generation the best candidate is the luckiest, too.

    A result's ``loss`` is the mean of all candidates', ``first_loss`` the start's on the first batch and
    ``last_loss`` the sent point's on the last; ``steps`` are generations. Its ``noise`` is what the mean
    wanders by chance, Σ σ²·tr C/μ_eff·scale²·n over the generations, and at most ‖δ‖²: it errs high where a
    later generation has mended what an earlier one got wrong.

    Args:
        model: the function, or a model in this process to be asked as one; the trainer then owns its values.
        pad: token id that fills a batch.
    """

    def __init__(self, model: LossOf | Loadable, pad: int) -> None:
        self._ask = asking(model) if isinstance(model, Loadable) else model
        self._pad = pad

    def train(self, tasks: Sequence[TrainTask], *, key: Key) -> Iterator[TrainResult]:
        """Train each task by itself, in order; the results' deltas are Scalars.

        Raises:
            TrainingError: a plan of another kind of training, or seeds that do not fit it.
        """
        for task in tasks:
            yield self._train(task, key.child("client", task.client))

    def _train(self, task: TrainTask, key: Key) -> TrainResult:
        training = task.plan.training
        if not isinstance(training, BlackboxTraining):
            raise TrainingError(
                f"client {task.client}", expected="training.kind 'blackbox'", got=training.kind
            )
        plan, directions = seeds_of(task, task.state.spec)
        if not plan.implied or plan.count != training.dimensions:
            raise TrainingError(
                f"client {task.client}",
                expected=f"a coefficient for each of {training.dimensions} seeds",
                got=f"{plan.count} seeds, implied: {plan.implied}",
            )
        return contained(task, lambda: self._search(task, training, plan, directions, key))

    def _search(
        self, task: TrainTask, training: BlackboxTraining, plan: SeedPlan, directions: Directions, key: Key
    ) -> TrainResult:
        space = _Space(task, plan, directions, training.scale)
        search = evolution(
            training.dimensions, training.sigma, key.child("candidates"), population=training.population
        )
        losses: list[float] = []
        wandered = 0.0
        for generation, batch in enumerate(self._batches(task.examples, training, key), 1):
            if generation == 1:
                first = self._loss(task, generation, space.prompt(np.zeros(plan.count, np.int64)), batch)
            with _searching(task, generation):
                candidates = search.ask()
            found = [
                self._loss(task, generation, space.prompt(space.coefficients(x)), batch) for x in candidates
            ]
            with silent(), _searching(task, generation):
                wandered += float(np.sum(np.square(search.stds))) / search.sp.weights.mueff
                search.tell(candidates, found)
            losses += found
        sent = space.coefficients(search.mean)
        last = self._loss(task, training.generations, space.prompt(sent), batch)
        if not math.isfinite(wandered):
            raise diverged(task, training.generations, "search", "a boundless one", "Lower training.sigma.")
        delta = SeedCoefficients(plan, np.arange(plan.first, plan.first + plan.count), sent)
        noise = wandered * training.scale**2 * directions.size
        return TrainResult(
            task.client,
            delta,
            len(task.examples),
            training.generations,
            metrics={"loss": math.fsum(losses) / len(losses), "first_loss": first, "last_loss": last},
            noise=min(noise, delta.energy(directions)),
        )

    def _loss(self, task: TrainTask, generation: int, prompt: Tensor, batch: Batch) -> float:
        loss = self._ask(prompt, batch)
        if not math.isfinite(loss):
            raise diverged(task, generation, "loss", str(loss), "Lower training.scale or training.sigma.")
        return loss

    def _batches(self, examples: Sequence[Example], training: BlackboxTraining, key: Key) -> Iterator[Batch]:
        """One for each generation: pass after pass."""
        left, generator = training.generations, key.child("batches").numpy()
        while left:
            one_pass = batches(
                examples, training.batch_size, self._pad,
                generator=generator,
            )  # fmt: skip
            for batch in one_pass:
                yield batch
                left -= 1
                if not left:
                    return


class _Space:
    """The values that a point of the search expands to."""

    def __init__(self, task: TrainTask, plan: SeedPlan, directions: Directions, scale: float) -> None:
        self._start, self._plan, self._directions = task.state.vector().double().numpy(), plan, directions
        self._unit = scale * 2.0**plan.unit_bits
        self._seeds = np.arange(plan.first, plan.first + plan.count)

    def coefficients(self, point: Floats) -> Integers:
        """The point as it would be sent, round(scale·x·2^unit_bits): int64 [dimensions]."""
        return np.clip(np.rint(point * self._unit), -LARGEST, LARGEST).astype(np.int64)

    def prompt(self, coefficients: Integers) -> Tensor:
        """float32(start + Σ q·z): every holder of the coefficients gets the same."""
        exact = self._directions.combine(self._seeds, coefficients).astype(np.float64)
        exact *= 2.0 ** -(self._plan.unit_bits + self._directions.unit_bits)
        return torch.from_numpy((self._start + exact).astype(np.float32))


@contextlib.contextmanager
def _searching(task: TrainTask, generation: int) -> Iterator[None]:
    """What the library raises where a search has no bounds any more ends the task, as every divergence."""
    try:
        yield
    except (AssertionError, ValueError, ArithmeticError) as error:
        got = str(error) or type(error).__name__
        raise diverged(task, generation, "search", got[:200], "Lower training.sigma.") from error
