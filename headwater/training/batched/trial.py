"""Whether a model's clients can be trained as one batch, by trying: :func:`require_stackable`."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet

import numpy as np
import torch

from headwater.adapters.stacked_lora import stacked, unstackable
from headwater.adapters.trained_tensors import unit_of
from headwater.errors import ModelError
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.tasks.batches import Batch
from headwater.training.batched.joined import joined

if TYPE_CHECKING:  # not to load Transformers, which takes seconds, where there is no base model
    from headwater.adapters.model import AdaptedModel

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
            expected="an adapter of kind 'lora' on linear layers, without DoRA",
            got=why,
            hint="Leave simulation.cohort out: clients are trained one after the other then.",
        )
    _STACKABLE.add(model)


def _differs(model: AdaptedModel) -> str | None:
    """What two clients' rows give together and one by one, where it is not the same; None if it is.

    Some bases give their layers tokens first and rows second.
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
    values = {s.name: torch.stack([x[s.name] for x in states]) * unit_of(s) for s in model.spec}
    values = {n: v.to(model.base.device) for n, v in values.items()}
    try:
        with torch.no_grad():
            batch = joined(rows, model.base.tokenizer.pad, by_token=model.language_model)
            with stacked(model, values, len(states)):
                together = torch.stack([model.forward(batch.batch).losses, model.losses(batch.batch)[0]])
            apart = []
            for state, own in zip(states, rows, strict=True):
                model.load(state)
                apart.append(torch.stack([model.forward(own).losses, model.losses(own)[0]]))
    except (RuntimeError, ValueError, IndexError) as error:  # of torch and transformers, on other shapes
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        model.load(before)
    alone = torch.cat(apart, 1)
    if torch.allclose(together, alone, rtol=1e-3, atol=1e-4):
        return None
    return f"losses of {together.tolist()} together, and of {alone.tolist()} one by one"


def _rows(model: AdaptedModel, tokens: list[int]) -> Batch:
    found = torch.tensor([tokens, tokens])
    mask = torch.ones_like(found)
    return Batch(found, mask, model.task.any_targets(found, mask))
