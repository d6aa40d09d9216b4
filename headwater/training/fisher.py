"""A client's diagonal Fisher: :func:`client_fisher`.

F = E_x E_{y ~ p(y|x)} [∇ log p(y|x)]², value by value (Matena & Raffel, arXiv 2111.09832, §3), with
one drawn label for each example and the square taken of each example's own gradient: squaring a
batch's gradient would mix examples. A causal model's log p is the sum over its target positions, each
next token drawn given the true ones before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from headwater.errors import TrainingError
from headwater.merging.fixed_point import float32_at_most
from headwater.protocol.failures import FailureCode, coded
from headwater.protocol.messages import FisherPlan
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.tasks.batches import Batch, Example, collate
from headwater.tasks.table import AnyTask
from headwater.training.per_example import SquaredGradients, can_hook

if TYPE_CHECKING:  # not to load Transformers, which takes seconds, where there is no base model
    from headwater.adapters.model import AdaptedModel, Output


class Differentiable(Protocol):
    """What a Fisher needs of a model; :class:`~headwater.adapters.model.AdaptedModel` has it."""

    @property
    def spec(self) -> StateSpec:
        """Of the parameters."""

    @property
    def task(self) -> AnyTask:
        """What is learnt."""

    def parameters(self) -> list[tuple[TensorSpec, Parameter]]:
        """Of which gradients are asked, in the order of the spec."""

    def forward(self, batch: Batch) -> Output:
        """Logits and losses."""

    def output(self, logits: Tensor, targets: Tensor) -> Output:
        """The losses of logits."""


def client_fisher(
    model: AdaptedModel,
    examples: Sequence[Example],
    plan: FisherPlan,
    *,
    who: str,
    batch_size: int,
    pad: int,
    key: Key,
) -> AdapterState:
    """The diagonal Fisher at the model's present values, scaled to mean 1 and capped.

    Args:
        model: the adapted model; its values stay as they are.
        examples: at least one; if more than ``plan.examples``, that many are drawn with ``key``.
        plan: how many examples, and the cap.
        who: for the error.
        batch_size: examples in one backward pass, where the adapter allows more than one.
        pad: token id that fills a batch.
        key: draws examples and labels.

    Returns:
        Non-negative values of the model's spec: mean 1 over all tensors before the cap; all zero if
        every gradient is.

    Raises:
        TrainingError: a gradient is not finite.
    """
    chosen = chosen_examples(examples, plan, key)
    return scaled(fisher_diagonal(model, chosen, batch_size=batch_size, pad=pad, key=key), plan, who=who)


def chosen_examples(examples: Sequence[Example], plan: FisherPlan, key: Key) -> list[Example]:
    """Those that a plan has room for, drawn with ``key``, the shortest first."""
    order = key.child("examples").numpy().permutation(len(examples))[: plan.examples]
    return sorted((examples[i] for i in order), key=lambda e: len(e.tokens))


def scaled(mean: AdapterState, plan: FisherPlan, *, who: str) -> AdapterState:
    """A mean of squared gradients as it travels: scaled to mean 1, then capped; all zero if every value is.

    Raises:
        TrainingError: a value that is not finite.
    """
    if not mean.isfinite():
        error = TrainingError(who, expected="a finite Fisher", got="non-finite gradients")
        raise coded(error, FailureCode.DIVERGED)
    total = sum(float(value.sum(dtype=torch.float64)) for value in mean.values())
    if total == 0.0:
        return mean
    factor = mean.spec.numel / total  # beyond float32 where a sure model's gradients hardly are within it
    cap = float32_at_most(plan.cap)  # the nearest may be larger: the server would refuse it
    return mean.map(lambda value: value.double().mul_(factor).clamp_(max=cap).float())


def fisher_diagonal(
    model: AdaptedModel, examples: Sequence[Example], *, batch_size: int, pad: int, key: Key
) -> AdapterState:
    """The mean over ``examples`` of squared gradients of their drawn labels, as is.

    Where every trained tensor belongs to a linear layer that sees the examples apart, hooks give the
    gradients of a whole batch; otherwise one example follows another (:func:`fisher_by_loop`, which is
    also the oracle).
    """
    if can_hook(model):
        parameters = [p for _, p in model.parameters()]
        with SquaredGradients(model) as squares:
            for start in range(0, len(examples), batch_size):
                part = examples[start : start + batch_size]
                squares.expect(len(part))
                loss = _drawn_losses(model, part, start, pad, key).sum()
                if not squares.apart:
                    break
                torch.autograd.grad(loss, parameters, allow_unused=True)
            else:
                return _mean(model, squares.totals(), len(examples))
    return fisher_by_loop(model, examples, pad=pad, key=key)


def fisher_by_loop(model: Differentiable, examples: Sequence[Example], *, pad: int, key: Key) -> AdapterState:
    """:func:`fisher_diagonal` for any adapter: one backward pass for each example."""
    parameters = [p for _, p in model.parameters()]
    totals = [torch.zeros_like(p) for p in parameters]
    for i, example in enumerate(examples):
        loss = _drawn_losses(model, [example], i, pad, key).sum()
        for total, gradient in zip(
            totals, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
        ):
            if gradient is not None:
                total.addcmul_(gradient, gradient)
    return _mean(model, totals, len(examples))


def _mean(model: Differentiable, totals: Iterable[Tensor], count: int) -> AdapterState:
    named = zip(model.spec, totals, strict=True)
    return AdapterState(
        model.spec, {spec.name: (total / count).to("cpu", torch.float32) for spec, total in named}
    )


def _drawn_losses(
    model: Differentiable, examples: Sequence[Example], first: int, pad: int, key: Key
) -> Tensor:
    """−log p of drawn labels, [b]: the draw of example i depends on i and its own logits alone."""
    batch = collate(examples, pad)
    return drawn_losses(model, batch, [key.child("label", first + i) for i in range(len(examples))])


def drawn_losses(model: Differentiable, batch: Batch, keys: Sequence[Key]) -> Tensor:
    """−log p of labels drawn from what the model believes, [b].

    Args:
        model: as it is.
        batch: rows; their targets say where there is something to draw.
        keys: of each row's draws; draw t is that of target t.
    """
    logits = model.forward(batch).logits
    rows = np.stack([key.numpy().random(batch.targets[0].numel()) for key in keys])
    uniforms = torch.from_numpy(rows).view(batch.targets.shape)
    return model.output(logits, model.task.draw(logits.detach(), batch.targets, uniforms)).losses
