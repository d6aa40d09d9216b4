"""What a method takes: its memory predicted by tracing one step.

The process of a training holds what it held before (interpreter, libraries, base model), what one step
holds at its highest (:func:`step_bytes`, traced on fake tensors) and a few vectors of the adapter's size.
Where malloc gives large blocks back at once (``client.device.costs.return_freed_memory``), that sum
is within a few percent of the measured peak; without it glibc keeps freed blocks below 32 MiB and a
backprop step has been seen to take twice as much.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from headwater.adapters.peak_memory import live_peak
from headwater.protocol.messages import ClientPlan
from headwater.tasks.batches import Batch
from headwater.training.parameter_walk import ParameterWalk
from headwater.training.trainable_part import TrainablePart

if TYPE_CHECKING:  # not to load Transformers, which takes seconds, where there is no base model
    from headwater.adapters.model import AdaptedModel

SCRATCH_BYTES = 24 << 20
"""Scratch of kernels and code that the first step loads. Measured on x86-64 with torch 2.13: 5 to 40 MiB."""


def method_bytes(model: AdaptedModel, plan: ClientPlan, batch_size: int, tokens: int) -> int:
    """What a training takes beyond the loaded model, at its highest.

    Args:
        model: on which it trains; nothing of it changes.
        plan: the method, and the tensors and rank that are trained.
        batch_size: b.
        tokens: T, of the longest row.
    """
    kept = 4 * model.spec.numel * plan.training.vectors
    return step_bytes(model, plan, batch_size, tokens) + kept + SCRATCH_BYTES


def step_bytes(model: AdaptedModel, plan: ClientPlan, batch_size: int, tokens: int) -> int:
    """The most bytes of tensors that one step holds at once: exact demand, traced, without computing."""
    training = plan.training
    at_once = min(batch_size, getattr(training, "micro_batch_size", None) or batch_size)
    part = TrainablePart.of(model, plan, who="footprint")  # out here: while traced, truths have no values

    def backprop() -> object:
        with model.training(checkpointing=training.checkpoints()), part.alone():
            loss = model.forward(synthetic(model, at_once, tokens)).loss
            return torch.autograd.grad(loss, [p for _, p in part.trained])

    def slope() -> object:
        return model.slope(synthetic(model, batch_size, tokens), torch.ones(model.spec.numel))

    def probe() -> object:
        return walk.loss(synthetic(model, batch_size, tokens))

    steps: dict[str, Callable[[], object]] = {"gradients": backprop, "slopes": slope, "losses": probe}
    step = steps.get(training.learns_from)
    if step is None:
        return 0
    if training.learns_from != "gradients":
        with torch.no_grad():
            model.loss(synthetic(model, 1, 2))  # what the model is asked once, it is asked before
    if training.learns_from == "losses":
        walk = ParameterWalk(model, model.read())
    return live_peak(step)


def inference_bytes(model: AdaptedModel, batch_size: int, tokens: int) -> int:
    """The same for a forward pass with its losses, as an evaluation makes it."""

    def forward() -> object:
        with torch.inference_mode():
            return model.forward(synthetic(model, batch_size, tokens)).losses

    return live_peak(forward)


def synthetic(model: AdaptedModel, batch_size: int, tokens: int) -> Batch:
    """A batch of full rows: every token counts, and for a language model is a target."""
    ids = torch.arange(batch_size * tokens).view(batch_size, tokens) % 97 + 3
    mask = torch.ones_like(ids)
    return Batch(ids, mask, model.task.any_targets(ids, mask))
