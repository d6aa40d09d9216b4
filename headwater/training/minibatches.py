"""What every training over batches has: :func:`minibatches` its steps, :func:`contained` its errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from headwater.config.training import MinibatchTraining
from headwater.errors import TrainingError
from headwater.protocol.failures import FailureCode, coded
from headwater.seeds.keys import Key
from headwater.tasks.batches import Batch, Example, batches
from headwater.training.cohort import TrainResult, TrainTask


def minibatches(
    examples: Sequence[Example],
    training: MinibatchTraining,
    key: Key,
    *,
    pad: int,
    steps: int | None = None,
) -> Iterator[Batch]:
    """The batches of all steps: pass after pass, the last one cut.

    Args:
        examples: a client's, at least one.
        training: says how many steps of which batch.
        key: of the order.
        pad: token id that fills a batch.
        steps: so many, whatever ``training`` says.
    """
    left = training.steps(len(examples)) if steps is None else steps
    generator = key.numpy()
    while left > 0:
        for batch in batches(examples, training.batch_size, pad, generator=generator):
            if left == 0:
                return
            left -= 1
            yield batch


def contained(task: TrainTask, work: Callable[[], TrainResult]) -> TrainResult:
    """What ``work`` gives; what goes wrong in it ends this task only, as its result's error.

    That is: a client without examples, a TrainingError, or what torch cannot do (want of memory).
    """
    count = len(task.examples)
    try:
        if not count:
            raise TrainingError(f"client {task.client}", expected="at least one example", got="none")
        return work()
    except TrainingError as error:
        return TrainResult(task.client, None, count, error=error)
    except (RuntimeError, MemoryError, ArithmeticError) as error:  # torch's own, out of memory above all
        mapped = TrainingError(
            f"client {task.client}",
            expected="a training that this machine can do",
            got=(str(error) or type(error).__name__).splitlines()[0][:300],
            hint="If it is memory: a smaller batch_size or max_tokens, or gradient_checkpointing.",
        )
        mapped.__cause__ = error
        return TrainResult(task.client, None, count, error=mapped)


def diverged(task: TrainTask, step: int, what: str, got: str, hint: str) -> TrainingError:
    """The error of a step at which ``what`` is not finite."""
    error = TrainingError(
        f"client {task.client}, step {step}", expected=f"a finite {what}", got=got, hint=hint
    )
    return coded(error, FailureCode.DIVERGED)


def summary(losses: Sequence[float]) -> dict[str, float]:
    """Metrics of a training: the mean loss, the first and the last."""
    return {"loss": math.fsum(losses) / len(losses), "first_loss": losses[0], "last_loss": losses[-1]}
