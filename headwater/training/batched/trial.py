"""Whether a model's clients can be trained as one batch, by trying: :func:`require_stackable`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from headwater.adapters.stacked.layer import Dropping
from headwater.adapters.stacked.stack import stacked, unstackable
from headwater.adapters.trained_tensors import unit_of
from headwater.errors import ModelError
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.tasks.batches import Batch
from headwater.training.batched.joined import joined

if TYPE_CHECKING:  # not to load Transformers, which takes seconds, where there is no base model
    from headwater.adapters.model import AdaptedModel

TOLERANCE, QUANTISED_TOLERANCE = 1e-3, 0.1
"""Relative differences that count, of a base in float32 and of any other, as for every model."""
_STACKABLE: WeakSet[AdaptedModel] = WeakSet()


def require_stackable(model: AdaptedModel) -> None:
    """Refuse a model of which no stack can be made: it is tried on two clients, once.

    Raises:
        ModelError: says what of it.
    """
    if model in _STACKABLE:
        return
    why = unstackable(model) or _differs(model)
    if why is not None:
        raise ModelError(
            "simulation.cohort",
            expected="trained tensors of linear layers, layer norms, LoRA, DoRA, LoRA-SB, IA3, VeRA, "
            "prompts or prefixes, and a base that keeps rows first",
            got=f"adapter.kind '{model.adapter.kind}', {why}",
            hint="Leave simulation.cohort out: clients are trained one after the other then.",
        )
    _STACKABLE.add(model)


def _differs(model: AdaptedModel) -> str | None:
    """What two clients' rows give together and one by one, where it is not the same; None if it is.

    Losses by both ways to them, and gradients in training mode. Some bases give their layers tokens first and
    rows second; others look at the whole batch.
    """
    before, encode = model.read(), model.base.tokenizer.encode
    draw, start = Key.root(0).child("stack").numpy(), model.initial_state().vector()
    states = [
        AdapterState.from_vector(
            model.spec, start + 0.05 * torch.from_numpy(draw.standard_normal(len(start), np.float32))
        )
        for _ in range(2)
    ]
    rows = [_rows(model, encode(text, 24)) for text in ("one two three four", "nine")]
    try:
        apart = _apart(model, states, rows)  # first: what a model looks up in itself it asks one row
        together = _together(model, states, rows)
    except (RuntimeError, ValueError, IndexError) as error:  # of torch and transformers, on other shapes
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        model.load(before)
    settings = model.base.settings
    exact = settings.quantization == "none" and settings.dtype == "float32"
    tolerance = TOLERANCE if exact else QUANTISED_TOLERANCE
    for name in ("losses", "gradients"):
        one, other = together[name], apart[name]
        if not torch.allclose(
            one, other, rtol=tolerance, atol=tolerance / 10 * max(1.0, float(other.abs().max()))
        ):
            worst = int((one - other).abs().argmax())
            return (
                f"{name} that differ: {one.flatten()[worst]:.6g} together, {other.flatten()[worst]:.6g} alone"
            )
    return None


def _together(model: AdaptedModel, states: list[AdapterState], rows: list[Batch]) -> dict[str, Tensor]:
    """Losses [2, all rows], and each client's gradient [2, numel]."""
    values = {
        s.name: (torch.stack([x[s.name] for x in states]) * unit_of(s)).to(p.device, p.dtype)
        for s, p in model.parameters()
    }
    batch = joined(rows, model.base.tokenizer.pad, by_token=model.by_token)
    with torch.no_grad(), stacked(model, values, len(states)):
        losses = torch.stack([model.forward(batch.batch).losses, model.losses(batch.batch)[0]])
    leaves = {n: v.requires_grad_() for n, v in values.items()}
    dropping = Dropping([_generator() for _ in states], [(len(b), b.tokens.shape[1]) for b in rows])
    with _training(model), stacked(model, leaves, len(states), dropping if _drops_alike(model) else None):
        output = model.forward(batch.batch)
        loss = batch.losses(output.losses, output.counts).sum()
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {"losses": losses.cpu(), "gradients": torch.cat([g.flatten(1) for g in found], 1).cpu()}


def _apart(model: AdaptedModel, states: list[AdapterState], rows: list[Batch]) -> dict[str, Tensor]:
    """The same, one client after the other."""
    losses, gradients = [], []
    parameters = [p for _, p in model.parameters()]
    for state, own in zip(states, rows, strict=True):
        model.load(state)
        with torch.no_grad():
            losses.append(torch.stack([model.forward(own).losses, model.losses(own)[0]]))
        with _training(model), torch.random.fork_rng(devices=[]):
            torch.random.set_rng_state(_generator().get_state())
            loss = model.forward(own).loss
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        gradients.append(torch.cat([g.flatten() for g in found]))
    return {"losses": torch.cat(losses, 1).cpu(), "gradients": torch.stack(gradients).cpu()}


def _drops_alike(model: AdaptedModel) -> bool:
    """Whether what is dropped together can be compared: elsewhere than on the CPU draws are others."""
    return model.base.device.type == "cpu"


def _training(model: AdaptedModel) -> AbstractContextManager[None]:
    return model.training() if _drops_alike(model) else nullcontext()


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _rows(model: AdaptedModel, tokens: list[int]) -> Batch:
    found = torch.tensor([tokens, tokens])
    mask = torch.ones_like(found)
    return Batch(found, mask, model.task.any_targets(found, mask))
