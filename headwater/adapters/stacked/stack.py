"""Several clients' adapters and heads in one pass: :func:`stacked`.

The rows of a batch are those of K clients one after the other, equally many of each. The frozen weights see
one batch; beside them each client's rows go through its own tensors, of stacks [K, *shape]. A gradient of
the sum of all losses is then each client's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from headwater.adapters.stacked.layer import Dropping, StackedLayer, Together, kept_share

if TYPE_CHECKING:  # not to load Transformers, which takes seconds, where there is no base model
    from headwater.adapters.model import AdaptedModel

_LAYERS: WeakKeyDictionary[AdaptedModel, tuple[StackedLayer, ...]] = WeakKeyDictionary()


def unstackable(model: AdaptedModel) -> str | None:
    """Why clients of this model cannot be trained as one batch; None if they can."""
    layers = _layers(model)
    reached = {id(p) for layer in layers for p in layer.parameters()}
    if lost := [spec.name for spec, p in model.parameters() if id(p) not in reached]:
        return f"a trained tensor that is in no layer of which a stack can be made, {lost[0]}"
    known = {id(m) for layer in layers for m in layer.dropouts()}
    if any(id(m) not in known for m in _dropping(model)):
        return "dropout elsewhere than in an adapter's layers of which a stack can be made"
    return None


def drops(model: AdaptedModel) -> bool:
    """Whether the adapter drops units in training."""
    return bool(_dropping(model))


def _dropping(model: AdaptedModel) -> list[nn.Module]:
    return [m for m in model.kind.dropouts(model.network.peft) if kept_share(m) < 1]


def _layers(model: AdaptedModel) -> tuple[StackedLayer, ...]:
    """Each layer with a trained tensor, the outer ones first; kept, as no layer comes or goes."""
    if model not in _LAYERS:
        _LAYERS[model] = tuple(_found(model))
    return _LAYERS[model]


def _found(model: AdaptedModel) -> Iterator[StackedLayer]:
    from headwater.adapters.stacked.table import LAYERS  # loads PEFT

    trained = {id(parameter) for _, parameter in model.parameters()}
    inside: set[nn.Module] = set()
    for module in model.network.modules():
        if module in inside:
            continue
        for layer in (kind(module) for kind in LAYERS if kind.takes(module)):
            if any(id(p) in trained for p in layer.parameters()):
                inside.update(layer.parts())
                yield layer


@contextmanager
def stacked(
    model: AdaptedModel, values: Mapping[str, Tensor], clients: int, dropping: Dropping | None = None
) -> Iterator[None]:
    """Inside, the model computes with each client's own tensors.

    Args:
        model: one that is not :func:`unstackable`.
        values: by the name of the trained tensor, of all clients: [clients, *shape].
        clients: whose rows a batch has, one client's after the other's.
        dropping: of the adapter's inputs, while the model trains; None for nothing.
    """
    by_parameter = {id(parameter): values[spec.name] for spec, parameter in model.parameters()}
    together = Together(clients, dropping)
    with ExitStack() as stack:
        for layer in _layers(model):
            own = [by_parameter.get(id(p), p) for p in layer.parameters()]
            setattr(layer.module, layer.method, layer.computing(own, together))
            stack.callback(delattr, layer.module, layer.method)
        yield
